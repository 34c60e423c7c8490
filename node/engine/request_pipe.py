"""Writes requests to the worker's pipe, in their order and each as a whole, however its caller fares meanwhile.

What fits into the pipe at once is written at once, by whoever asks: a decode step would otherwise wait for a task to be
woken, which takes longer than the write. The rest, and what comes behind it, is written by `run`.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from contextlib import suppress

import trio

from node.wire.frames import Buffer

JOIN_BYTES = 64 * 1024
"""Bodies up to a pipe's usual capacity are written together with their header, in one system call."""


class RequestPipe:
    """The end of the pipe that the worker reads from."""

    def __init__(self, pipe: trio.abc.SendStream) -> None:
        self._pipe = pipe
        # Without a bound, so that posting never waits and a cancelled caller can still say `Close`; in fact as long as
        # there are callers, since each of them waits for its reply, and of bodies there are two.
        self._left: deque[Buffer] = deque()
        self._writing = False
        """`run` is in the middle of a piece."""
        self._more = trio.Event()

    def post(self, head: bytes, data: Buffer) -> None:
        """Write a message, now or as soon as the pipe takes it. Never waits and never raises: a worker that is gone is
        seen by who reads from it."""
        pieces: list[Buffer] = [head + bytes(data)] if len(data) <= JOIN_BYTES else [head, data]
        if not self._left and not self._writing:
            pieces[0] = self._write_now(pieces[0])
        self._left.extend(piece for piece in pieces if len(piece))
        if self._left:
            self._more.set()

    def _write_now(self, piece: Buffer) -> Buffer:
        """What the pipe did not take."""
        if (descriptor := _descriptor_of(self._pipe)) is not None:
            with suppress(OSError):  # full, or closed at the other end
                return memoryview(piece)[os.write(descriptor, piece) :]
        return piece

    async def run(self) -> None:
        """Write what is left, until the pipe breaks."""
        try:
            while True:
                await self._more.wait()
                self._more = trio.Event()
                while self._left:
                    self._writing = True
                    await self._pipe.send_all(memoryview(self._left.popleft()))
                    self._writing = False
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def aclose(self) -> None:
        """Close it, which asks the worker to end."""
        self._left.clear()
        await self._pipe.aclose()


def _descriptor_of(pipe: trio.abc.SendStream) -> int | None:
    """Of a pipe that does not block; None on Windows, and for what is no pipe."""
    if sys.platform != "win32" and isinstance(pipe, trio.lowlevel.FdStream):
        return pipe.fileno()
    return None
