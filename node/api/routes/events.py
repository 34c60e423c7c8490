"""`GET /v1/events?since=N`: the journal as numbered lines of JSON, without end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

import msgspec
import trio
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from node.api.http.disconnect import until_disconnect
from node.api.http.error_replies import error_response
from node.api.http.owner import Owner
from node.errors import Busy
from node.journal.log import Gap, Journal
from node.wire.events import Numbered

KEEP_ALIVE_S = 10.0
"""An empty line this often tells the reader that the node is there, and tells us when the reader is not."""


AT_ONCE = 64
"""Events in one write: some milliseconds."""

MOST_FOLLOWERS = 64
"""On one port: readers without end shall never take the connections that requests need."""


SLOW_S = 1.0
"""A reader for which a write has waited for so long gives way to a new one when there are as many as there may be."""


@dataclass(slots=True, eq=False)
class _Follower:
    """One reader."""

    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    writing_since_s: float = inf
    """Of the write that it keeps waiting."""


class EventsEndpoint:
    """The route as an ASGI app.

    A reader that falls behind gets its connection ended and reads the state again; so does one that reads nothing, when
    the next write to it has been waited for in vain, or when another one needs its place.
    """

    def __init__(self, journal: Journal, owner: Owner) -> None:
        self._journal, self._owner = journal, owner
        self._followers: set[_Follower] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if len(self._followers) >= MOST_FOLLOWERS and not self._slowest_gives_way():
            busy = Busy(f"{MOST_FOLLOWERS} readers follow the events of this port already; try again in a moment")
            await error_response(busy)(scope, receive, send)
            return
        follower = _Follower()

        async def send_noted(message: Message) -> None:
            follower.writing_since_s = trio.current_time()
            await send(message)
            follower.writing_since_s = inf

        self._followers.add(follower)
        try:
            with follower.scope:
                await self._answer(scope, receive, send_noted)
        finally:
            self._followers.discard(follower)

    def _slowest_gives_way(self) -> bool:
        """Whether there was one that reads nothing; its connection ends."""
        slowest = min(self._followers, key=lambda follower: follower.writing_since_s)
        if slowest.writing_since_s > trio.current_time() - SLOW_S:
            return False
        self._followers.discard(slowest)
        slowest.scope.cancel()
        return True

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            since = int(Request(scope).query_params.get("since", self._journal.state.seq))
            numbered = self._journal.after(since)
        except ValueError:
            await _refuse(400, "since must be a whole number", scope, receive, send)
            return
        except Gap as gap:
            await _refuse(410, str(gap), scope, receive, send)
            return
        show = self._owner.events_for(Headers(scope=scope))
        headers = [(b"content-type", b"application/x-ndjson"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"\n", "more_body": True})
        await until_disconnect(receive, lambda: self._follow(since, numbered, send, show))

    async def _follow(
        self, since: int, numbered: list[Numbered], send: Send, show: Callable[[Numbered], Numbered]
    ) -> None:
        while True:
            lines = b"".join(msgspec.json.encode(show(event)) + b"\n" for event in numbered[:AT_ONCE]) or b"\n"
            numbered = numbered[:AT_ONCE]  # a reader may ask for thousands, which take long to write as JSON
            await send({"type": "http.response.body", "body": lines, "more_body": True})
            since += len(numbered)
            try:
                numbered = await self._journal.next_after(since, KEEP_ALIVE_S)
            except Gap:
                break
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _refuse(status: int, message: str, scope: Scope, receive: Receive, send: Send) -> None:
    body = {"error": {"message": message, "type": "invalid_request_error", "param": "since", "code": None}}
    await JSONResponse(body, status)(scope, receive, send)
