"""What is believed, what is passed on and to whom, what is asked for, and how plans spread."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from node.errors import BadWireData
from node.swarm.allowance import HEARD_BURST, OWN_BURST, OWN_PER_S, PATIENCE
from node.swarm.base import MemberGone, MemberSeen, PlanHeard
from node.swarm.gossip import ASK_AGAIN_S, CLOCK_AHEAD_LIMIT_MS, LATE_PLAN_S, Effects, Flood, Gossip
from node.swarm.identity import Identity, identity_from_seed
from node.swarm.relaying import RELAYS
from node.wire.codec import encode
from node.wire.control import Welcome
from node.wire.ids import NodeId
from node.wire.models import ModelFacts, ModelRef
from node.wire.parts import Beat, Trips
from node.wire.peer_figures import mark_of
from node.wire.plans import BUILT_S, CLOCKS_DIFFER_S, EPOCHS_SINCE_S, Plan, most_epoch
from node.wire.records import NodeRecord
from node.wire.statements import LIMIT_BYTES, Envelope, Leave
from tests.node.swarm.words import MARK, leave_of, parts_of, plan_of, told_by

Make = Callable[..., NodeRecord]
MODEL = ModelRef("model", "default", "0" * 64)
FACTS = ModelFacts(30, 1, 1, 1, 1, 1, 1, 1)
UNIX_S = 1_790_000_000.0


def plan_by(author: Identity, epoch: int) -> Plan:
    return Plan(epoch, author.node_id, MODEL, "float32", FACTS, ())


def hear(gossip: Gossip, envelope: Envelope, via: str, now: float = 0.0) -> Effects:
    return gossip.hear(envelope, NodeId(via), now, UNIX_S)


def hear_all(gossip: Gossip, who: Identity, record: NodeRecord, via: str | None = None, now: float = 0.0) -> Effects:
    """All parts of a record, and what they led to together: of the news the last ones."""
    whole = Effects()
    for envelope in told_by(who, record):
        heard = hear(gossip, envelope, via or who.node_id, now)
        whole.news = [*(item for item in whole.news if not isinstance(item, MemberSeen)), *heard.news]
        whole.spread, whole.released = whole.spread or heard.spread, whole.released or heard.released
        whole.ask = heard.ask or whole.ask
    return whole


@pytest.fixture
def gossip(ada: Identity, record_of: Make) -> Gossip:
    return Gossip(ada, record_of(ada.node_id, 0), MARK)


def kinds(envelopes: list[Envelope]) -> list[str]:
    return [envelope.kind for envelope in envelopes]


def test_the_first_words_are_news_and_a_beat_is_not(gossip: Gossip) -> None:
    first, news = gossip.publish({}, unix_ms=1000)
    assert kinds(first) == ["profile", "trips", "status"]
    assert news == [MemberSeen(gossip.record)]
    assert gossip.record.seq == 1002
    beat, news = gossip.publish({}, unix_ms=1000)
    assert (kinds(beat), news, gossip.record.seq) == (["beat"], [], 1003)
    assert msgspec.msgpack.decode(beat[0].payload, type=Beat) == Beat(1003, 3, 1, 2)


def test_only_the_part_that_changed_is_told(gossip: Gossip) -> None:
    gossip.publish({}, unix_ms=1000)
    for changes, kind in (
        ({"sessions": 2}, "status"),
        ({"problem": "x"}, "profile"),
        ({"rtt_ms": {"b": 1.0}}, "trips"),
        ({"unreachable": ("c",)}, "trips"),
    ):
        envelopes, news = gossip.publish(changes, unix_ms=5000)
        assert kinds(envelopes) == [kind]
        assert news == [MemberSeen(gossip.record)]
    _, own = gossip.welcome(NodeId("b"))
    assert sorted(kinds(own)) == ["profile", "status", "trips"]


def test_what_is_told_adds_up_to_our_record_with_others(gossip: Gossip, bob: Identity, record_of: Make) -> None:
    theirs = Gossip(bob, record_of(bob.node_id, 0), MARK)
    for number, changes in enumerate([{}, {"sessions": 2}, {"state": "serving"}, {}, {"region": "attic"}]):
        for envelope in theirs.publish(changes, unix_ms=1000 + number)[0]:
            hear(gossip, envelope, bob.node_id)
        assert gossip.members()[bob.node_id] == theirs.record


def test_a_change_that_others_would_refuse_is_refused_here(gossip: Gossip) -> None:
    with pytest.raises(BadWireData):
        gossip.publish({"sessions": -1}, unix_ms=1)
    with pytest.raises(BadWireData):
        gossip.publish({"load": float("nan")}, unix_ms=1)
    with pytest.raises(TypeError):
        gossip.publish({"no_such_field": 1}, unix_ms=1)


def test_words_under_anothers_id_signature_or_swarm_are_refused(
    gossip: Gossip, bob: Identity, eve: Identity, record_of: Make
) -> None:
    for theirs in told_by(eve, record_of(bob.node_id)):
        with pytest.raises(BadWireData, match="signature"):
            hear(gossip, Envelope(theirs.kind, bob.node_id, theirs.payload, theirs.signature), eve.node_id)
    for elsewhere in (*told_by(bob, record_of(bob.node_id), b"other"), plan_of(bob, plan_by(bob, 1), b"other")):
        with pytest.raises(BadWireData, match="signature"):
            hear(gossip, elsewhere, bob.node_id)
    with pytest.raises(BadWireData, match="signature"):
        payload = encode(plan_by(bob, 1))
        hear(gossip, Envelope("plan", bob.node_id, payload, eve.sign("plan", payload, MARK).signature), eve.node_id)
    with pytest.raises(BadWireData, match="another node"):
        hear(gossip, plan_of(eve, plan_by(bob, 1)), eve.node_id)
    assert set(gossip.members()) == {gossip.record.id}


@pytest.mark.parametrize("kind", ["profile", "status", "trips", "beat", "plan", "leave"])
@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x80", b"\x81\xa3seq\x01", b"\xdd\xff\xff\xff\xff"])
def test_a_payload_of_another_shape_is_refused(gossip: Gossip, bob: Identity, kind: Any, payload: bytes) -> None:
    with pytest.raises(BadWireData):
        hear(gossip, bob.sign(kind, payload, MARK), bob.node_id)


def test_a_kind_that_is_not_known_here_means_nothing_and_harms_nobody(gossip: Gossip, bob: Identity) -> None:
    assert hear(gossip, bob.sign("weather", b"\xc1", MARK), bob.node_id) == Effects()  # type: ignore[arg-type]


def test_what_is_new_is_passed_on_to_those_whom_its_owner_does_not_reach(
    gossip: Gossip, bob: Identity, eve: Identity, record_of: Make
) -> None:
    far, near = NodeId("far"), NodeId("near")
    record = record_of(bob.node_id, 5, rtt_ms={near: 1.0})
    assert hear_all(gossip, bob, record, via=eve.node_id).spread
    status = told_by(bob, record)[2]
    assert gossip.targets(status, eve.node_id, [bob.node_id, eve.node_id, near, far]) == [far]
    assert not hear(gossip, status, far).spread, "the second time it is old"


def test_of_many_common_neighbours_a_few_pass_on(bob: Identity, eve: Identity, record_of: Make) -> None:
    """bob and eve cannot reach one another; twelve others reach both."""
    middle = [identity_from_seed(bytes([number]) * 32) for number in range(1, 13)]
    ids = [each.node_id for each in middle]
    relays = []
    for each in middle:
        gossip = Gossip(each, record_of(each.node_id, 0), MARK)
        for far in (bob, eve):
            hear_all(gossip, far, record_of(far.node_id, 5, rtt_ms=dict.fromkeys(ids, 1.0)))
        status = told_by(bob, record_of(bob.node_id, 5))[2]
        neighbours = [eve.node_id, bob.node_id, *(other for other in ids if other != each.node_id)]
        told = gossip.targets(status, bob.node_id, neighbours)
        assert told in ([], [eve.node_id])
        relays += told
    assert len(relays) == RELAYS


def test_our_own_statements_go_to_everyone(gossip: Gossip) -> None:
    envelopes, _ = gossip.publish({"rtt_ms": {"near": 1.0}}, unix_ms=1)
    for envelope in envelopes:
        assert gossip.targets(envelope, None, [NodeId("near"), NodeId("far")]) == ["near", "far"]


def test_a_newcomer_asks_one_neighbour_for_what_it_lacks_and_gets_it(
    gossip: Gossip, bob: Identity, eve: Identity, record_of: Make
) -> None:
    hear_all(gossip, bob, record_of(bob.node_id, 5))
    hear(gossip, plan_of(bob, plan_by(bob, 3)), bob.node_id)
    newcomer = Gossip(eve, record_of(eve.node_id, 0), MARK)
    welcome, _ = gossip.welcome(eve.node_id)
    ask = newcomer.hear_welcome(welcome, gossip.record.id, 0.0)
    assert ask is not None
    assert (ask.marks, ask.plan) == (mark_of(bob.node_id), True)
    assert newcomer.hear_welcome(welcome, NodeId("other"), 0.1) is None, "it is on its way"
    answer = gossip.answer(ask, eve.node_id, 0.0)
    assert sorted(kinds(answer)) == ["plan", "profile", "status", "trips"]
    for envelope in answer:
        hear(newcomer, envelope, gossip.record.id)
    assert newcomer.members()[bob.node_id] == gossip.members()[bob.node_id]
    assert newcomer.plan == plan_by(bob, 3)
    assert newcomer.hear_welcome(welcome, NodeId("other"), 2 * ASK_AGAIN_S) is None


def test_what_was_missed_is_asked_of_who_has_it(gossip: Gossip, bob: Identity, record_of: Make) -> None:
    hear_all(gossip, bob, record_of(bob.node_id, 5))
    beat = bob.sign("beat", encode(Beat(9, 1, 4, 4)), MARK)
    ask = hear(gossip, beat, "near", 1.0).ask
    assert ask is not None
    assert ask.marks == mark_of(bob.node_id)
    later = bob.sign("beat", encode(Beat(10, 2, 5, 5)), MARK)
    assert hear(gossip, later, "near", 2.0).ask is None
    again = bob.sign("beat", encode(Beat(11, 3, 6, 6)), MARK)
    assert hear(gossip, again, "near", 1.0 + ASK_AGAIN_S).ask == ask


def test_a_goodbye_takes_a_member_out_and_out_of_the_welcome(
    gossip: Gossip, bob: Identity, eve: Identity, record_of: Make
) -> None:
    hear_all(gossip, bob, record_of(bob.node_id, 5))
    assert gossip.welcome(eve.node_id)[0].seqs() == {mark_of(bob.node_id): 5}
    forged = leave_of(eve, 9)
    with pytest.raises(BadWireData, match="signature"):
        hear(gossip, Envelope("leave", bob.node_id, forged.payload, forged.signature), eve.node_id)
    heard = hear(gossip, leave_of(bob, 6), eve.node_id)
    assert heard.news == [MemberGone(bob.node_id, record_of(bob.node_id).name, "left")]
    assert heard.spread
    assert gossip.welcome(eve.node_id)[0].seqs() == {}


def test_our_goodbye_outdoes_our_last_words(gossip: Gossip) -> None:
    gossip.publish({}, unix_ms=1000)
    assert msgspec.msgpack.decode(gossip.leave().payload, type=Leave) == Leave(1003)


def test_a_former_life_with_a_clock_ahead_is_outdone_in_every_part(
    gossip: Gossip, ada: Identity, bob: Identity, record_of: Make
) -> None:
    other = Gossip(bob, record_of(bob.node_id, 0), MARK)
    former = record_of(ada.node_id, 9_000, name="former")
    hear_all(other, ada, former)
    gossip.publish({}, unix_ms=1000)
    hear(gossip, told_by(ada, former)[2], "far")
    envelopes, _ = gossip.publish({}, unix_ms=1001)
    assert kinds(envelopes) == ["profile", "trips", "status"]
    assert gossip.record.seq == 9_003
    for envelope in envelopes:
        hear(other, envelope, ada.node_id)
    assert other.members()[ada.node_id].name == gossip.record.name
    assert gossip.outdo(9_003)
    assert not gossip.outdo(9_002)


@pytest.mark.parametrize("seq", [1002 + CLOCK_AHEAD_LIMIT_MS + 1, 2**53 - 1, 2**53])
def test_a_number_that_no_clock_could_have_led_to_is_not_outdone(
    gossip: Gossip, ada: Identity, record_of: Make, seq: int
) -> None:
    gossip.publish({}, unix_ms=1000)
    assert not gossip.outdo(seq)
    hear(gossip, told_by(ada, record_of(ada.node_id, seq))[2], "far")
    gossip.publish({}, unix_ms=1001)
    assert gossip.record.seq == 1003


def test_the_highest_plan_wins_in_any_order_and_is_named_in_the_welcome(
    gossip: Gossip, bob: Identity, record_of: Make
) -> None:
    hear_all(gossip, bob, record_of(bob.node_id))
    low, high = plan_of(bob, plan_by(bob, 1)), plan_of(bob, plan_by(bob, 2))
    assert hear(gossip, high, bob.node_id).news == [PlanHeard(plan_by(bob, 2))]
    assert hear(gossip, low, bob.node_id).news == []
    assert hear(gossip, high, bob.node_id).news == []
    welcome, _ = gossip.welcome(NodeId("x"))
    assert (welcome.plan_epoch, welcome.plan_author) == (2, bob.node_id)


def test_a_plan_is_not_told_to_who_has_shown_to_know_it(gossip: Gossip, bob: Identity, record_of: Make) -> None:
    hear_all(gossip, bob, record_of(bob.node_id))
    gossip.hear_welcome(Welcome(0, b"", 3, bob.node_id), NodeId("knows"), 0.0)
    plan = plan_of(bob, plan_by(bob, 3))
    assert hear(gossip, plan, "near").spread
    assert gossip.targets(plan, NodeId("near"), [NodeId("knows"), NodeId("near"), NodeId("new")]) == ["new"]


def test_a_plan_whose_author_is_gone_is_taken_by_newcomers_who_asked_for_it(
    gossip: Gossip, eve: Identity, bob: Identity, record_of: Make
) -> None:
    envelope = plan_of(bob, plan_by(bob, 3))
    hear_all(gossip, bob, record_of(bob.node_id))
    hear(gossip, envelope, bob.node_id)
    gossip.pass_time(1e6, 0.0)
    newcomer = Gossip(eve, record_of(eve.node_id, 0), MARK)
    ask = newcomer.hear_welcome(gossip.welcome(eve.node_id)[0], gossip.record.id, 0.0)
    assert ask is not None
    (answer,) = gossip.answer(ask, eve.node_id, 0.0)
    assert hear(newcomer, answer, gossip.record.id).news == [PlanHeard(plan_by(bob, 3))]


def test_a_plan_of_a_stranger_waits_until_its_author_is_a_member(
    gossip: Gossip, bob: Identity, eve: Identity, record_of: Make
) -> None:
    assert hear(gossip, plan_of(bob, plan_by(bob, 3)), eve.node_id).news == []
    assert PlanHeard(plan_by(bob, 3)) in hear_all(gossip, bob, record_of(bob.node_id), via=eve.node_id).news


def test_a_plan_of_ours_is_signed_once_it_outranks_what_is_known(gossip: Gossip, ada: Identity, bob: Identity) -> None:
    assert gossip.publish_plan(plan_by(ada, 1)) is not None
    assert gossip.publish_plan(plan_by(ada, 1)) is None
    with pytest.raises(BadWireData, match="author"):
        gossip.publish_plan(plan_by(bob, 2))


@pytest.mark.parametrize("kind", ["profile", "status", "trips", "beat", "leave", "plan"])
def test_each_kind_has_its_own_limit(gossip: Gossip, bob: Identity, kind: Any) -> None:
    with pytest.raises(BadWireData, match=f"at most {LIMIT_BYTES[kind]} allowed"):
        hear(gossip, bob.sign(kind, b"\x90" + bytes(LIMIT_BYTES[kind]), MARK), bob.node_id)


def test_an_absurd_epoch_is_refused_by_a_fresh_node_too_and_there_is_always_a_next_plan(
    gossip: Gossip, bob: Identity, record_of: Make
) -> None:
    hear_all(gossip, bob, record_of(bob.node_id))
    for absurd in (2**53, 2**52, most_epoch(UNIX_S) + 1):
        heard = hear(gossip, plan_of(bob, plan_by(bob, absurd)), bob.node_id)
        assert (heard.news, heard.spread, gossip.plan) == ([], False, None)
    gossip.hear_welcome(Welcome(0, b"", 2**52, bob.node_id), bob.node_id, 0.0)
    assert hear(gossip, plan_of(bob, plan_by(bob, 2**52)), bob.node_id).news == [], "also where it was asked for"
    highest = plan_by(bob, most_epoch(UNIX_S))
    assert hear(gossip, plan_of(bob, highest), bob.node_id).news == [PlanHeard(highest)]
    following = plan_of(bob, plan_by(bob, highest.epoch + 1))
    assert gossip.hear(following, bob.node_id, 0.0, UNIX_S).news == [], "not yet"
    assert gossip.hear(following, bob.node_id, 0.0, UNIX_S + 1).news == [PlanHeard(plan_by(bob, highest.epoch + 1))]


def test_a_clock_without_a_battery_takes_the_epochs_that_planning_leads_to() -> None:
    assert most_epoch(0.0) == most_epoch(BUILT_S) == BUILT_S - EPOCHS_SINCE_S + CLOCKS_DIFFER_S > 10_000_000


def test_who_claims_to_follow_an_absurd_plan_follows_none(gossip: Gossip, bob: Identity, record_of: Make) -> None:
    """It would be taken for the one who knows what was set, and make the swarm's first plan."""
    hear_all(gossip, bob, record_of(bob.node_id, 5, plan_epoch=2**52))
    assert gossip.members()[bob.node_id].plan_epoch == 0


