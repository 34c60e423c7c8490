"""What only the node's owner may see and do on a TCP port: whoever can read a file of mode 0600 in the node's home.

Every user of a machine reaches its loopback ports, and everybody a port on another address. The control endpoint needs
none of this: only the owner opens it at all.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from msgspec.structs import replace
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response

from node.api.http.guard import forbidden, shows
from node.journal.state import State
from node.wire.events import NodeSeen, Numbered

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Owner:
    """How a request shows that it is the owner's."""

    token: str | None = None
    """Sent as `Authorization: Bearer …`; None: only the owner gets here at all."""
    token_file: str = ""
    """Where it can be read."""
    exposed: bool = False
    """Other machines reach this port: even looking at the plan, and members' addresses, are the owner's alone."""

    def asks(self, headers: Headers) -> bool:
        """Whether the owner asks."""
        return self.token is None or shows(headers, self.token)

    def may_fetch(self, headers: Headers) -> bool:
        """Whether this request may have models fetched: the owner's, and a program's on this machine; no web page's."""
        return self.asks(headers) or not (self.exposed or "origin" in headers)

    def only(self, handler: Handler) -> Handler:
        """The same route, for the owner alone."""

        async def guarded(request: Request) -> Response:
            if self.asks(request.headers):
                return await handler(request)
            return forbidden(
                403,
                "the plan is for the node's owner, and every user of this machine, or of the network, can reach this "
                "port; use `parallax plan` (--apply) in the node's home, or send the token in "
                f"{self.token_file} as `Authorization: Bearer TOKEN`",
            )

        return guarded

    def looking_at_plans(self, handler: Handler) -> Handler:
        """The same route, for the owner alone where other machines reach it: a plan takes seconds of a processor."""
        return self.only(handler) if self.exposed else handler

    def state_for(self, headers: Headers, state: State) -> State:
        """What may be shown of it."""
        if not self.exposed or self.asks(headers):
            return state
        nodes = {
            node_id: replace(view, record=replace(view.record, addresses=())) for node_id, view in state.nodes.items()
        }
        return replace(state, nodes=nodes)

    def events_for(self, headers: Headers) -> Callable[[Numbered], Numbered]:
        """The same for events."""
        if not self.exposed or self.asks(headers):
            return lambda numbered: numbered
        return _without_addresses


def _without_addresses(numbered: Numbered) -> Numbered:
    event = numbered.event
    if not isinstance(event, NodeSeen):
        return numbered
    return replace(numbered, event=replace(event, record=replace(event.record, addresses=())))
