"""Frames on their way out: lanes, bounds, what is dropped, and a node that ends while it sends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing

from node.pipeline.outbox import HEADER_BYTES, Outbox
from node.swarm.base import LANES, Arrival, Lane
from node.wire.frames import Close, Frame, Progress, Step, StepPart
from node.wire.ids import NodeId
from tests.fakes.swarm import FakeNetwork, open_fake_network

MIB = 1024**2


@dataclass
class Heard:
    """What the outbox told."""

    delivered: list[Arrival] = field(default_factory=list)
    lost: list[tuple[NodeId, str]] = field(default_factory=list)
    lanes: list[Collection[Lane]] = field(default_factory=list)
    """On which each was lost."""
    unsendable_frames: list[Frame] = field(default_factory=list)

    def deliver(self, arrival: Arrival) -> None:
        self.delivered.append(arrival)

    def link_lost(self, peer: NodeId, reason: str, lanes: Collection[Lane] = LANES) -> None:
        self.lost.append((peer, reason))
        self.lanes.append(lanes)

    def unsendable(self, frame: Frame, reason: str) -> None:
        self.unsendable_frames.append(frame)


@dataclass
class Lab:
    network: FakeNetwork
    outbox: Outbox
    heard: Heard

    @property
    def bob(self) -> NodeId:
        return self.network.swarms[1].node_id

    def came(self) -> list[Frame]:
        """Frames that bob has by now, in order."""
        frames: list[Frame] = []
        with suppress(trio.WouldBlock):
            while True:
                frames.append(self.network.swarms[1].arrivals.receive_nowait().frame)
        return frames


@asynccontextmanager
async def open_lab(bytes_per_s: float = float("inf"), queued_bytes: int = 64 * MIB) -> AsyncIterator[Lab]:
    async with open_fake_network("ada", "bob", "cy") as network, trio.open_nursery() as nursery:
        network.bytes_per_s = bytes_per_s
        heard = Heard()
        outbox = Outbox(network.swarms[0], heard, queued_bytes)
        await nursery.start(outbox.run)
        yield Lab(network, outbox, heard)
        nursery.cancel_scope.cancel()


def timed(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Run an async test on a clock that jumps."""

    def run() -> None:
        trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def rows(number: int, count: int = 1) -> Step:
    return Step((StepPart("0" * 32, 1, 1, number, number, count, "nothing", ()),), 1, "float32", 0.0)


@timed
async def test_what_streams_never_waits_behind_a_prompt() -> None:
    """10 Mbit/s, chunks of 1 MiB: 0.84 s each."""
    async with open_lab(bytes_per_s=1.25e6) as lab:
        for number in range(4):
            lab.outbox.post(lab.bob, rows(number, 128), bytes(MIB), "bulk")
        started_s = trio.current_time()
        lab.outbox.post(lab.bob, Progress("1" * 32, 1, 7))
        arrival = await lab.network.swarms[1].arrivals.receive()
        assert isinstance(arrival.frame, Progress)
        assert trio.current_time() - started_s < 0.01
        await trio.sleep(5)
        assert len(lab.came()) == 4


@timed
async def test_frames_of_one_lane_arrive_in_order() -> None:
    async with open_lab() as lab:
        for number in range(20):
            lab.outbox.post(lab.bob, rows(number), b"1234", "bulk")
            lab.outbox.post(lab.bob, Progress("1" * 32, 1, number))
        await trio.sleep(1)
        came = lab.came()
        assert [f.position for f in came if isinstance(f, Progress)] == list(range(20))
        assert [f.parts[0].step for f in came if isinstance(f, Step)] == list(range(20))


@timed
async def test_a_neighbour_that_does_not_read_is_lost_before_its_queue_outgrows_the_bound() -> None:
    async with open_lab(bytes_per_s=1.0, queued_bytes=4 * MIB) as lab:
        for number in range(3):
            lab.outbox.post(lab.bob, rows(number), bytes(MIB), "bulk")
        assert lab.outbox.waiting_bytes(lab.bob) == 3 * (MIB + HEADER_BYTES)
        assert lab.heard.lost == []
        lab.outbox.post(lab.bob, rows(3), bytes(MIB), "steps")
        assert [peer for peer, _ in lab.heard.lost] == [lab.bob]
        assert lab.outbox.waiting_bytes(lab.bob) == 0


@timed
async def test_small_frames_count_too() -> None:
    async with open_lab(bytes_per_s=1.0, queued_bytes=100 * HEADER_BYTES) as lab:
        lab.outbox.post(lab.bob, rows(0), bytes(1024), "steps")
        for number in range(200):
            lab.outbox.post(lab.bob, Progress("1" * 32, 1, number))
        assert lab.heard.lost != []