def test_a_plan_by_a_member_long_gone_is_taken_and_passed_on_when_a_member_follows_it(
    gossip: Gossip, bob: Identity, eve: Identity, record_of: Make
) -> None:
    plan = plan_of(eve, plan_by(eve, 9))
    held_back = hear(gossip, plan, bob.node_id)
    assert (held_back.news, held_back.spread) == ([], False)
    assert hear_all(gossip, bob, record_of(bob.node_id, 5, plan_epoch=8)).released is None
    heard = hear_all(gossip, bob, record_of(bob.node_id, 6, plan_epoch=9))
    assert PlanHeard(plan_by(eve, 9)) in heard.news
    assert heard.released == plan
    assert not hear(gossip, plan_of(eve, plan_by(eve, 10)), bob.node_id).spread, "nobody follows that one"


def test_a_plan_that_a_known_member_follows_is_taken_at_once_and_asked_for_where_it_does_not_come(
    gossip: Gossip, bob: Identity, eve: Identity, record_of: Make
) -> None:
    heard = hear_all(gossip, bob, record_of(bob.node_id, 5, plan_epoch=9))
    assert heard.ask is None, "it is under way"
    heard = hear_all(gossip, bob, record_of(bob.node_id, 6, plan_epoch=9, sessions=1), now=LATE_PLAN_S)
    assert heard.ask is not None
    assert heard.ask.plan
    heard = hear(gossip, plan_of(eve, plan_by(eve, 9)), bob.node_id, LATE_PLAN_S)
    assert heard.news == [PlanHeard(plan_by(eve, 9))]
    assert heard.spread


