"""What the log tells of whom a node has met."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from node.arrival import SETTLES_S, SILENT_S, tell_arrival
from node.journal.log import Journal
from node.wire.events import NodeGone, NodeSeen
from node.wire.ids import NodeId
from tests.fakes.swarms import DESK, LOFT, STUDIO, record


def told(
    caplog: pytest.LogCaptureFixture, story: Callable[[Journal], Awaitable[None]], *, joins: bool = True
) -> list[str]:
    """What is logged while the story of the swarm runs."""

    async def main() -> None:
        journal = Journal(DESK)
        journal.append(NodeSeen(record(DESK)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell_arrival, journal, joins)
            await story(journal)
            await trio.sleep(SETTLES_S * 2)
            nursery.cancel_scope.cancel()

    with caplog.at_level(logging.INFO, "node.arrival"):
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return caplog.messages


def test_a_node_that_joins_says_whose_swarm_it_is_in_and_how_many_there_are(caplog: pytest.LogCaptureFixture) -> None:
    async def story(journal: Journal) -> None:
        await trio.sleep(3)
        journal.append(NodeSeen(record(STUDIO)))
        journal.append(NodeSeen(record(LOFT)))

    assert told(caplog, story) == ["joined the swarm of loft, studio: 3 members"]


def test_later_ones_are_told_as_they_come_and_nobody_twice(caplog: pytest.LogCaptureFixture) -> None:
    async def story(journal: Journal) -> None:
        journal.append(NodeSeen(record(STUDIO)))
        await trio.sleep(5)
        for _ in range(3):
            journal.append(NodeSeen(record(STUDIO)))
            await trio.sleep(1)
        journal.append(NodeSeen(record(LOFT)))
        await trio.sleep(1)
        journal.append(NodeGone(NodeId(LOFT), "loft", "left"))

    assert told(caplog, story, joins=False) == ["together with studio: 2 members", "loft has come: 3 members"]


def test_a_node_that_meets_nobody_says_so_once_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async def story(journal: Journal) -> None:
        await trio.sleep(SILENT_S * 3)
        journal.append(NodeSeen(record(STUDIO)))

    silent, joined = told(caplog, story)
    assert "no member of the swarm has answered yet" in silent
    assert joined == "joined the swarm of studio: 2 members"
