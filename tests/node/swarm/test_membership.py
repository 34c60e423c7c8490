"""The view of the others: what brings a member in, what takes it out, and what must not bring it back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from node.swarm.base import MemberGone, MemberSeen
from node.swarm.membership import (
    CONNECTED_GRACE_S,
    HEARSAY_LIFE_S,
    HOLD_DOWN_S,
    MEMBER_LIMIT,
    MEMORY_S,
    Membership,
    News,
)
from node.wire.ids import NodeId
from node.wire.parts import Beat, Part
from node.wire.records import NodeRecord
from node.wire.statements import Envelope
from tests.node.swarm.words import parts_of

OWN = NodeId("own")
ADA, BOB = NodeId("ada"), NodeId("bob")
Make = Callable[..., NodeRecord]


def record(node_id: str, seq: int, **fields: Any) -> NodeRecord:
    return NodeRecord(node_id, node_id, seq, 5.0, "here", (), "test", **fields)


def say(view: Membership, kind: str, node_id: str, part: Part, now: float, *, direct: bool) -> list[News]:
    return view.hear(Envelope(kind, node_id, b"", b"s" * 64), part, now, direct=direct)


def hear(view: Membership, told: NodeRecord, now: float, *, direct: bool) -> list[News]:
    """All parts of a record; the news that they lead to together."""
    news: dict[type, News] = {}
    for kind, part in parts_of(told).items():
        for item in say(view, kind, told.id, part, now, direct=direct):
            news[type(item)] = item
    return list(news.values())


def beat(view: Membership, node_id: str, seq: int, of: int, now: float, *, direct: bool) -> list[News]:
    """It is still as it was when it said its parts under the number `of`."""
    return say(view, "beat", node_id, Beat(seq, seq - of, seq - of, seq - of), now, direct=direct)


def newest(records: list[NodeRecord]) -> dict[NodeId, NodeRecord]:
    """The newest record of each node: what any order of hearing them must lead to."""
    best: dict[NodeId, NodeRecord] = {}
    for one in records:
        if one.id not in best or one.seq > best[one.id].seq:
            best[one.id] = one
    return best


def test_a_newer_record_replaces_an_older_one_and_never_the_other_way() -> None:
    view = Membership(OWN)
    assert hear(view, record(ADA, 5), 0.0, direct=False) == [MemberSeen(record(ADA, 5))]
    assert hear(view, record(ADA, 4, sessions=1), 0.0, direct=False) == []
    assert hear(view, record(ADA, 6, sessions=2), 0.0, direct=False) == [MemberSeen(record(ADA, 6, sessions=2))]
    assert view.members() == {ADA: record(ADA, 6, sessions=2)}


def test_a_record_that_only_says_still_here_is_no_news() -> None:
    view = Membership(OWN)
    hear(view, record(ADA, 5), 0.0, direct=True)
    assert hear(view, record(ADA, 6), 1.0, direct=True) == []
    assert beat(view, ADA, 7, 6, 1.0, direct=True) == []
    assert view.seq_of(ADA) == view.members()[ADA].seq == 7


def test_a_beat_prolongs_a_life_and_one_of_a_stranger_makes_nobody_a_member() -> None:
    view = Membership(OWN)
    hear(view, record(ADA, 5), 0.0, direct=False)
    for second in range(1, 5):
        assert beat(view, ADA, 5 + second, 5, float(second), direct=False) == []
        assert view.pass_time(second + 0.5) == []
    assert beat(view, BOB, 5, 3, 4.0, direct=False) == []
    assert set(view.members()) == {ADA}
    assert view.lacks(BOB)
    assert hear(view, record(BOB, 3), 4.1, direct=False) != [], "now we know who it is"
    assert view.members()[BOB] == record(BOB, 5)


def test_a_part_that_was_missed_is_known_to_be_lacking_and_what_is_old_counts_as_old() -> None:
    view = Membership(OWN)
    hear(view, record(ADA, 5, load=1.0), 0.0, direct=True)
    assert not view.lacks(ADA)
    beat(view, ADA, 9, 8, 1.0, direct=True)
    assert view.lacks(ADA)
    assert view.members()[ADA].seq == 5, "how it was then we have not heard"
    hear(view, record(ADA, 8, load=2.0), 1.0, direct=False)
    assert not view.lacks(ADA)
    assert (view.members()[ADA].seq, view.members()[ADA].load) == (9, 2.0)


def test_parts_are_numbered_each_for_itself() -> None:
    view, old, new = Membership(OWN), record(ADA, 5, rtt_ms={}), replace(record(ADA, 9, sessions=3), name="new")
    hear(view, old, 0.0, direct=True)
    say(view, "status", ADA, parts_of(new)["status"], 0.1, direct=True)
    assert (view.members()[ADA].name, view.members()[ADA].sessions) == (ADA, 3)
    say(view, "profile", ADA, parts_of(new)["profile"], 0.2, direct=True)
    assert view.members()[ADA] == new
    assert say(view, "profile", ADA, parts_of(old)["profile"], 0.3, direct=True) == []
    assert view.members()[ADA] == new


def test_round_trips_name_members_that_become_known_later() -> None:
    view = Membership(OWN)
    told = record(ADA, 5, rtt_ms={OWN: 1.21, BOB: 20.1}, mbps={BOB: 90.4}, unreachable=("eve",))
    hear(view, told, 0.0, direct=True)
    assert (view.members()[ADA].rtt_ms, view.members()[ADA].unreachable) == ({OWN: pytest.approx(1.21, rel=0.05)}, ())
    assert view.members()[ADA].reach_of(OWN) is True
    for other in (BOB, "eve"):
        hear(view, record(other, 1), 0.0, direct=True)
    ada = view.members()[ADA]
    assert ada.rtt_ms == {OWN: pytest.approx(1.21, rel=0.05), BOB: pytest.approx(20.1, rel=0.05)}
    assert ada.mbps == {BOB: pytest.approx(90.4, rel=0.05)}
    assert (ada.reach_of("eve"), ada.reach_of("joe")) == (False, None)


def test_invented_members_have_an_end() -> None:
    view = Membership(OWN)
    for number in range(MEMBER_LIMIT + 50):
        hear(view, record(f"n{number}", 1), 0.0, direct=False)
    assert len(view.members()) == MEMBER_LIMIT
    view.pass_time(HEARSAY_LIFE_S)
    assert view.members() == {}
    hear(view, record(ADA, 1), 3.0, direct=True)
    assert view.is_member(ADA)


def test_our_own_record_told_by_others_is_not_taken() -> None:
    view = Membership(OWN)
    assert hear(view, record(OWN, 99), 0.0, direct=False) == []
    assert view.members() == {}


def test_hearsay_lives_shorter_than_what_a_connected_member_says() -> None:
    view = Membership(OWN)
    view.connected(BOB, 0.0)
    hear(view, record(ADA, 1), 0.0, direct=False)
    hear(view, record(BOB, 1), 0.0, direct=True)
    assert view.pass_time(HEARSAY_LIFE_S) == [MemberGone(ADA, ADA, "silent")]
    assert view.pass_time(5.0 + CONNECTED_GRACE_S - 0.1) == [], "the heartbeat would have ended the connection"
    assert view.pass_time(5.0 + CONNECTED_GRACE_S) == [MemberGone(BOB, BOB, "silent")]


def test_a_repeated_record_does_not_prolong_a_life() -> None:
    view = Membership(OWN)
    hear(view, record(ADA, 1), 0.0, direct=False)
    hear(view, record(ADA, 1), 2.0, direct=False)
    assert view.pass_time(HEARSAY_LIFE_S) == [MemberGone(ADA, ADA, "silent")]


def test_a_broken_connection_takes_its_member_out_at_once_and_hearsay_does_not_bring_it_back() -> None:
    view = Membership(OWN)
    view.connected(ADA, 0.0)
    hear(view, record(ADA, 1), 0.0, direct=True)
    assert view.disconnected(ADA, "disconnected", 1.0) == [MemberGone(ADA, ADA, "disconnected")]
    assert hear(view, record(ADA, 2), 1.0 + HOLD_DOWN_S / 2, direct=False) == [], "it was under way when ada died"
    assert hear(view, record(ADA, 2), 1.0 + HOLD_DOWN_S, direct=False) == [], "and it is old now"
    assert hear(view, record(ADA, 3), 1.0 + HOLD_DOWN_S, direct=False) == [MemberSeen(record(ADA, 3))]


def reached_by_bob() -> Membership:
    """Ada and bob are our neighbours, and each other's."""
    view = Membership(OWN)
    for node_id, other in ((ADA, BOB), (BOB, ADA)):
        view.connected(node_id, 0.0)
        hear(view, record(node_id, 1, rtt_ms={other: 1.0}), 0.0, direct=True)
    return view


