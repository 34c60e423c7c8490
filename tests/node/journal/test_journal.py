"""The log and the state that it adds up to."""

from __future__ import annotations

import time

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from node.journal.apply import apply
from node.journal.log import KEPT_BYTES, KEPT_EVENTS, UNREACHABLE_TOLD, Gap, Journal
from node.journal.state import KEPT_NOTICES, KEPT_REQUESTS, State
from node.wire.events import (
    Event,
    ModelProgress,
    NodeAvoided,
    NodeGone,
    NodeSeen,
    Notice,
    Numbered,
    PlanAdopted,
    PlanImpossible,
    RequestFailed,
    RequestFinished,
    RequestProgress,
    RequestStarted,
    RequestWaiting,
)
from node.wire.frames import Hop
from node.wire.ids import NodeId, RequestId
from node.wire.plans import Override, PlanSettings
from node.wire.records import HeldRange
from tests.node.plan.live.test_decide import plan_for, record

WEIGHTS = plan_for("a").weights


def journal_from_zero() -> Journal:
    return Journal(NodeId("a"), lambda: 0.0)


ids = st.sampled_from(["a", "b", "c"])
requests = st.sampled_from([RequestId("r1"), RequestId("r2")])
events = st.one_of(
    ids.map(lambda node: NodeSeen(record(node))),
    ids.map(lambda node: NodeGone(NodeId(node), node, "silent")),
    ids.map(lambda node: PlanAdopted(plan_for(node))),
    st.text(max_size=9).map(PlanImpossible),
    st.text(max_size=9).map(lambda text: Notice("info", text)),
    st.just(ModelProgress("m", "fetch", 1, 2)),
    requests.map(lambda request: RequestWaiting(request, 3, "KV room")),
    st.builds(NodeAvoided, ids.map(NodeId), ids, st.text(max_size=9), st.sampled_from([0.0, 10.0])),
    requests.map(lambda request: RequestStarted(request, 3, ())),
    requests.map(lambda request: RequestProgress(request, 3, (), 0.5)),
    requests.map(lambda request: RequestFinished(request, 3, "stop", 1.0, 2.0, (), 0.5)),
    requests.map(lambda request: RequestFailed(request, "lost")),
)


@given(st.lists(events, max_size=40))
def test_any_sequence_of_events_adds_up_and_survives_the_way_through_json(sequence: list[Event]) -> None:
    journal = journal_from_zero()
    for event in sequence:
        journal.append(event)
    replayed = State(self_id=NodeId("a"))
    for numbered in journal.after(0):
        line = msgspec.json.encode(numbered)
        replayed = apply(replayed, msgspec.json.decode(line, type=Numbered))
        assert apply(replayed, numbered) == replayed, "an event that is in already changes nothing"
    assert msgspec.json.decode(msgspec.json.encode(journal.state), type=State) == replayed == journal.state


def test_a_reader_of_a_former_life_finds_a_gap() -> None:
    former, present = Journal(NodeId("a"), lambda: 1000.0), Journal(NodeId("a"), lambda: 1001.0)
    for journal in (former, present):
        for _ in range(5):
            journal.append(Notice("info", ""))
    with pytest.raises(Gap):
        present.after(former.state.seq)


def test_lists_in_the_state_are_bounded() -> None:
    journal = journal_from_zero()
    for index in range(KEPT_REQUESTS + 20):
        journal.append(RequestStarted(RequestId(str(index)), 1, ()))
        journal.append(Notice("info", str(index)))
    assert len(journal.state.requests) == KEPT_REQUESTS
    assert len(journal.state.notices) == KEPT_NOTICES
    assert journal.state.requests[-1].request_id == str(KEPT_REQUESTS + 19)


def test_a_request_that_takes_another_chain_stays_one_request() -> None:
    journal = journal_from_zero()
    for node in ("a", "b"):
        journal.append(RequestStarted(RequestId("r"), 3, (Hop(node, 0, 4),)))
    assert [(view.request_id, view.chain) for view in journal.state.requests] == [("r", (Hop("b", 0, 4),))]


