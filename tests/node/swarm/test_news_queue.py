"""What a slow reader finds: all that must be undone, of everything else the newest, and never more than that."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from node.swarm.base import LinkLost, MemberGone, MemberSeen, Misbehaved, PlanHeard, SwarmNews
from node.swarm.news_queue import NewsQueue
from node.wire.ids import NodeId
from node.wire.models import ModelFacts, ModelRef
from node.wire.plans import Plan
from node.wire.records import NodeRecord

ADA, BOB = NodeId("ada"), NodeId("bob")


def seen(node_id: str, seq: int) -> MemberSeen:
    return MemberSeen(NodeRecord(node_id, node_id, seq, 5.0, "here", (), "test"))


def gone(node_id: NodeId) -> MemberGone:
    return MemberGone(node_id, node_id, "disconnected")


def plan(epoch: int) -> PlanHeard:
    model, facts = ModelRef("m", "default", "0"), ModelFacts(30, 1, 1, 1, 1, 1, 1, 1)
    return PlanHeard(Plan(epoch, ADA, model, "float32", facts, ()))


def read(queue: NewsQueue) -> list[SwarmNews]:
    found = []
    while True:
        try:
            found.append(queue.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            return found


def test_news_are_read_in_order_and_a_reader_that_keeps_up_misses_nothing() -> None:
    queue = NewsQueue()
    for item in (seen(ADA, 1), plan(1), gone(ADA), seen(ADA, 2), LinkLost(ADA, "broke")):
        queue.put(item)
        assert read(queue) == [item]


def test_a_slow_reader_finds_the_newest_and_what_must_be_undone() -> None:
    queue = NewsQueue()
    for item in (
        seen(ADA, 1),
        plan(1),
        seen(BOB, 1),
        LinkLost(BOB, "one", ("steps",)),
        LinkLost(BOB, "other", ("bulk",)),
        gone(ADA),
        plan(2),
        seen(ADA, 3),
        Misbehaved(BOB, "bob shouts"),
    ):
        queue.put(item)
    assert read(queue) == [
        gone(ADA),
        seen(ADA, 3),
        plan(2),
        Misbehaved(BOB, "bob shouts"),
        LinkLost(BOB, "other"),
        seen(BOB, 1),
    ]


steps = st.one_of(
    st.builds(seen, st.sampled_from([ADA, BOB]), st.integers(1, 9)),
    st.builds(gone, st.sampled_from([ADA, BOB])),
    st.builds(LinkLost, st.sampled_from([ADA, BOB]), st.just("broke")),
    st.builds(plan, st.integers(1, 9)),
)


@given(st.lists(steps, max_size=60))
def test_any_news_are_bounded_and_add_up_to_the_same_view(told: list[SwarmNews]) -> None:
    queue, wanted = NewsQueue(), dict[str, NodeRecord]()
    for item in told:
        queue.put(item)
        if isinstance(item, MemberSeen):
            wanted[item.record.id] = item.record
        elif isinstance(item, MemberGone):
            wanted.pop(item.node_id, None)
    read_of = read(queue)
    assert len(read_of) <= 2 * 3 + 1
    view = dict[str, NodeRecord]()
    for item in read_of:
        if isinstance(item, MemberSeen):
            view[item.record.id] = item.record
        elif isinstance(item, MemberGone):
            view.pop(item.node_id, None)
    assert view == wanted
    assert {item.node_id for item in told if isinstance(item, MemberGone)} == {
        item.node_id for item in read_of if isinstance(item, MemberGone)
    }


def run(main: Callable[[], object]) -> None:
    trio.run(main, clock=MockClock(autojump_threshold=0))  # type: ignore[arg-type]


def test_a_reader_is_woken_and_told_of_the_end() -> None:
    async def main() -> None:
        queue = NewsQueue()
        async with trio.open_nursery() as nursery:

            async def tell() -> None:
                await trio.sleep(1)
                queue.put(seen(ADA, 1))
                await trio.sleep(1)
                queue.close()
                queue.put(seen(ADA, 2))

            nursery.start_soon(tell)
            assert await queue.receive() == seen(ADA, 1)
            assert trio.current_time() == pytest.approx(1.0, abs=0.1)
            assert [item async for item in queue] == []

    run(main)
