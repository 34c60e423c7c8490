"""A lane of a link over one stream per direction: frames go out in order and whole, and come in through their own task.

On the stream a frame is what `node.wire.frames` says: u32 header length, u32 body length, header, body. Knows streams
as `FrameStream` alone: whether they run over libp2p or anything else is said in `lanes`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from node.errors import BadWireData, LinkClosed
from node.swarm.base import Arrival, Lane
from node.swarm.byte_budget import ByteBudget, CountedBody
from node.swarm.frame_stream import FrameStream
from node.swarm.heartbeat import PeerClock
from node.wire.codec import decode, encode
from node.wire.frames import BODY_LIMIT_BYTES, HEADER_LIMIT_BYTES, Buffer, Frame
from node.wire.ids import NodeId, short_id

LENGTHS_BYTES = 8

LONGEST_WIRE_MS = 1e6
"""A link that takes longer has failed long before; a stamp that says so is wrong, and is not passed on as it is."""

FIRST_BYTES = 64 * 1024
"""Of a body: allocated on the word of its header. More as it comes, never more than has come already."""

FRAME_BYTES = 1024
"""What a frame is counted with beside its body, so that many without one are not for nothing."""

WAITING_LIMIT_BYTES = 128 * 1024 * 1024
"""Of frames that wait to be sent on one lane: twice the largest. A neighbour that lets more pile up is given up."""


class Carrier(Protocol):
    """The connection that a link runs on."""

    peer: NodeId

    def start(self, work: Callable[..., Awaitable[None]], *args: object) -> bool:
        """Run `work`, which must not raise, for as long as the connection lives; False where it ends already."""


class StreamLink:
    """Our sending half; implements `node.swarm.base.Link`. Lives in the nursery of its connection.

    Resource handling: owns its stream, and resets it when the link is closed or fails, so that the other end stops
    reading. `over` is called once, at that moment, with the reason.
    """

    def __init__(self, lane: Lane, stream: FrameStream, connection: Carrier, over: Callable[[str], None]) -> None:
        self.peer: NodeId = connection.peer
        self.lane: Lane = lane
        self._stream, self.connection, self._over = stream, connection, over
        self._turn = trio.Semaphore(1)  # not a Lock: the task that finishes a frame may not be the one that began it
        self.used_s = trio.current_time()
        """When the last frame was asked for, by trio's clock."""
        self._waiting_bytes = 0
        self._closed_because: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether nothing has failed yet."""
        return self._closed_because is None

    def close(self, reason: str) -> None:
        """Nothing more is sent; those who wait are told."""
        if self._closed_because is None:
            self._closed_because = reason
            self.connection.start(self._stream.close)
            self._over(reason)

    def retire(self) -> None:
        """Close it without a word: nothing is under way, and another link is used from now on."""
        if self._closed_because is None:
            self._closed_because = "another link is used"
            self.connection.start(self._stream.close)

    async def send(self, frame: Frame, body: Buffer = b"") -> None:
        """See `node.swarm.base.Link.send`.

        When the caller is cancelled half way, the rest is still sent, by the connection: half a frame would end the
        link, and with it every other session that uses it.
        """
        outgoing = _Outgoing(frame, body)
        self.used_s = trio.current_time()
        if self._waiting_bytes and self._waiting_bytes + outgoing.length_bytes > WAITING_LIMIT_BYTES:
            self.close(f"{self._waiting_bytes} bytes wait for it already")
        self._waiting_bytes += outgoing.length_bytes
        try:
            await self._turn.acquire()
        finally:
            self._waiting_bytes -= outgoing.length_bytes
        try:
            await self._write(outgoing)
        except trio.Cancelled:
            if not self.connection.start(self._finish, outgoing):
                self._turn.release()
            raise
        except BaseException:
            self._turn.release()
            raise
        self._turn.release()

    async def _write(self, outgoing: _Outgoing) -> None:
        while piece := outgoing.rest():
            if self._closed_because is not None:
                raise LinkClosed(self.peer, self._closed_because)
            try:
                outgoing.wrote(await self._stream.write_some(piece))
            except Exception as error:
                self.close(str(error) or type(error).__name__)
                raise LinkClosed(self.peer, self._closed_because or "") from error
            await trio.lowlevel.checkpoint()

    async def _finish(self, outgoing: _Outgoing) -> None:
        try:
            await self._write(outgoing)
        except LinkClosed:
            return
        finally:
            self._turn.release()


class _Outgoing:
    """A frame as it goes over the wire, and how much of it has gone."""

    def __init__(self, frame: Frame, body: Buffer) -> None:
        """Raises BadWireData: it is larger than a receiver takes."""
        header = encode(frame)
        rest = memoryview(body).cast("B")
        if len(header) > HEADER_LIMIT_BYTES or len(rest) > BODY_LIMIT_BYTES:
            raise BadWireData("outgoing frame", f"header {len(header)} bytes, body {len(rest)} bytes: too large")
        lengths = len(header).to_bytes(4, "little") + len(rest).to_bytes(4, "little")
        room = max(0, FIRST_BYTES - len(lengths) - len(header))
        self.length_bytes = len(lengths) + len(header) + len(rest)
        # the beginning in one piece: a small frame is one write
        self._parts = [part for part in (memoryview(lengths + header + bytes(rest[:room])), rest[room:]) if part]

    def rest(self) -> memoryview | None:
        """What is to be written next; None when all is."""
        return self._parts[0] if self._parts else None

    def wrote(self, count: int) -> None:
        """So many bytes of it."""
        self._parts[0] = self._parts[0][count:]
        if not self._parts[0]:
            del self._parts[0]


async def receive_frames(
    stream: FrameStream,
    peer: NodeId,
    clock: PeerClock,
    held: ByteBudget,
    arrivals: trio.MemorySendChannel[Arrival],
) -> None:
    """Read a neighbour's frames until it closes the lane, no faster than what it has sent before is used up.

    Raises:
        BadWireData: a frame too large or misshapen; nothing is allocated for a length beyond the limits.
        EOFError: the lane ended within a frame.
    """
    where = f"frame of {short_id(peer)}"
    while True:
        try:
            lengths = await stream.read_exactly(LENGTHS_BYTES)
        except EOFError:
            return
        header_bytes, body_bytes = int.from_bytes(lengths[:4], "little"), int.from_bytes(lengths[4:], "little")
        if header_bytes > HEADER_LIMIT_BYTES or body_bytes > BODY_LIMIT_BYTES:
            raise BadWireData(where, f"{header_bytes} + {body_bytes} bytes announced")
        frame: Frame = decode(
            await stream.read_exactly(header_bytes),
            Frame,  # type: ignore[arg-type]  # msgspec takes a union, typing has no name for it
            where=where,
            limit_bytes=HEADER_LIMIT_BYTES,
        )
        counted_bytes = FRAME_BYTES + header_bytes + body_bytes
        await held.take(counted_bytes)
        body = CountedBody(held, counted_bytes)
        await _fill(stream, body, body_bytes)
        received_s = time.perf_counter()
        wire_ms = _wire_ms(clock, frame, received_s)
        await arrivals.send(Arrival(peer, frame, body, received_s, wire_ms))
        del body, frame  # or the last one would be counted while we wait for the next


async def _fill(stream: FrameStream, body: CountedBody, length: int) -> None:
    """Read so many bytes into it. It grows with what comes: a header's word alone costs `FIRST_BYTES`."""
    while (have := len(body)) < length:
        body.extend(bytes(min(length - have, max(FIRST_BYTES, have))))
        with memoryview(body) as view, view[have:] as target:
            await stream.read_into(target)


def _wire_ms(clock: PeerClock, frame: Frame, received_s: float) -> float:
    """How long a stamped frame was under way, by the offset that heartbeats measured; 0 where that is not known.

    Finite and 0 to `LONGEST_WIRE_MS`, whatever stamps the neighbour sends: frames and events of ours tell it on.
    """
    sent_s = getattr(frame, "sent_s", None)
    if sent_s is None or not math.isfinite(sent_s):
        return 0.0
    ours_s = clock.to_ours(sent_s)
    return 0.0 if ours_s is None else min(LONGEST_WIRE_MS, max(0.0, (received_s - ours_s) * 1000))
