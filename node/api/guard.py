"""Who may talk to us over HTTP, before any route is looked at.

The control socket has its owner's file mode. TCP has no owner, so: the control port wants the token of the control
file, and a port on loopback refuses requests that a web page could have caused (a foreign Host, which is DNS
rebinding, or a foreign Origin).
"""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1", "node"})
"""`node` is the host name that our own clients write into requests over the unix socket."""


class Guard:
    """ASGI middleware: token, Host and Origin."""

    def __init__(self, app: ASGIApp, *, token: str | None = None, loopback_only: bool = True) -> None:
        self._app, self._token, self._loopback_only = app, token, loopback_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        refusal = self._refusal(Headers(scope=scope))
        if refusal is None:
            await self._app(scope, receive, send)
            return
        status, message = refusal
        body = {"error": {"message": message, "type": "permission_error", "param": None, "code": None}}
        await JSONResponse(body, status)(scope, receive, send)

    def _refusal(self, headers: Headers) -> tuple[int, str] | None:
        if self._token is not None:
            given = headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
                return 401, "this port wants the token of the node's control file"
        if self._loopback_only:
            if _host_name(headers.get("host", "")) not in LOOPBACK_NAMES:
                return 403, "this port answers requests for localhost only"
            origin = headers.get("origin")
            if origin is not None and _host_name(origin.partition("://")[2]) not in LOOPBACK_NAMES:
                return 403, "requests from web pages of other hosts are refused"
        return None


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