def test_a_member_that_another_reaches_stays_when_our_own_way_to_it_breaks() -> None:
    view, now = reached_by_bob(), 1.0
    assert view.disconnected(ADA, "silent", now) == []
    while now < 60:
        now += 0.5
        beat(view, BOB, int(now * 10), 1, now, direct=True)
        beat(view, ADA, int(now * 10), 1, now, direct=False)
        assert view.pass_time(now) == []
        assert view.is_member(ADA)


def test_it_is_gone_at_once_when_nobody_reaches_it_any_more_and_soon_when_it_is_not_heard_of() -> None:
    view = reached_by_bob()
    assert view.disconnected(ADA, "disconnected", 1.0) == []
    assert hear(view, record(BOB, 20), 1.2, direct=True) != []
    assert view.pass_time(1.25) == [MemberGone(ADA, ADA, "disconnected")]
    assert beat(view, ADA, 30, 1, 1.3, direct=False) == [], "it was under way when ada died"
    assert not view.is_member(ADA)
    view = reached_by_bob()
    view.disconnected(ADA, "silent", 1.0)
    assert view.pass_time(1.0 + HOLD_DOWN_S + HEARSAY_LIFE_S) == [MemberGone(ADA, ADA, "silent")]
    view = reached_by_bob()
    assert view.disconnected(ADA, "disconnected", 1.0, for_good=True) == [MemberGone(ADA, ADA, "disconnected")]


