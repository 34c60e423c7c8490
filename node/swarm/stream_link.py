"""A link over one libp2p stream per direction: frames go out in order and whole, and come in through their own task.

On the stream a frame is what `node.wire.frames` says: u32 header length, u32 body length, header, body.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import trio

from node.errors import BadWireData, LinkClosed
from node.swarm.base import Arrival, Buffer
from node.swarm.connection import Connection
from node.swarm.muxed_stream import PIECE_BYTES, MuxedStream
from node.wire.codec import decode, encode
from node.wire.frames import BODY_LIMIT_BYTES, HEADER_LIMIT_BYTES, Frame
from node.wire.ids import NodeId, short_id

LENGTHS_BYTES = 8

LONGEST_WIRE_MS = 1e6
"""A link that takes longer has failed long before; a stamp that says so is wrong, and is not passed on as it is."""


class StreamLink:
    """Our sending half; implements `node.swarm.base.Link`. Lives in the nursery of its connection.

    Resource handling: owns its stream, and resets it when the link is closed or fails, so that the other end stops
    reading. `over` is called once, at that moment, with the reason.
    """

    def __init__(self, stream: MuxedStream, connection: Connection, over: Callable[[str], None]) -> None:
        self.peer: NodeId = connection.peer
        self._stream, self.connection, self._over = stream, connection, over
        self._turn = trio.Semaphore(1)  # not a Lock: the task that finishes a frame may not be the one that began it
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

    async def send(self, frame: Frame, body: Buffer = b"") -> None:
        """See `node.swarm.base.Link.send`.

        When the caller is cancelled half way, the rest is still sent, by the connection: half a frame would end the
        link, and with it every other session that uses it.
        """
        pieces = _pieces(frame, body)
        await self._turn.acquire()
        try:
            await self._write(pieces)
        except trio.Cancelled:
            if not self.connection.start(self._finish, pieces):
                self._turn.release()
            raise
        except BaseException:
            self._turn.release()
            raise
        self._turn.release()

    async def _write(self, pieces: Iterator[bytes]) -> None:
        for piece in pieces:
            if self._closed_because is not None:
                raise LinkClosed(self.peer, self._closed_because)
            try:
                await self._stream.write(piece)
            except Exception as error:
                # yamux gives up when the peer has read nothing for 5 s; all else means that the connection is gone
                self.close(str(error) or type(error).__name__)
                raise LinkClosed(self.peer, self._closed_because or "") from error
            await trio.lowlevel.checkpoint()

    async def _finish(self, pieces: Iterator[bytes]) -> None:
        try:
            await self._write(pieces)
        except LinkClosed:
            return
        finally:
            self._turn.release()


def _pieces(frame: Frame, body: Buffer) -> Iterator[bytes]:
    """A frame as it goes over the wire, cut where other streams of the connection may get their turn.

    Raises:
        BadWireData: it is larger than a receiver takes.
    """
    header = encode(frame)
    rest = memoryview(body).cast("B")
    if len(header) > HEADER_LIMIT_BYTES or len(rest) > BODY_LIMIT_BYTES:
        raise BadWireData("outgoing frame", f"header {len(header)} bytes, body {len(rest)} bytes: too large")
    lengths = len(header).to_bytes(4, "little") + len(rest).to_bytes(4, "little")
    room = max(0, PIECE_BYTES - len(lengths) - len(header))
    return _cut(lengths + header + bytes(rest[:room]), rest[room:])


def _cut(head: bytes, rest: memoryview) -> Iterator[bytes]:
    yield head
    for start in range(0, len(rest), PIECE_BYTES):
        yield bytes(rest[start : start + PIECE_BYTES])


async def receive_frames(
    stream: MuxedStream, connection: Connection, arrivals: trio.MemorySendChannel[Arrival]
) -> None:
    """Read a neighbour's frames until it closes the link.

    Raises:
        BadWireData: a frame too large or misshapen; nothing is allocated for a length beyond the limits.
        EOFError: the link ended within a frame.
    """
    where = f"frame of {short_id(connection.peer)}"
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
        body = bytearray(body_bytes)
        await stream.read_into(memoryview(body))
        received_s = time.perf_counter()
        arrival = Arrival(connection.peer, frame, body, received_s, _wire_ms(connection, frame, received_s))
        await arrivals.send(arrival)


def _wire_ms(connection: Connection, frame: Frame, received_s: float) -> float:
    """How long a stamped frame was under way, by the offset that heartbeats measured; 0 where that is not known.

    Finite and 0 to `LONGEST_WIRE_MS`, whatever stamps the neighbour sends: frames and events of ours tell it on.
    """
    sent_s = getattr(frame, "sent_s", None)
    if sent_s is None or not math.isfinite(sent_s):
        return 0.0
    ours_s = connection.clock.to_ours(sent_s)
    return 0.0 if ours_s is None else min(LONGEST_WIRE_MS, max(0.0, (received_s - ours_s) * 1000))
