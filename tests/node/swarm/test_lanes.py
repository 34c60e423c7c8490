"""Two lanes over one slow connection: what waits for what, what a neighbour makes us hold, and who is given up."""

from __future__ import annotations

import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from node.errors import BadWireData, LinkClosed
from node.swarm.base import Arrival, Lane
from node.swarm.byte_budget import ByteBudget
from node.swarm.heartbeat import PeerClock
from node.swarm.lanes import STALLED_AFTER_S
from node.swarm.muxed_stream import MuxedStream
from node.swarm.stream_link import FIRST_BYTES, WAITING_LIMIT_BYTES, StreamLink, receive_frames
from node.swarm.strict_yamux import UNREAD_LIMIT_BYTES, StrictYamux
from node.swarm.turns import FIRST_PIECE_BYTES, LARGEST_PIECE_BYTES, SMALLEST_PIECE_BYTES, PieceSize, Turns, Urgency
from node.wire.codec import encode
from node.wire.frames import Progress
from node.wire.ids import NodeId
from tests.fakes.slow_road import SlowRoad

ADA, BOB = NodeId("ada"), NodeId("bob")
SESSION = "0" * 32
MIB = 1024 * 1024
DECODE_BODY = bytes(8192)  # one row of 4096 bf16
PROMPT_BODY = bytes(MIB)  # 128 rows


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=MockClock(autojump_threshold=0))


@dataclass
class Carrier:
    peer: NodeId
    nursery: trio.Nursery

    def start(self, work: Callable[..., Awaitable[None]], *args: object) -> bool:
        self.nursery.start_soon(work, *args)
        return True


@dataclass
class Ends:
    """Links from ada to bob, and what arrives there: (lane, position, when)."""

    ours: StrictYamux
    theirs: StrictYamux
    carrier: Carrier
    arrived: list[tuple[Lane, int, float]] = field(default_factory=list)
    over: list[str] = field(default_factory=list)

    async def link(self, lane: Lane, read: bool = True) -> StreamLink:
        stream = MuxedStream(self.ours, await self.ours.open_stream())
        stream.stalled_after_s = STALLED_AFTER_S[lane]
        if lane == "bulk":
            stream.give_way()
        inbound = MuxedStream(self.theirs, cast(Any, await self.theirs.accept_stream()))
        if read:
            self.carrier.nursery.start_soon(self._receive, lane, inbound)
        return StreamLink(lane, stream, self.carrier, self.over.append)

    async def _receive(self, lane: Lane, stream: MuxedStream) -> None:
        send, arrivals = trio.open_memory_channel[Arrival](64)
        self.carrier.nursery.start_soon(receive_frames, stream, ADA, PeerClock(), ByteBudget(256 * MIB), send)
        async for arrival in arrivals:
            assert isinstance(arrival.frame, Progress)
            self.arrived.append((lane, arrival.frame.position, trio.current_time()))


@asynccontextmanager
async def connected(mbit_per_s: float, delay_s: float = 0.0) -> AsyncIterator[Ends]:
    one, other = SlowRoad.pair(mbit_per_s, delay_s)
    async with trio.open_nursery() as nursery:
        muxers = []
        for road in (one, other):
            nursery.start_soon(road.carry)
            muxed = StrictYamux(road, cast(Any, "peer"))
            muxed.unread_limit_bytes = UNREAD_LIMIT_BYTES
            nursery.start_soon(muxed.run)
            await muxed.event_started.wait()
            muxers.append(muxed)
        yield Ends(*muxers, Carrier(BOB, nursery))
        nursery.cancel_scope.cancel()


