"""How a link reads a neighbour's frames and their stamps; no sockets."""

from __future__ import annotations

import json
import math
import time
from typing import Any, cast

import pytest
import trio

from node.swarm.base import Arrival
from node.swarm.byte_budget import ByteBudget
from node.swarm.heartbeat import PeerClock
from node.swarm.stream_link import LONGEST_WIRE_MS, receive_frames
from node.wire.codec import encode
from node.wire.control import Pong
from node.wire.ids import NodeId
from tests.fakes.frames import step_frame


class Bytes:
    """A stream that holds these bytes and ends."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def read_exactly(self, n: int) -> bytes:
        await trio.lowlevel.checkpoint()
        if len(self._data) < n:
            raise EOFError
        taken, self._data = self._data[:n], self._data[n:]
        return taken

    async def read_into(self, target: memoryview) -> None:
        target[:] = await self.read_exactly(len(target))


def arrived(sent_s: float) -> Arrival:
    """What a frame with that stamp arrives as."""
    clock = PeerClock()
    clock.pong(Pong(clock.ping(10.0), 10.0, 10.0), 10.001)
    header = encode(step_frame("0" * 32, 0, sent_s))

    async def main() -> Arrival:
        send, receive = trio.open_memory_channel[Arrival](1)
        stream = Bytes(len(header).to_bytes(4, "little") + bytes(4) + header)
        await receive_frames(cast(Any, stream), NodeId("hostile"), clock, ByteBudget(1000), send)
        return receive.receive_nowait()

    return trio.run(main)


@pytest.mark.parametrize("sent_s", [-1e7, -1e308, 1e308, math.inf, -math.inf, math.nan])
def test_no_stamp_of_a_neighbour_makes_a_time_that_cannot_be(sent_s: float) -> None:
    wire_ms = arrived(sent_s).wire_ms
    assert 0 <= wire_ms <= LONGEST_WIRE_MS
    json.dumps(wire_ms, allow_nan=False)


def test_an_honest_stamp_gives_the_time_on_the_way() -> None:
    assert arrived(time.perf_counter() - 0.5).wire_ms == pytest.approx(500, abs=100)


def test_a_clock_without_end_is_not_taken() -> None:
    clock = PeerClock()
    clock.pong(Pong(clock.ping(1.0), 1e308, 1e308), 1.01)
    assert clock.to_ours(1.0) is None
