"""What is believed, what is passed on and to whom, and how plans spread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from node.errors import BadWireData
from node.swarm.base import MemberGone, MemberSeen, PlanHeard
from node.swarm.gossip import CLOCK_AHEAD_LIMIT_MS, Gossip
from node.swarm.identity import Identity
from node.wire.codec import encode
from node.wire.control import Leave
from node.wire.ids import NodeId
from node.wire.models import ModelFacts, ModelRef
from node.wire.plans import EPOCH_LEAP, Plan
from node.wire.records import RECORD_LIMIT_BYTES, Envelope, NodeRecord

Make = Callable[..., NodeRecord]
MODEL = ModelRef("model", "default", "0" * 64)
FACTS = ModelFacts(30, 1, 1, 1, 1, 1, 1, 1)


def plan_by(author: Identity, epoch: int) -> Plan:
    return Plan(epoch, author.node_id, MODEL, "float32", FACTS, ())


def signed(who: Identity, value: Any, kind: Any = "record") -> Envelope:
    return who.sign(kind, encode(value))


@pytest.fixture
def gossip(ada: Identity, record_of: Make) -> Gossip:
    return Gossip(ada, record_of(ada.node_id, 0))


def test_the_first_record_of_ours_is_news_and_a_mere_refresh_is_not(gossip: Gossip) -> None:
    first, news = gossip.publish({}, unix_ms=1000)
    assert news == [MemberSeen(gossip.record)]
    assert gossip.record.seq == 1000
    _, news = gossip.publish({}, unix_ms=1000)
    assert (news, gossip.record.seq) == ([], 1001)
    _, news = gossip.publish({"sessions": 2}, unix_ms=5000)
    assert news == [MemberSeen(gossip.record)]
    assert gossip.welcome()[0].payload == encode(gossip.record) != first.payload


def test_a_change_that_others_would_refuse_is_refused_here(gossip: Gossip) -> None:
    with pytest.raises(BadWireData):
        gossip.publish({"sessions": -1}, unix_ms=1)
    with pytest.raises(TypeError):
        gossip.publish({"no_such_field": 1}, unix_ms=1)


def test_a_record_under_anothers_id_or_signature_is_refused(
    gossip: Gossip, bob: Identity, eve: Identity, record_of: Make
) -> None:
    with pytest.raises(BadWireData, match="another node"):
        gossip.hear(signed(eve, record_of(bob.node_id)), eve.node_id, 0.0)
    theirs = signed(eve, record_of(bob.node_id))
    with pytest.raises(BadWireData, match="signature"):
        gossip.hear(Envelope("record", bob.node_id, theirs.payload, theirs.signature), eve.node_id, 0.0)
    with pytest.raises(BadWireData, match="signature"):
        payload = encode(plan_by(bob, 1))
        gossip.hear(Envelope("plan", bob.node_id, payload, eve.sign("plan", payload).signature), eve.node_id, 0.0)
    assert set(gossip.members()) == {gossip.record.id}


@pytest.mark.parametrize("kind", ["record", "plan", "leave"])
@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x80", b"\x81\xa3seq\x01", b"\xdd\xff\xff\xff\xff"])
def test_a_payload_of_another_shape_is_refused(gossip: Gossip, bob: Identity, kind: Any, payload: bytes) -> None:
    with pytest.raises(BadWireData):
        gossip.hear(bob.sign(kind, payload), bob.node_id, 0.0)


def test_what_is_new_is_passed_on_to_those_whom_its_owner_does_not_reach(
    gossip: Gossip, bob: Identity, eve: Identity, record_of: Make
) -> None:
    far, near = NodeId("far"), NodeId("near")
    envelope = signed(bob, record_of(bob.node_id, 5, rtt_ms={near: 1.0}))
    assert gossip.hear(envelope, eve.node_id, 0.0).spread
    assert gossip.targets(envelope, eve.node_id, [bob.node_id, eve.node_id, near, far]) == [far]
    assert not gossip.hear(envelope, far, 0.0).spread, "the second time it is old"


def test_our_own_statements_go_to_everyone(gossip: Gossip) -> None:
    envelope, _ = gossip.publish({"rtt_ms": {"near": 1.0}}, unix_ms=1)
    assert gossip.targets(envelope, None, [NodeId("near"), NodeId("far")]) == ["near", "far"]


def test_a_goodbye_takes_a_member_out_and_out_of_the_welcome(
    gossip: Gossip, bob: Identity, eve: Identity, record_of: Make
) -> None:
    gossip.hear(signed(bob, record_of(bob.node_id, 5)), bob.node_id, 0.0)
    assert len(gossip.welcome()) == 1
    forged = signed(eve, Leave(bob.node_id, 9), "leave")
    with pytest.raises(BadWireData, match="another node"):
        gossip.hear(forged, eve.node_id, 0.0)
    heard = gossip.hear(signed(bob, Leave(bob.node_id, 6), "leave"), eve.node_id, 0.0)
    assert heard.news == [MemberGone(bob.node_id, record_of(bob.node_id).name, "left")]
    assert heard.spread
    assert gossip.welcome() == ()


def test_our_goodbye_outdoes_our_last_record(gossip: Gossip) -> None:
    gossip.publish({}, unix_ms=1000)
    leave = msgspec.msgpack.decode(gossip.leave().payload, type=Leave)
    assert leave == Leave(gossip.record.node_id, 1001)


def test_a_former_life_with_a_clock_ahead_is_outdone(gossip: Gossip, ada: Identity, record_of: Make) -> None:
    gossip.publish({}, unix_ms=1000)
    gossip.hear(signed(ada, record_of(ada.node_id, 9_000)), NodeId("far"), 0.0)
    gossip.publish({}, unix_ms=1001)
    assert gossip.record.seq == 9_001
    assert gossip.outdo(9_001)
    assert not gossip.outdo(9_000)
    gossip.publish({}, unix_ms=1002)
    assert gossip.record.seq == 9_002


@pytest.mark.parametrize("seq", [1000 + CLOCK_AHEAD_LIMIT_MS + 1, 2**53 - 1, 2**53])
def test_a_number_that_no_clock_could_have_led_to_is_not_outdone(
    gossip: Gossip, ada: Identity, record_of: Make, seq: int
) -> None:
    gossip.publish({}, unix_ms=1000)
    assert not gossip.outdo(seq)
    gossip.hear(signed(ada, record_of(ada.node_id, seq)), NodeId("far"), 0.0)
    gossip.publish({}, unix_ms=1001)
    assert gossip.record.seq == 1001
    assert gossip.outdo(1001 + CLOCK_AHEAD_LIMIT_MS)
    gossip.publish({}, unix_ms=1002)
    assert gossip.record.seq == 1002 + CLOCK_AHEAD_LIMIT_MS


def test_the_highest_plan_wins_in_any_order_and_is_part_of_the_welcome(
    gossip: Gossip, bob: Identity, record_of: Make
) -> None:
    gossip.hear(signed(bob, record_of(bob.node_id)), bob.node_id, 0.0)
    low, high = signed(bob, plan_by(bob, 1), "plan"), signed(bob, plan_by(bob, 2), "plan")
    assert gossip.hear(high, bob.node_id, 0.0).news == [PlanHeard(plan_by(bob, 2))]
    assert gossip.hear(low, bob.node_id, 0.0).news == []
    assert gossip.hear(high, bob.node_id, 0.0).news == []
    assert high in gossip.welcome()


def test_a_plan_whose_author_is_gone_is_told_to_newcomers_who_take_it(
    gossip: Gossip, eve: Identity, bob: Identity, record_of: Make
) -> None:
    envelope = signed(bob, plan_by(bob, 3), "plan")
    gossip.hear(signed(bob, record_of(bob.node_id)), bob.node_id, 0.0)
    gossip.hear(envelope, bob.node_id, 0.0)
    gossip.pass_time(1e6, 0.0)
    assert gossip.welcome() == (envelope,)
    newcomer = Gossip(eve, record_of(eve.node_id, 0))
    assert newcomer.hear(envelope, gossip.record.id, 0.0, welcome=True).news == [PlanHeard(plan_by(bob, 3))]


def test_a_plan_of_a_stranger_waits_until_its_author_is_a_member(
    gossip: Gossip, bob: Identity, eve: Identity, record_of: Make
) -> None:
    assert gossip.hear(signed(bob, plan_by(bob, 3), "plan"), eve.node_id, 0.0).news == []
    heard = gossip.hear(signed(bob, record_of(bob.node_id)), eve.node_id, 0.0)
    assert heard.news[-1] == PlanHeard(plan_by(bob, 3))


def test_a_plan_of_ours_is_signed_once_it_outranks_what_is_known(gossip: Gossip, ada: Identity, bob: Identity) -> None:
    assert gossip.publish_plan(plan_by(ada, 1)) is not None
    assert gossip.publish_plan(plan_by(ada, 1)) is None
    with pytest.raises(BadWireData, match="author"):
        gossip.publish_plan(plan_by(bob, 2))


def test_a_record_as_large_as_only_a_plan_may_be_is_refused(gossip: Gossip, bob: Identity, record_of: Make) -> None:
    large = record_of(bob.node_id, rtt_ms={f"{number:0100d}": 1.0 for number in range(800)})
    with pytest.raises(BadWireData, match=f"at most {RECORD_LIMIT_BYTES}"):
        gossip.hear(signed(bob, large), bob.node_id, 0.0)


def test_a_plan_from_nowhere_is_neither_believed_nor_passed_on_and_a_newcomer_takes_what_is_in_force(
    gossip: Gossip, bob: Identity, record_of: Make
) -> None:
    gossip.hear(signed(bob, record_of(bob.node_id)), bob.node_id, 0.0)
    far = plan_by(bob, 40 * EPOCH_LEAP)
    newcomer = gossip.hear(signed(bob, far, "plan"), bob.node_id, 0.0)
    assert newcomer.news == [PlanHeard(far)]
    beyond = gossip.hear(signed(bob, plan_by(bob, 41 * EPOCH_LEAP + 1), "plan"), bob.node_id, 0.0)
    assert (beyond.news, beyond.spread) == ([], False)
    following = plan_by(bob, far.epoch + 1)
    assert gossip.hear(signed(bob, following, "plan"), bob.node_id, 0.0).news == [PlanHeard(following)]


def test_a_plan_by_a_member_long_gone_is_taken_and_passed_on_when_a_member_follows_it(
    gossip: Gossip, bob: Identity, eve: Identity, record_of: Make
) -> None:
    plan = signed(eve, plan_by(eve, 9), "plan")
    held_back = gossip.hear(plan, bob.node_id, 0.0)
    assert (held_back.news, held_back.spread) == ([], False)
    assert gossip.hear(signed(bob, record_of(bob.node_id, 5, plan_epoch=8)), bob.node_id, 0.0).released is None
    heard = gossip.hear(signed(bob, record_of(bob.node_id, 6, plan_epoch=9)), bob.node_id, 0.0)
    assert heard.news[-1] == PlanHeard(plan_by(eve, 9))
    assert heard.released == plan
    newer = gossip.hear(signed(eve, plan_by(eve, 10), "plan"), bob.node_id, 0.0)
    assert not newer.spread, "nobody follows that one"


def test_a_plan_that_a_known_member_follows_is_taken_at_once(
    gossip: Gossip, bob: Identity, eve: Identity, record_of: Make
) -> None:
    gossip.hear(signed(bob, record_of(bob.node_id, 5, plan_epoch=9)), bob.node_id, 0.0)
    heard = gossip.hear(signed(eve, plan_by(eve, 9), "plan"), bob.node_id, 0.0)
    assert heard.news == [PlanHeard(plan_by(eve, 9))]
    assert heard.spread