def test_a_decode_frame_waits_at_most_fifty_ms_for_prompts_on_ten_mbit() -> None:
    """Four chunks of a prompt of 1 MiB take 3.4 s; a step of another request is on its way at once all the same."""

    async def main() -> None:
        async with connected(10) as ends:
            steps, bulk = await ends.link("steps"), await ends.link("bulk")
            async with trio.open_nursery() as prompts:
                for position in range(4):
                    prompts.start_soon(bulk.send, Progress(SESSION, 1, position), PROMPT_BODY)
                await trio.sleep(0.2)
                waited = []
                for number in range(40):
                    asked = trio.current_time()
                    await steps.send(Progress(SESSION, 1, 100 + number), DECODE_BODY)
                    while ("steps", 100 + number) not in {entry[:2] for entry in ends.arrived}:  # noqa: ASYNC110
                        await trio.sleep(0.001)
                    own_s = (len(DECODE_BODY) + 100) * 8 / 10e6
                    waited.append(trio.current_time() - asked - own_s)
                    await trio.sleep(0.03)
                assert max(waited) < 0.05
                assert sum(entry[0] == "bulk" for entry in ends.arrived) < 4, "they were sent beside prompts"
            while len(ends.arrived) < 44:  # noqa: ASYNC110
                await trio.sleep(0.1)
            assert {entry[1] for entry in ends.arrived if entry[0] == "bulk"} == {0, 1, 2, 3}
            assert [entry[1] for entry in ends.arrived if entry[0] == "steps"] == list(range(100, 140))

    run(main)


def test_prompts_use_the_whole_link_when_nothing_else_does() -> None:
    async def main() -> None:
        async with connected(100, delay_s=0.02) as ends:
            bulk = await ends.link("bulk")
            began = trio.current_time()
            for position in range(8):
                await bulk.send(Progress(SESSION, 1, position), PROMPT_BODY)
            while len(ends.arrived) < 8:  # noqa: ASYNC110
                await trio.sleep(0.005)
            assert trio.current_time() - began < 1.4 * 8 * MIB * 8 / 100e6

    run(main)


@pytest.mark.parametrize("lane", ["steps", "bulk"])
def test_a_neighbour_that_reads_nothing_is_given_up_by_a_deadline(lane: Lane) -> None:
    async def main() -> None:
        async with connected(1000) as ends:
            link = await ends.link(lane, read=False)
            began = trio.current_time()
            with pytest.raises(LinkClosed, match="read nothing"):
                await link.send(Progress(SESSION, 1, 0), bytes(8 * MIB))
            assert trio.current_time() - began < STALLED_AFTER_S[lane] + 1
            assert len(ends.over) == 1
            with pytest.raises(LinkClosed):
                await link.send(Progress(SESSION, 1, 1))

    run(main)


def test_no_more_waits_for_one_neighbour_than_the_bound() -> None:
    async def main() -> None:
        async with connected(1) as ends:
            link = await ends.link("bulk")
            refused: list[int] = []

            async def send(position: int) -> None:
                try:
                    await link.send(Progress(SESSION, 1, position), bytes(48 * MIB))
                except LinkClosed:
                    refused.append(position)

            async with trio.open_nursery() as nursery:
                for position in range(8):
                    nursery.start_soon(send, position)
                    await trio.testing.wait_all_tasks_blocked()
                assert 8 * 48 * MIB > WAITING_LIMIT_BYTES
            assert len(refused) == 8
            assert "wait for it already" in ends.over[0]

    run(main)


class Announced:
    """A stream whose frame announces a body that never comes."""

    def __init__(self, body_bytes: int) -> None:
        header = encode(Progress(SESSION, 1, 0))
        self._data = len(header).to_bytes(4, "little") + body_bytes.to_bytes(4, "little") + header
        self.largest = 0

    async def read_exactly(self, n: int) -> bytes:
        taken, self._data = self._data[:n], self._data[n:]
        await trio.lowlevel.checkpoint()
        return taken

    async def read_into(self, target: memoryview) -> None:
        self.largest = len(target)
        await trio.sleep_forever()


def test_a_header_alone_makes_us_allocate_next_to_nothing() -> None:
    async def main() -> None:
        stream = Announced(64 * MIB)
        send, _ = trio.open_memory_channel[Arrival](1)
        with trio.move_on_after(1):
            await receive_frames(cast(Any, stream), ADA, PeerClock(), ByteBudget(128 * MIB), send)
        assert stream.largest == FIRST_BYTES

    run(main)


class Frames:
    """A stream of frames with bodies, as fast as they are read."""

    def __init__(self, body_bytes: int) -> None:
        header = encode(Progress(SESSION, 1, 0))
        self._frame = len(header).to_bytes(4, "little") + body_bytes.to_bytes(4, "little") + header
        self._left = b""

    async def read_exactly(self, n: int) -> bytes:
        await trio.lowlevel.checkpoint()
        self._left = self._left or self._frame
        taken, self._left = self._left[:n], self._left[n:]
        return taken

    async def read_into(self, target: memoryview) -> None:
        await trio.lowlevel.checkpoint()