def test_a_request_that_waits_is_seen_with_what_for_until_it_has_a_chain() -> None:
    journal = journal_from_zero()
    told: list[tuple[str, int]] = []
    for event in (
        RequestWaiting(RequestId("r"), 3, "KV room for 70 tokens"),
        RequestWaiting(RequestId("r"), 3, "layers 3–5"),
        RequestStarted(RequestId("r"), 3, (Hop("a", 0, 4),)),
        RequestWaiting(RequestId("r"), 3, "another chance of node a"),
        RequestFailed(RequestId("r"), "lost"),
    ):
        journal.append(event)
        (view,) = journal.state.requests
        told.append((view.waits_for, len(view.chain)))
    assert told == [("KV room for 70 tokens", 0), ("layers 3–5", 0), ("", 1), ("another chance of node a", 1), ("", 1)]


def test_nodes_that_are_avoided_are_in_the_state_until_an_answer_comes_through_them() -> None:
    now_s = 0.0
    journal = Journal(NodeId("a"), lambda: now_s)
    for at_s, node, for_s in ((0.0, "b", 10.0), (5.0, "c", 10.0), (7.0, "b", 20.0)):
        now_s = at_s
        journal.append(NodeAvoided(NodeId(node), node, "it said nothing", for_s))
    assert [(each.name, each.until_s) for each in journal.state.avoided] == [("c", 15.0), ("b", 27.0)]
    now_s = 16.0
    journal.append(NodeAvoided(NodeId("b"), "b", "", 0.0))
    assert journal.state.avoided == ()


def test_a_reader_that_fell_behind_is_told_to_start_anew() -> None:
    journal = journal_from_zero()
    for _ in range(KEPT_EVENTS + 10):
        journal.append(Notice("info", ""))
    with pytest.raises(Gap, match="/v1/state"):
        journal.after(3)
    with pytest.raises(Gap):
        journal.after(KEPT_EVENTS + 11)
    assert [numbered.seq for numbered in journal.after(KEPT_EVENTS + 8)] == [KEPT_EVENTS + 9, KEPT_EVENTS + 10]


def test_a_reader_waits_for_news_and_is_woken_at_once() -> None:
    async def run() -> None:
        journal = journal_from_zero()
        async with trio.open_nursery() as nursery:

            async def later() -> None:
                await trio.sleep(3)
                journal.append(Notice("info", "now"))

            nursery.start_soon(later)
            (numbered,) = await journal.next_after(0, 10)
            assert (numbered.seq, trio.current_time()) == (1, pytest.approx(3, abs=0.01))
        assert await journal.next_after(1, 5) == []

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


def test_layers_without_a_ready_node_are_named() -> None:
    journal = journal_from_zero()
    assert journal.state.uncovered() == ()
    journal.append(PlanAdopted(plan_for("a", "b")))
    assert journal.state.uncovered() == ((0, 30),)
    journal.append(NodeSeen(record("a", held=(HeldRange(0, 15, "ready", 4, WEIGHTS),))))
    journal.append(NodeSeen(record("b", held=(HeldRange(15, 30, "loading", 4, WEIGHTS),))))
    assert journal.state.uncovered() == ((15, 30),)
    journal.append(NodeSeen(record("b", held=(HeldRange(15, 30, "ready", 4, WEIGHTS),))))
    assert journal.state.uncovered() == ()
    journal.append(NodeGone(NodeId("a"), "a", "disconnected"))
    assert journal.state.uncovered() == ((0, 15),)


def test_what_an_excluded_node_holds_serves_nobody() -> None:
    journal = journal_from_zero()
    settings = PlanSettings(overrides=(Override("a", duty="exclude"),))
    journal.append(PlanAdopted(replace(plan_for("a", "b"), settings=settings)))
    journal.append(NodeSeen(record("a", held=(HeldRange(0, 30, "ready", 4, WEIGHTS),))))
    assert journal.state.uncovered() == ((0, 30),)
    journal.append(NodeSeen(record("b", held=(HeldRange(0, 30, "ready", 3, "another model"),))))
    assert journal.state.uncovered() == ((0, 30),), "that range is of another model"


