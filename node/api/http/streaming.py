"""A stream of events that is kept alive while nothing comes.

The first event, or `FIRST_SIGN_S` without one, begins it: until then an error is a status code. From then on a form
that has words for it says every `SIGN_EVERY_S` that the connection lives, which programs between us and the client want
to see.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio
from starlette.types import Send

FIRST_SIGN_S = 5.0
"""A request that cannot be served is usually refused sooner; clients and proxies wait 30 seconds or more."""
SIGN_EVERY_S = 10.0

STREAM_HEADERS = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]


class EventStream:
    """The body of one streamed response. Use `event_stream`."""

    def __init__(self, send: Send, media_type: str, keep_alive: bytes) -> None:
        self.headers: Sequence[tuple[bytes, bytes]] = ()
        """Further ones; they count where the stream has not begun."""
        self.begun = False
        self._send, self._media_type, self._keep_alive = send, media_type, keep_alive
        self._quiet = True
        """Nothing was sent since the last look."""
        self._writing = False
        self._signing: trio.Event | None = None
        """Set when the sign that is being written is out."""
        self._over = False

    async def send(self, part: bytes) -> None:
        """More of the body."""
        await self._write(part, more=True)

    async def end(self, part: bytes) -> None:
        """The last of it."""
        await self._write(part, more=False)

    async def _write(self, part: bytes, *, more: bool) -> None:
        self._quiet, self._writing, self._over = False, True, not more
        if self._signing is not None:
            await self._signing.wait()
        await self._begin()
        await self._send({"type": "http.response.body", "body": part, "more_body": more})
        self._writing = False

    async def _begin(self) -> None:
        if self.begun:
            return
        self.begun = True
        headers = [(b"content-type", self._media_type.encode()), *STREAM_HEADERS, *self.headers]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def give_signs(self) -> None:
        """Until the stream is over."""
        await trio.sleep(FIRST_SIGN_S)
        while not self._over:
            if self._quiet and not self._writing:
                self._signing = trio.Event()
                await self._begin()
                await self._send({"type": "http.response.body", "body": self._keep_alive, "more_body": True})
                self._signing.set()
                self._signing = None
            self._quiet = True
            await trio.sleep(SIGN_EVERY_S)


@asynccontextmanager
async def event_stream(send: Send, media_type: str, keep_alive: bytes) -> AsyncIterator[EventStream]:
    """A stream for as long as the block runs, which is around all that may take long.

    Args:
        keep_alive: what clients read over; empty: the form has no such thing, and nothing is said.
    """
    stream = EventStream(send, media_type, keep_alive)
    async with trio.open_nursery() as nursery:
        if keep_alive:
            nursery.start_soon(stream.give_signs)
        yield stream
        nursery.cancel_scope.cancel()
