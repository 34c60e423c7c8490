"""A request's body: bounded in size, time and in how much of all bodies is here at once, and said to be JSON.

It may be compressed. What it is when it is not counts for every bound: a few bytes can stand for gigabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import trio
from starlette.datastructures import Headers
from starlette.types import Receive, Scope

from node.api.http.expanding import expanded, readable
from node.errors import BadRequest, BodyTooLarge, Busy, UnknownEncoding

BODY_S = 30.0
"""For a whole body, from a client on this machine or its network; one that stalls must not keep its connection."""

BODIES_BYTES = 64 * 1024 * 1024
"""Of all bodies that are being read or answered. A prompt that fits a model takes about one megabyte at most."""

SMALL_BYTES = 64 * 1024
"""A body up to this size is always taken, and read on the event loop: it takes a millisecond."""

DECODERS = 2
"""Threads that take large bodies apart. More would only take the interpreter's lock from one another."""

FROM_BROWSERS = ("origin", "referer", "sec-fetch-site", "sec-fetch-mode", "sec-fetch-dest")
"""Headers of which a browser sends at least one with a form."""

T = TypeVar("T")


class Bodies:
    """Reads the bodies of all connections of one node, and knows how many bytes of them are in memory."""

    def __init__(self, most_bytes: int = BODIES_BYTES) -> None:
        self.held_bytes = 0
        """Of large bodies. Small ones are bounded by the number of connections."""
        self._most_bytes = most_bytes
        self._decoders = trio.CapacityLimiter(DECODERS)

    @contextmanager
    def room(self) -> Iterator[BodyRoom]:
        """Room for one body. What it takes is given back at the end of the block, which lasts as long as the body."""
        room = BodyRoom(self)
        try:
            yield room
        finally:
            room.grow_to(0)

    def fits(self, more_bytes: int) -> bool:
        return self.held_bytes + more_bytes <= self._most_bytes

    async def decoded(self, parse: Callable[[bytes], T], body: bytes) -> T:
        """`parse(body)`, in a thread where it takes long. Raises what `parse` raises."""
        if len(body) <= SMALL_BYTES:
            return parse(body)
        return await self.apart(parse, body)

    async def apart(self, work: Callable[..., T], *arguments: object) -> T:
        """`work` in a thread, of which there are few. Raises what it raises."""
        return await trio.to_thread.run_sync(work, *arguments, limiter=self._decoders)


class BodyRoom:
    """What one body takes of all bodies' room."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies, self._held_bytes = bodies, 0

    def grow_to(self, count: int) -> None:
        """Take room for a body of so many bytes.

        Raises:
            Busy: there is none.
        """
        wanted = 0 if count <= SMALL_BYTES else count
        more = wanted - self._held_bytes
        if more > 0 and not self._bodies.fits(more):
            raise Busy("too many large requests are being read; try again in a moment")
        self._bodies.held_bytes += more
        self._held_bytes = wanted

    async def read(self, scope: Scope, receive: Receive, limit_bytes: int) -> bytes:
        """The request's body.

        Raises:
            BodyTooLarge: it is larger than `limit_bytes`.
            UnknownEncoding: it is compressed in a way that cannot be read.
            Busy: there is no room for it now.
            BadRequest: it is not there within `BODY_S`.
        """
        headers = Headers(scope=scope)
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity", *readable()):
            raise UnknownEncoding(encoding[:40], readable())
        told = headers.get("content-length", "")
        if told.isascii() and told.isdecimal() and (len(told) > 15 or int(told) > limit_bytes):
            raise BodyTooLarge(limit_bytes)
        with trio.move_on_after(BODY_S) as patience:
            body = await self._whole_body(receive, limit_bytes)
        if patience.cancelled_caught:
            raise BadRequest(None, f"the body did not arrive within {BODY_S:.0f} s")
        return body if encoding in ("", "identity") else await self._expanded(body, encoding, limit_bytes)

    async def _expanded(self, body: bytes, encoding: str, limit_bytes: int) -> bytes:
        """The body as it was before it was compressed; room for all of it is taken before there is any."""
        self.grow_to(len(body) + limit_bytes)
        try:
            whole = await self._bodies.apart(expanded, body, encoding, limit_bytes)
        finally:
            self.grow_to(0)
        self.grow_to(len(whole))
        return whole

    async def _whole_body(self, receive: Receive, limit_bytes: int) -> bytes:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise BadRequest(None, "the client went away")
            body += message.get("body", b"")
            if len(body) > limit_bytes:
                raise BodyTooLarge(limit_bytes)
            self.grow_to(len(body))
            if not message.get("more_body", False):
                return bytes(body)


def require_json(scope: Scope) -> None:
    """A web form cannot say application/json without asking first, so this also stops cross-site posts.

    Raises:
        BadRequest: the content type is another one.
    """
    kind = _content_type(Headers(scope=scope))
    if kind != "application/json":
        raise BadRequest(None, f"the content type is {kind[:80] or 'missing'}, application/json is needed")


def expect_json(scope: Scope) -> None:
    """The same where nothing but an answer is asked for: what no browser has sent may say nothing, as `curl -d` does.
    A browser tells of every post where it comes from.

    Raises:
        BadRequest: the content type is another one.
    """
    headers = Headers(scope=scope)
    from_browser = any(name in headers for name in FROM_BROWSERS)
    if from_browser or _content_type(headers) not in ("", "application/x-www-form-urlencoded"):
        require_json(scope)


def _content_type(headers: Headers) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()