def test_what_a_neighbour_sends_is_read_no_faster_than_it_is_used_up() -> None:
    async def main() -> None:
        held: list[Arrival] = []
        budget = ByteBudget(4 * MIB)
        send, arrivals = trio.open_memory_channel[Arrival](64)

        async def collect() -> None:
            while True:
                held.append(await arrivals.receive())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive_frames, cast(Any, Frames(MIB)), ADA, PeerClock(), budget, send)
            nursery.start_soon(collect)
            await trio.sleep(1)
            assert len(held) == 3
            assert 3 * MIB <= budget.used_bytes <= 4 * MIB
            view = memoryview(held.pop().body)
            held.clear()
            await trio.sleep(1)
            assert len(held) == 2, "one is still in use"
            del view
            await trio.to_thread.run_sync(held.clear)  # whichever thread lets go of it
            await trio.sleep(1)
            assert len(held) == 3
            nursery.cancel_scope.cancel()
        held.clear()
        gc.collect()
        assert budget.used_bytes == 0

    run(main)


def test_a_frame_larger_than_the_budget_comes_alone() -> None:
    budget = ByteBudget(10)
    assert budget.fits(1000)

    async def main() -> None:
        await budget.take(1000)
        assert not budget.fits(1)
        budget.give(1000)
        assert budget.fits(1)

    run(main)


def test_a_frame_too_large_for_the_wire_is_refused_and_the_link_stays() -> None:
    async def main() -> None:
        async with connected(1000) as ends:
            link = await ends.link("steps")
            with pytest.raises(BadWireData):
                await link.send(Progress(SESSION, 1, 0), bytes(65 * MIB))
            await link.send(Progress(SESSION, 1, 1))
            await trio.sleep(1)
            assert [entry[1] for entry in ends.arrived] == [1]

    run(main)


def test_turns_go_to_the_most_urgent_and_between_equals_in_order() -> None:
    async def main() -> None:
        turns, order = Turns(), list[str]()

        async def take(name: str, urgency: Urgency) -> None:
            async with turns.turn(urgency):
                order.append(name)
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery, turns.turn(Urgency.BULK):
            for name, urgency in (("b1", 2), ("b2", 2), ("s1", 1), ("gone", 1), ("s2", 1), ("ping", 0)):
                if name == "gone":
                    scope = trio.CancelScope(deadline=trio.current_time() + 1)

                    async def give_up(scope: trio.CancelScope = scope) -> None:
                        with scope:
                            await take("gone", Urgency.STEPS)

                    nursery.start_soon(give_up)
                else:
                    nursery.start_soon(take, name, Urgency(urgency))
                await trio.testing.wait_all_tasks_blocked()
            await trio.sleep(2)
        assert order == ["ping", "s1", "s2", "b1", "b2"]
        assert not turns.is_taken

    run(main)


def test_pieces_follow_the_link() -> None:
    pieces = PieceSize()
    assert pieces.piece_bytes == FIRST_PIECE_BYTES
    for _ in range(10):
        pieces.wrote(pieces.piece_bytes, 0.0001)
    assert pieces.piece_bytes == LARGEST_PIECE_BYTES
    pieces.wrote(100, 1.0)
    assert pieces.piece_bytes == LARGEST_PIECE_BYTES, "a small write says nothing of the link"
    for _ in range(10):
        pieces.wrote(pieces.piece_bytes, 0.5)
    assert pieces.piece_bytes == SMALLEST_PIECE_BYTES


def test_reading_a_large_body_costs_little() -> None:
    """Growing a body as it comes copies it a few times at most: a second of CPU would be hundreds."""

    async def main() -> None:
        send, arrivals = trio.open_memory_channel[Arrival](1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                receive_frames, cast(Any, Frames(32 * MIB)), ADA, PeerClock(), ByteBudget(64 * MIB), send
            )
            began = time.thread_time()
            arrival = await arrivals.receive()
            assert time.thread_time() - began < 1.0
            assert len(arrival.body) == 32 * MIB
            nursery.cancel_scope.cancel()

    trio.run(main)
