"""py-libp2p 0.8.1's yamux, with the limits it lacks. The only place that touches private names of the library.

1. A peer that ignores its receive window costs a log line there, and as much memory as it likes. Here it costs the
   connection: what streams hold unread is bounded, to almost nothing until the peer is admitted.
2. The one task that reads the connection also writes the answers to pings and new streams. When both ends send much at
   once, it waits for the write lock behind a transfer that the other end does not read, because its reader waits the
   same way: both are stuck. Here such answers wait in a task of their own while the lock is taken.
3. Every read there sends a window update, so a small message costs two frames. Here credit is given back in batches.
4. Frames there are written in the order in which they were asked for, so a few bytes that somebody waits for wait
   behind a prompt. Here the more urgent goes first, and bodies are cut to what a slow link carries in some ms.
5. A failure in its tasks ended the process (it ran in libp2p's service nursery). Here `run` ends with the connection.
"""

from __future__ import annotations

import logging
from typing import Any

import trio
from libp2p.stream_muxer.yamux.yamux import TYPE_DATA, Yamux, YamuxStream

from node.swarm.turns import PieceSize, Turns, Urgency

log = logging.getLogger(__name__)

UNREAD_LIMIT_BYTES = 40 * 1024 * 1024
"""One stream's window grows to 16 MiB; a neighbour has one for each lane, and 256 KiB for each that it carries."""

STRANGER_UNREAD_LIMIT_BYTES = 16 * 1024
"""A hello and a proof are about 200 bytes."""

CREDIT_BATCH_BYTES = 64 * 1024
"""A quarter of a fresh stream's window: the sender never waits for the rest of it."""

DEFERRED_LIMIT = 64
"""Answers that may wait; beyond, reading waits too, which slows down a flood."""


class StrictYamux(Yamux):  # type: ignore[misc]  # libp2p is not typed for us
    """A muxed connection that ends rather than grows."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.unread_limit_bytes = STRANGER_UNREAD_LIMIT_BYTES
        """Raised when the peer is admitted."""
        self.bulk_streams: set[int] = set()
        """Ids of those whose data gives way to all else."""
        self.steady_streams: set[int] = set()
        """Ids of those whose window does not grow."""
        self.pieces = PieceSize()
        """How much of a stream to write at once."""
        self._turns = Turns()
        self._credit_bytes: dict[int, int] = {}
        self._reader: trio.lowlevel.Task | None = None
        self._deferred = 0

    async def run(self) -> None:
        """Serve the connection until it ends. `event_started` says when streams can be opened."""
        try:
            await self.start()
        except Exception as error:
            log.debug("yamux ended: %r", error)

    async def read_batched(self, stream: YamuxStream, n: int) -> bytes:
        """At most `n` bytes of a stream, as soon as there are any. Raises libp2p's errors where it ended."""
        try:
            data: bytes = await self.read_stream(stream.stream_id, n)
        except BaseException:
            self._credit_bytes.pop(stream.stream_id, None)
            raise
        credit_bytes = self._credit_bytes.get(stream.stream_id, 0) + len(data)
        if credit_bytes >= CREDIT_BATCH_BYTES:
            await self._give_credit(stream, credit_bytes)
            credit_bytes = 0
        self._credit_bytes[stream.stream_id] = credit_bytes
        return data

    async def _give_credit(self, stream: YamuxStream, credit_bytes: int) -> None:
        if stream.stream_id in self.steady_streams:
            async with stream.window_lock:
                stream.recv_window += credit_bytes
            await stream.send_window_update(credit_bytes)
        else:
            await stream._auto_tune_and_send_window_update(bytes_read=credit_bytes)

    async def give_up(self, stream: YamuxStream) -> None:
        """Reset a stream and forget what it holds unread: nobody will read that, and it counts against our limit.

        Raises:
            Exception: whatever libp2p raises where the connection is broken.
        """
        async with self.streams_lock:
            if unread := self.stream_buffers.get(stream.stream_id):
                unread.clear()
            self._credit_bytes.pop(stream.stream_id, None)
        try:
            await stream.reset()
        finally:
            self.bulk_streams.discard(stream.stream_id)
            self.steady_streams.discard(stream.stream_id)

    async def handle_incoming(self) -> None:
        """Read frames until the connection ends."""
        self._reader = trio.lowlevel.current_task()
        await super().handle_incoming()

    async def _read_data_body(self, length: int) -> bytes:
        unread_bytes = sum(map(len, self.stream_buffers.values()))
        if unread_bytes + length > self.unread_limit_bytes:
            log.debug("a peer overran its receive window")
            raise trio.TooSlowError  # what the caller takes for "end this connection"
        body: bytes = await super()._read_data_body(length)
        return body

    async def _write_frame(self, data: bytes) -> None:
        from_reader = trio.lowlevel.current_task() is self._reader
        if from_reader and self._turns.is_taken and self._deferred < DEFERRED_LIMIT and self._nursery is not None:
            self._deferred += 1
            self._nursery.start_soon(self._write_deferred, data)
        else:
            await self._write_in_turn(data)

    async def _write_deferred(self, data: bytes) -> None:
        try:
            await self._write_in_turn(data)
        except Exception as error:
            log.debug("an answer could not be written: %r", error)
        finally:
            self._deferred -= 1

    async def _write_in_turn(self, data: bytes) -> None:
        async with self._turns.turn(self._urgency(data)):
            began_s = trio.current_time()
            await self.secured_conn.write(data)
            self.pieces.wrote(len(data), trio.current_time() - began_s)
        await trio.lowlevel.checkpoint()

    def _urgency(self, data: bytes) -> Urgency:
        """Of a yamux frame: version, type, two bytes of flags, four of the stream's id."""
        if data[1] != TYPE_DATA:
            return Urgency.SYSTEM
        return Urgency.BULK if int.from_bytes(data[4:8], "big") in self.bulk_streams else Urgency.STEPS