def test_a_notice_of_any_length_reaches_the_screens() -> None:
    journal = journal_from_zero()
    numbered = journal.append(Notice.of("error", "missing: " + "a.weight, " * 10_000))
    assert msgspec.json.decode(msgspec.json.encode(numbered), type=Numbered) == numbered
    assert msgspec.json.decode(msgspec.json.encode(journal.state), type=State) == journal.state


def test_the_log_is_bounded_in_bytes_as_it_is_sent() -> None:
    journal = journal_from_zero()
    for _ in range(200):
        journal.append(Notice("info", "x" * 2048))
        journal.append(PlanAdopted(plan_for(*(f"node {number}" for number in range(30)))))
    for large in range(2000):
        journal.append(
            NodeSeen(record("a", problem="p" * 500, addresses=tuple("q" * 250 for _ in range(16)), seq=large))
        )
    kept = journal.after(journal.after(journal.state.seq - 10)[0].seq - 1)
    assert [numbered.seq for numbered in kept] == list(range(journal.state.seq - 9, journal.state.seq + 1))
    assert journal.kept_bytes <= KEPT_BYTES
    with pytest.raises(Gap) as gap:
        journal.after(0)
    oldest = int(str(gap.value).split("oldest kept is ")[1].split(";")[0])
    whole = journal.after(oldest - 1)
    assert sum(len(msgspec.json.encode(numbered)) for numbered in whole) == journal.kept_bytes > KEPT_BYTES * 0.99


def test_one_event_larger_than_the_log_is_kept_until_the_next() -> None:
    journal = journal_from_zero()
    giant = Notice("info", "x" * (KEPT_BYTES + 1))
    for event in (Notice("info", "before"), giant):
        journal.append(event)
    assert [numbered.event for numbered in journal.after(1)] == [giant]
    journal.append(Notice("info", "after"))
    assert [numbered.seq for numbered in journal.after(2)] == [3]


def test_a_reader_finds_its_place_without_walking_through_the_log() -> None:
    """Each of many readers asks after each event."""
    journal = journal_from_zero()
    for _ in range(KEPT_EVENTS):
        journal.append(Notice("info", ""))
    started_s = time.thread_time()
    for _ in range(2000):
        assert len(journal.after(journal.state.seq - 1)) == 1
    assert (time.thread_time() - started_s) / 2000 < 20e-6


def test_what_screens_are_told_of_a_swarm_of_256_is_small() -> None:
    ids = [f"12D3KooW{number:044}" for number in range(256)]
    journal = Journal(NodeId(ids[0]), lambda: 0.0)
    journal.append(PlanAdopted(plan_for(*ids[:30])))
    for each in ids:
        others = [other for other in ids if other != each]
        trips = {"rtt_ms": dict.fromkeys(others, 1.21), "mbps": dict.fromkeys(others[:9], 90.0)}
        held = (HeldRange(0, 15, "ready", 4, WEIGHTS),)
        journal.append(NodeSeen(record(each, held=held, unreachable=tuple(others), **trips)))
    assert len(msgspec.json.encode(journal.state)) < 700_000
    assert len(journal.state.nodes[NodeId(ids[0])].record.rtt_ms) == 255, "from here to everyone"
    assert journal.state.nodes[NodeId(ids[1])].record.rtt_ms == {ids[0]: 1.21}
    assert len(journal.state.nodes[NodeId(ids[1])].record.unreachable) == UNREACHABLE_TOLD


def test_a_notice_tells_when_it_was() -> None:
    journal = Journal(NodeId("a"), lambda: 1_700_000_000.0)
    journal.append(Notice("info", "now"))
    assert journal.state.notices == (Notice("info", "now", 1_700_000_000.0),)