@timed
async def test_what_waits_for_a_forgotten_neighbour_is_dropped_and_what_comes_after_is_sent() -> None:
    async with open_lab(bytes_per_s=MIB) as lab:
        for number in range(8):
            lab.outbox.post(lab.bob, rows(number), bytes(MIB), "bulk")
        await trio.sleep(0.5)
        lab.outbox.forget(lab.bob)
        lab.outbox.post(lab.bob, rows(100), b"1234", "bulk")
        lab.outbox.post(lab.bob, rows(101), b"1234", "bulk")
        await trio.sleep(20)
        assert [frame.parts[0].step for frame in lab.came() if isinstance(frame, Step)] == [100, 101]


@timed
async def test_a_neighbour_that_is_gone_is_told_once_for_each_lane() -> None:
    async with open_lab() as lab:
        bob = lab.bob
        lab.outbox.post(bob, rows(0), b"1234")
        await trio.sleep(1)
        lab.network.kill(lab.network.swarms[1])
        for number in range(3):
            lab.outbox.post(bob, rows(number), b"1234", "bulk")
            lab.outbox.post(bob, rows(number), b"1234", "steps")
        await trio.sleep(1)
        assert [peer for peer, _ in lab.heard.lost] == [bob, bob]
        assert sorted(lab.heard.lanes) == [("bulk",), ("steps",)]


@timed
async def test_a_neighbour_that_does_not_read_is_told_to_free_its_sequences_when_it_reads_again() -> None:
    async with open_lab(bytes_per_s=MIB, queued_bytes=4 * MIB) as lab:
        lab.outbox.post(lab.bob, rows(0), bytes(3 * MIB))
        for number in range(3):
            lab.outbox.post(lab.bob, Close(f"{number % 2:032x}", number + 1, "done"))
        lab.outbox.post(lab.bob, rows(1), bytes(3 * MIB))
        assert [peer for peer, _ in lab.heard.lost] == [lab.bob]
        await trio.sleep(1)
        assert lab.came() == [Close(f"{1:032x}", 2, "done"), Close(f"{0:032x}", 3, "done")], "each sequence once"


@timed
async def test_closing_frames_never_count_as_too_much() -> None:
    async with open_lab(bytes_per_s=MIB, queued_bytes=20 * HEADER_BYTES) as lab:
        lab.outbox.post(lab.bob, rows(0), bytes(10 * HEADER_BYTES))
        for number in range(50):
            lab.outbox.post(lab.bob, Close(f"{number:032x}", 1, "done"))
        await trio.sleep(10)
        assert lab.heard.lost == []
        assert sum(isinstance(frame, Close) for frame in lab.came()) == 50


@timed
async def test_a_closing_frame_outlives_a_link_that_cannot_be_had_for_a_while() -> None:
    async with open_lab() as lab:
        ada, bob, _ = lab.network.swarms
        lab.network.partition(ada, bob)
        lab.outbox.post(lab.bob, rows(0), b"1234")
        lab.outbox.post(lab.bob, Close("0" * 32, 1, "done"))
        await trio.sleep(5)
        assert len(lab.heard.lost) == 1, "once, however often it is tried"
        lab.network.heal(ada, bob)
        await trio.sleep(10)
        assert lab.came() == [Close("0" * 32, 1, "done")]


@timed
async def test_a_lane_that_breaks_takes_nothing_of_the_other_with_it() -> None:
    async with open_lab(bytes_per_s=MIB) as lab:
        lab.outbox.post(lab.bob, rows(0), bytes(MIB), "bulk")
        lab.outbox.post(lab.bob, rows(1), bytes(MIB), "steps")
        await trio.sleep(0.5)
        lab.outbox.forget(lab.bob, ("bulk",))
        await trio.sleep(5)
        assert [frame.parts[0].step for frame in lab.came() if isinstance(frame, Step)] == [1]


@timed
async def test_frames_to_ourselves_take_no_link() -> None:
    async with open_lab() as lab:
        lab.outbox.post(lab.network.swarms[0].node_id, Close("0" * 32, 1, ""))
        assert [arrival.frame for arrival in lab.heard.delivered] == [Close("0" * 32, 1, "")]


@pytest.mark.parametrize("ticks", range(6))
def test_a_frame_that_is_posted_while_the_node_ends_is_dropped(ticks: int) -> None:
    async def run() -> None:
        async with open_fake_network("ada", "bob", "cy") as network:
            ada, bob, cy = network.swarms
            outbox = Outbox(ada, Heard())
            async with trio.open_nursery() as nursery:
                await nursery.start(outbox.run)
                outbox.post(bob.node_id, Close("0" * 32, 1, ""))  # from now on a task of the outbox's ends with it
                try:
                    await trio.testing.wait_all_tasks_blocked()
                    nursery.cancel_scope.cancel()
                    await trio.sleep_forever()
                finally:
                    with trio.CancelScope(shield=True):
                        for _ in range(ticks):
                            await trio.lowlevel.checkpoint()
                    outbox.post(cy.node_id, Close("1" * 32, 1, ""))
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.WouldBlock):
                cy.arrivals.receive_nowait()

    trio.run(run)