def test_the_word_of_those_whom_we_do_not_hear_ourselves_keeps_nobody() -> None:
    view = reached_by_bob()
    assert view.disconnected(BOB, "silent", 1.0) == []
    assert view.disconnected(ADA, "silent", 1.0) == [MemberGone(ADA, ADA, "silent")]
    assert view.pass_time(1.1) == [MemberGone(BOB, BOB, "silent")]


def test_a_member_that_connects_again_is_back_at_once() -> None:
    view = Membership(OWN)
    view.connected(ADA, 0.0)
    hear(view, record(ADA, 1), 0.0, direct=True)
    view.disconnected(ADA, "silent", 1.0)
    view.connected(ADA, 1.1)
    assert hear(view, record(ADA, 2), 1.1, direct=True) == [MemberSeen(record(ADA, 2))]


def test_a_goodbye_is_not_undone_by_records_that_still_travel() -> None:
    view = Membership(OWN)
    hear(view, record(ADA, 7), 0.0, direct=True)
    assert view.hear_leave(ADA, 8, 0.1) == [MemberGone(ADA, ADA, "left")]
    for seq in (6, 7, 8):
        assert hear(view, record(ADA, seq), 0.2, direct=False) == []
    assert view.hear_leave(ADA, 8, 0.3) == []
    assert hear(view, record(ADA, 1000), 0.4, direct=False) == [MemberSeen(record(ADA, 1000))]


def test_an_old_goodbye_does_not_take_a_restarted_member_out() -> None:
    view = Membership(OWN)
    hear(view, record(ADA, 1000), 0.0, direct=True)
    assert view.hear_leave(ADA, 8, 0.1) == []
    assert view.is_member(ADA)


def test_the_number_of_a_lost_member_is_forgotten_after_a_minute() -> None:
    view = Membership(OWN)
    hear(view, record(ADA, 7), 0.0, direct=False)
    view.pass_time(3.0)
    assert view.is_remembered(ADA)
    view.pass_time(MEMORY_S)
    assert not view.is_remembered(ADA)


def test_time_in_which_this_process_stood_still_ages_nobody() -> None:
    view = Membership(OWN)
    hear(view, record(ADA, 1), 0.0, direct=False)
    view.forgive(60.0)
    assert view.pass_time(61.0) == []
    assert view.pass_time(60.0 + HEARSAY_LIFE_S) != []


ids = st.sampled_from([OWN, ADA, BOB, NodeId("eve")])
seqs = st.integers(0, 6)
heard = st.tuples(ids, seqs)


@given(st.lists(heard, max_size=30), st.randoms(use_true_random=False))
def test_any_order_and_repetition_of_records_leads_to_the_same_view(
    told: list[tuple[NodeId, int]], random: Any
) -> None:
    records = [record(node_id, seq) for node_id, seq in told if seq > 0]
    wanted = {node_id: r for node_id, r in newest(records).items() if node_id != OWN}
    for _ in range(3):
        shuffled = records * 2
        random.shuffle(shuffled)
        view = Membership(OWN)
        for one in shuffled:
            hear(view, one, 0.0, direct=bool(random.getrandbits(1)))
        assert view.members() == wanted


steps = st.one_of(
    st.tuples(st.just("hear"), ids, seqs, st.booleans()),
    st.tuples(st.just("leave"), ids, seqs),
    st.tuples(st.just("connected"), ids),
    st.tuples(st.just("disconnected"), ids),
    st.tuples(st.just("wait"), st.floats(0, 10)),
)


@given(st.lists(steps, max_size=60))
def test_no_sequence_raises_and_the_news_add_up_to_the_view(taken: list[tuple[Any, ...]]) -> None:
    view, now, told = Membership(OWN), 0.0, set()
    highest: dict[NodeId, int] = {}
    for step in taken:
        match step:
            case ("hear", node_id, seq, direct):
                news = hear(view, record(node_id, seq), now, direct=direct)
            case ("leave", node_id, seq):
                news = view.hear_leave(node_id, seq, now)
            case ("connected", node_id):
                view.connected(node_id, now)
                news = []
            case ("disconnected", node_id):
                news = view.disconnected(node_id, "disconnected", now)
            case ("wait", seconds):
                now += seconds
                news = view.pass_time(now)
            case _:
                raise AssertionError(step)
        for item in news:
            if isinstance(item, MemberSeen):
                assert item.record.seq > highest.get(item.record.id, -1) or now >= MEMORY_S
                highest[item.record.id] = item.record.seq
                told.add(item.record.id)
            else:
                told.remove(item.node_id)
        assert told == set(view.members())
