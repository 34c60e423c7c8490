"""`GET /v1/events?since=N`: the journal as numbered lines of JSON, without end."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from node.api.disconnect import until_disconnect
from node.journal.log import Gap, Journal
from node.wire.events import Numbered

KEEP_ALIVE_S = 10.0
"""An empty line this often tells the reader that the node is there, and tells us when the reader is not."""


class EventsEndpoint:
    """The route as an ASGI app. A reader that falls behind gets its connection ended and reads the state again."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            since = int(Request(scope).query_params.get("since", self._journal.state.seq))
            numbered = self._journal.after(since)
        except ValueError:
            await _refuse(400, "since must be a whole number", scope, receive, send)
            return
        except Gap as gap:
            await _refuse(410, str(gap), scope, receive, send)
            return
        headers = [(b"content-type", b"application/x-ndjson"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"\n", "more_body": True})
        await until_disconnect(receive, lambda: self._follow(since, numbered, send))

    async def _follow(self, since: int, numbered: list[Numbered], send: Send) -> None:
        while True:
            lines = b"".join(msgspec.json.encode(event) + b"\n" for event in numbered) or b"\n"
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