def statuses(who: Identity, record: NodeRecord, count: int) -> list[Envelope]:
    """As many as it likes, each with a new number."""
    return [
        who.sign("status", encode(parts_of(replace(record, seq=record.seq + number))["status"]), MARK)
        for number in range(count)
    ]


def test_who_speaks_without_pause_is_heard_at_a_bounded_rate_and_then_let_go(
    gossip: Gossip, bob: Identity, record_of: Make
) -> None:
    hear_all(gossip, bob, record_of(bob.node_id, 5))
    taken, flood = 0, None
    for envelope in statuses(bob, record_of(bob.node_id, 100), 500):
        try:
            taken += hear(gossip, envelope, bob.node_id, 1.0).spread
        except Flood as error:
            flood = error
            break
    assert OWN_BURST - 5 <= taken <= OWN_BURST + OWN_PER_S
    assert flood is not None
    assert bob.node_id[-8:] in str(flood)


def test_a_flood_costs_little_and_keeps_nobody_else_from_being_heard(
    gossip: Gossip, bob: Identity, eve: Identity, record_of: Make
) -> None:
    """Three seconds of a member that speaks 1,000 times a second, beside an honest one."""
    hear_all(gossip, bob, record_of(bob.node_id, 5))
    hear_all(gossip, eve, record_of(eve.node_id, 5))
    flood = statuses(bob, record_of(bob.node_id, 100), 3000)
    honest = statuses(eve, record_of(eve.node_id, 100), 12)
    started_s, floods = time.thread_time(), 0
    for number, envelope in enumerate(flood):
        try:
            hear(gossip, envelope, bob.node_id, number / 1000)
        except Flood:
            floods += 1
        if number % 250 == 0:
            assert hear(gossip, honest[number // 250], eve.node_id, number / 1000).spread
    per_s = (time.thread_time() - started_s) / 3
    assert floods > 0
    assert per_s < 0.15, f"{per_s:.3f} s of a core for each second"


def test_a_flood_that_is_passed_on_is_dropped_and_the_relay_stays(
    gossip: Gossip, bob: Identity, eve: Identity, record_of: Make
) -> None:
    hear_all(gossip, bob, record_of(bob.node_id, 5), via=eve.node_id)
    taken = sum(
        hear(gossip, envelope, eve.node_id, 1.0).spread
        for envelope in statuses(bob, record_of(bob.node_id, 100), int(OWN_BURST + PATIENCE + 100))
    )
    assert taken <= OWN_BURST + OWN_PER_S


def test_who_repeats_old_words_without_pause_is_let_go_too(gossip: Gossip, bob: Identity, record_of: Make) -> None:
    hear_all(gossip, bob, record_of(bob.node_id, 5))
    (*_, old) = told_by(bob, record_of(bob.node_id, 5))
    for _ in range(int(HEARD_BURST) - 10):
        assert hear(gossip, old, "relay") == Effects(), "a newcomer is told of everyone"
    with pytest.raises(Flood, match="repeats"):
        for _ in range(1000):
            hear(gossip, old, "relay")


def test_what_is_forged_in_the_name_of_another_does_not_use_up_its_allowance(
    gossip: Gossip, bob: Identity, eve: Identity, record_of: Make
) -> None:
    hear_all(gossip, bob, record_of(bob.node_id, 5))
    for forged in statuses(eve, record_of(bob.node_id, 10_000), 500):
        with pytest.raises(BadWireData):
            hear(gossip, replace(forged, node_id=bob.node_id), eve.node_id, 1.0)
    assert hear(gossip, statuses(bob, record_of(bob.node_id, 100), 1)[0], bob.node_id, 1.0).spread


def test_a_relay_is_forgiven_now_and_then_and_not_for_ever(gossip: Gossip) -> None:
    for second in range(600):
        gossip.fault(NodeId("relay"), float(second))
    with pytest.raises(Flood):
        for _ in range(100):
            gossip.fault(NodeId("relay"), 600.0)


def newer(who: Identity, seq: int, record: NodeRecord) -> tuple[Envelope, ...]:
    """What a node of a later version may say: new words, new fields, new kinds."""
    parts = parts_of(replace(record, seq=seq))
    profile = msgspec.to_builtins(parts["profile"])
    profile |= {"hardware": NPU | {"watts": 30}, "wanted_dtype": "int3", "mood": {"today": ["good"]}}
    status = [*msgspec.to_builtins(parts["status"])]
    status[3] = 9  # of a state
    status[5] = [[0, 15, 7, 4, "weights", "and more"], [15, 30, 1, 4, "weights"]]
    beat = [seq, 0, 0, 0, "still", b"here"]
    payloads = {"profile": profile, "status": [*status, 1.5, None], "beat": beat, "weather": {"sun": True}}
    return tuple(who.sign(kind, msgspec.msgpack.encode(payload), MARK) for kind, payload in payloads.items())  # type: ignore[arg-type]


NPU = {
    "device": "npu",
    "device_name": "a later processor",
    "memory_bytes": 2**34,
    "bandwidth_bytes_per_s": 1e11,
    "matmul_flops_per_s": 1e13,
    "cores": 8,
}


def test_words_that_a_newer_node_uses_read_as_unknown_and_are_passed_on_as_they_were_signed(
    gossip: Gossip, bob: Identity, eve: Identity, record_of: Make
) -> None:
    wanted = record_of(bob.node_id, wanted_model=MODEL)
    profile, status, beat, weather = newer(bob, 5, wanted)
    for envelope in (profile, status):
        assert hear(gossip, envelope, bob.node_id).spread
    assert not hear(gossip, weather, bob.node_id).spread
    assert not hear(gossip, beat, bob.node_id).spread, "it is no news beside the status"
    told = gossip.members()[bob.node_id]
    assert told.hardware is not None
    assert (told.hardware.device, told.hardware.device_name) == ("unknown", "a later processor")
    assert told.state == "unknown"
    assert [held.state for held in told.held] == ["unknown", "ready"]
    assert (told.wanted_model, told.wanted_dtype) == (None, None), "an arithmetic that we cannot plan for"
    ask = Gossip(eve, record_of(eve.node_id, 0), MARK).hear_welcome(gossip.welcome(eve.node_id)[0], NodeId("x"), 0.0)
    assert ask is not None
    assert gossip.answer(ask, eve.node_id, 0.0) == [profile, status], "byte for byte"


def test_trips_of_any_bytes_are_read_or_refused() -> None:
    with pytest.raises(ValueError, match="no figures"):
        Trips(1, b"12345678", b"", b"")
    with pytest.raises(ValueError, match="no names"):
        Trips(1, b"", b"", b"1234567")
