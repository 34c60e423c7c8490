"""One libp2p stream: protocol negotiation, whole reads, writes that a cancelled caller cannot leave half done.

Reading goes through a buffer: a read of a libp2p stream passes several locks, however little it returns.
"""

from __future__ import annotations

import logging

import trio
from libp2p.custom_types import StreamHandlerFn, TProtocol
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import IOException
from libp2p.protocol_muxer.multiselect import Multiselect
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError
from libp2p.stream_muxer.yamux.yamux import YamuxStream

from node.errors import BadWireData
from node.swarm.strict_yamux import StrictYamux
from node.swarm.turns import LARGEST_PIECE_BYTES
from node.wire.codec import T, decode

log = logging.getLogger(__name__)

NEGOTIATION_LIMIT_BYTES = 1024
"""A protocol's name; a longer announcement would be collected in memory."""

NEGOTIATION_S = 5
READ_BYTES = 256 * 1024
LOOK_AGAIN_S = 0.01
"""While a stream has no credit: the library has no event for it."""

STALLED_AFTER_S = 5.0


class Stalled(Exception):
    """The peer reads nothing of this stream."""


class MuxedStream(ReadWriteCloser):  # type: ignore[misc]  # libp2p is not typed for us
    """Has one reader and, at a time, one writer. A `FrameStream`."""

    def __init__(self, muxed: StrictYamux, stream: YamuxStream) -> None:
        self.stalled_after_s = STALLED_AFTER_S
        """A peer that gives no credit for so long of our own loop's time reads no more."""
        self._muxed, self._stream = muxed, stream
        self._buffer = bytearray()

    def give_way(self) -> None:
        """Let everything else on the connection go first."""
        self._muxed.bulk_streams.add(self._stream.stream_id)

    def hold_window(self) -> None:
        """Have the peer's window stay as it began, however fast it is read."""
        self._muxed.steady_streams.add(self._stream.stream_id)

    async def read(self, n: int | None = None) -> bytes:
        """For the negotiation alone: `n` bytes, fewer where the stream ended."""
        wanted = 1 if n is None else n
        if wanted > NEGOTIATION_LIMIT_BYTES:
            raise IOException(f"{wanted} bytes announced in a negotiation")
        while len(self._buffer) < wanted and await self._fill():
            pass
        return self._take(wanted)

    async def read_exactly(self, n: int) -> bytes:
        """`n` bytes; the caller has checked that it wants that many. Raises EOFError where the stream ends before."""
        while len(self._buffer) < n:
            if not await self._fill():
                raise EOFError
        return self._take(n)

    async def read_some(self, n: int) -> bytes:
        """At most `n` bytes, as soon as there are any; none where the stream ended."""
        return self._take(min(n, len(self._buffer))) if self._buffer else await self._receive(n)

    async def read_into(self, target: memoryview) -> None:
        """Fill `target`. Raises EOFError where the stream ends before."""
        done = min(len(target), len(self._buffer))
        target[:done] = self._take(done)
        while done < len(target):
            piece = await self._receive(min(READ_BYTES, len(target) - done))
            if not piece:
                raise EOFError
            target[done : done + len(piece)] = piece
            done += len(piece)

    async def read_message(self, kind: type[T], *, where: str, limit_bytes: int) -> T:
        """A message with its u32 length before it. Raises BadWireData, or EOFError where the stream ends."""
        length = int.from_bytes(await self.read_exactly(4), "little")
        if length > limit_bytes:
            raise BadWireData(where, f"{length} bytes announced, at most {limit_bytes} allowed")
        return decode(await self.read_exactly(length), kind, where=where, limit_bytes=limit_bytes)

    async def write(self, data: bytes) -> None:
        """Write all of it; cannot be cancelled, and ends with the connection at the latest.

        Raises:
            Exception: as `write_some`.
        """
        rest = memoryview(data)
        with trio.CancelScope(shield=True):
            while rest:
                rest = rest[await self.write_some(rest) :]

    async def write_some(self, data: memoryview) -> int:
        """See `node.swarm.frame_stream.FrameStream.write_some`.

        A piece that has begun is written whole: half a yamux frame would break every stream of the connection.
        """
        await self.ready()
        piece_bytes: int = min(len(data), self._muxed.pieces.piece_bytes, LARGEST_PIECE_BYTES, self._stream.send_window)
        with trio.CancelScope(shield=True):
            await self._stream.write(bytes(data[:piece_bytes]))
        return piece_bytes

    async def close(self) -> None:
        """Give the stream up in both directions, and tell the peer so.

        Like a write, this cannot be cancelled and ends with the connection at the latest, so let a task of the
        connection do it. Where the connection is broken, there is nobody to tell.
        """
        with trio.CancelScope(shield=True):
            try:
                await self._muxed.give_up(self._stream)
            except Exception as error:
                log.debug("a stream could not be reset: %r", error)

    def get_remote_address(self) -> tuple[str, int] | None:
        """Part of libp2p's interface."""
        return None

    async def choose(self, protocol: str) -> None:
        """Ask the peer for `protocol` on this fresh stream. Raises where it has none, or takes too long."""
        await MultiselectClient().select_one_of([TProtocol(protocol)], MultiselectCommunicator(self), NEGOTIATION_S)

    async def offer(self, handlers: dict[TProtocol | None, StreamHandlerFn | None]) -> str | None:
        """Let the peer ask for one of `handlers`; which one it took."""
        chosen, _ = await Multiselect(handlers).negotiate(MultiselectCommunicator(self), NEGOTIATION_S)
        return None if chosen is None else str(chosen)

    async def ready(self) -> None:
        """Wait until the peer takes more. Counts looks, not seconds: a loop that stood still itself blames nobody.

        Raises:
            Stalled: it has taken nothing for too long.
            MuxedStreamError: the stream is closed.
        """
        looks = 0
        while self._stream.send_window <= 0 and not (self._stream.closed or self._stream.send_closed):
            if looks * LOOK_AGAIN_S >= self.stalled_after_s:
                raise Stalled(f"it has read nothing for {self.stalled_after_s:.0f} s")
            looks += 1
            await trio.sleep(LOOK_AGAIN_S)
        if self._stream.closed or self._stream.send_closed:
            raise MuxedStreamError("the stream is closed")

    def _take(self, n: int) -> bytes:
        data = bytes(memoryview(self._buffer)[:n])
        del self._buffer[:n]
        return data

    async def _fill(self) -> bool:
        piece = await self._receive(READ_BYTES)
        self._buffer += piece
        return bool(piece)

    async def _receive(self, n: int) -> bytes:
        try:
            return await self._muxed.read_batched(self._stream, n)
        except MuxedStreamEOF:
            return b""
