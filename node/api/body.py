"""A request's body: bounded in size and time, and said to be JSON."""

from __future__ import annotations

import trio
from starlette.requests import Request
from starlette.types import Receive, Scope

from node.errors import BadRequest

BODY_S = 30.0
"""For a whole body, from a client on this machine or its network; one that stalls must not keep its connection."""


async def read_body(receive: Receive, limit_bytes: int) -> bytes:
    """The request's body.

    Raises:
        BadRequest: larger than `limit_bytes`, or not there within `BODY_S`.
    """
    with trio.move_on_after(BODY_S):
        return await _whole_body(receive, limit_bytes)
    raise BadRequest(None, f"the body did not arrive within {BODY_S:.0f} s")


async def _whole_body(receive: Receive, limit_bytes: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BadRequest(None, "the client went away")
        body += message.get("body", b"")
        if len(body) > limit_bytes:
            raise BadRequest(None, f"the body is larger than {limit_bytes} bytes")
        if not message.get("more_body", False):
            return bytes(body)


def require_json(scope: Scope) -> None:
    """A web form cannot say application/json without asking first, so this also stops cross-site posts.

    Raises:
        BadRequest: the content type is another one.
    """
    kind = Request(scope).headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise BadRequest(None, f"the content type is {kind or 'missing'}, application/json is needed")
