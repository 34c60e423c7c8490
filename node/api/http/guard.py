"""Who may talk to us over HTTP, before any route is looked at.

The control socket has its owner's file mode. TCP has no owner, so: the control port wants the token of the control
file, and a port refuses what a web page could have caused without being allowed to: a foreign Host (which is DNS
rebinding), a foreign Origin, or a request that a browser calls cross-site. Pages of this machine are allowed, and
whatever origins and names the node's owner lists.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from node.api.dialects.by_path import error_for
from node.api.http.error_replies import error_response, reply
from node.errors import RequestError

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

SOCKET_NAME = "node"
"""The host name that our own clients write into requests over the unix socket. On TCP it could be any machine's."""

ANY_ORIGIN = "*"

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9._-]{1,253}))(?::\d{1,5})?")
_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,31}://[^/?#@\s\\]{1,260}")

PREFLIGHT_S = 600
METHODS = ("GET", "POST", "DELETE", "HEAD", "OPTIONS")


@dataclass(frozen=True, slots=True)
class Door:
    """Whom one listener lets in."""

    token: str | None = None
    """What every request must show; None: nothing."""
    over_socket: bool = False
    """A unix socket, which no web page reaches."""
    loopback_only: bool = True
    """On an address that other machines reach, any name may be the right one."""
    hosts: frozenset[str] = frozenset()
    """Further names under which this port is called, in lower case."""
    origins: frozenset[str] = frozenset()
    """Further web origins whose pages may call, in lower case; `*`: all."""

    def refusal(self, headers: Headers) -> tuple[int, str] | None:
        """Status and reason where a request is not let in."""
        if self.token is not None and not shows(headers, self.token):
            return 401, "this port wants the token of the node's control file"
        host = host_name(headers.get("host", ""))
        if self.over_socket and host == SOCKET_NAME:
            return None
        if self.loopback_only and host not in LOOPBACK_NAMES | self.hosts:
            named = f", not for {host}" if host else ""
            return 403, (
                f"this port answers requests for localhost{named}; start the node with --allow-host NAME, or put "
                'allow_host = ["NAME"] into its config.toml, for another name'
            )
        origin = headers.get("origin")
        if origin is not None and not self.allows(origin):
            return 403, (
                f"web pages of {origin[:100]} may not call this node; start it with --cors ORIGIN, or put "
                'cors = ["ORIGIN"] into its config.toml'
            )
        if origin is None and headers.get("sec-fetch-site", "").strip().lower() == "cross-site":
            return 403, "a web page of another site may not call this node; see --cors ORIGIN of `parallax node`"
        return None

    def allows(self, origin: str) -> bool:
        """Whether pages of this origin may call."""
        if ANY_ORIGIN in self.origins or origin.lower() in self.origins:
            return True
        if not _ORIGIN.fullmatch(origin):
            return False
        scheme, _, rest = origin.lower().partition("://")
        return scheme in ("http", "https") and host_name(rest) in LOOPBACK_NAMES


class Guard:
    """ASGI middleware: who is let in, and what a browser must be told about it."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._door = door
        # whether an origin is allowed has been decided before this is asked, so here it is always so
        self._cors = CORSMiddleware(
            _Options(app),
            allow_origin_regex=".*",
            allow_methods=METHODS,
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=["retry-after", "x-request-id", "request-id", "server-timing", "x-parallax-route"],
            max_age=PREFLIGHT_S,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        refusal = self._door.refusal(Headers(scope=scope))
        if refusal is None:
            await self._cors(scope, receive, send)
            return
        status, message = refusal
        await reply(error_for(scope["path"], Forbidden(message, status)))(scope, receive, send)


class _Options:
    """Answers an OPTIONS that is no preflight: what may be asked."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "OPTIONS":
            await Response(status_code=204, headers={"allow": ", ".join(METHODS)})(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class Forbidden(RequestError):
    """Who asks may not."""

    kind = "permission_error"

    def __init__(self, message: str, status: int = 403) -> None:
        self.status = status
        super().__init__(message)


def forbidden(status: int, message: str) -> Response:
    """A refusal as OpenAI clients read it."""
    return error_response(Forbidden(message, status))


def shows(headers: Headers, token: str) -> bool:
    """Whether a request shows this token."""
    return hmac.compare_digest(headers.get("authorization", "").encode(), f"Bearer {token}".encode())


def host_name(host: str) -> str:
    """The name in a Host header, in lower case; empty where it is none."""
    match = _HOST.fullmatch(host)
    return (match[1] or match[2]).lower() if match else ""
