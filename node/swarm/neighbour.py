"""What we keep of one peer for as long as there is a connection with it, whichever that is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from node.swarm.base import LANES, Lane
from node.swarm.byte_budget import ByteBudget
from node.swarm.circuits import CircuitCarrier
from node.swarm.connection import Connection
from node.swarm.heartbeat import PeerClock
from node.swarm.stream_link import StreamLink

HELD_BYTES: dict[Lane, int] = {"steps": 32 * 1024 * 1024, "bulk": 128 * 1024 * 1024}
"""What one neighbour may make us hold: of prompts twice the largest body, of steps some hundred sequences' rows."""

UNUSED_S = 10.0
"""No sequence lets a link rest for so long between two frames while its client reads."""

Open = Callable[[Lane], Awaitable[StreamLink]]


class Neighbour:
    """Its clock, our links to it, and what it makes us hold."""

    def __init__(self) -> None:
        self.clock = PeerClock()
        self.held = {lane: ByteBudget(HELD_BYTES[lane]) for lane in LANES}
        """Bytes that came from it and are still in use."""
        self._links: dict[Lane, StreamLink] = {}
        self._opening = {lane: trio.Lock() for lane in LANES}

    async def link(self, lane: Lane, open_link: Open) -> StreamLink:
        """The open link of that lane; `open_link` makes one where there is none, once for all who ask meanwhile."""
        async with self._opening[lane]:
            link = self._links.get(lane)
            if link is None or not link.is_open:
                link = self._links[lane] = await open_link(lane)
            return link

    def close_links(self, connection: Connection, reason: str) -> None:
        """Those that this connection carries, also through the peer to another."""
        for lane, link in list(self._links.items()):
            carrier = link.connection
            if carrier is connection or (isinstance(carrier, CircuitCarrier) and carrier.via is connection):
                del self._links[lane]
                link.close(reason)

    def retire_circuits(self, now: float) -> None:
        """There is a direct way: let go of detours that nothing has used for a while, so that the next use takes it."""
        for lane, link in list(self._links.items()):
            if isinstance(link.connection, CircuitCarrier) and now - link.used_s > UNUSED_S:
                del self._links[lane]
                link.retire()

    @property
    def is_forgotten(self) -> bool:
        """Whether nothing of it is in use any more."""
        in_use = any(budget.used_bytes for budget in self.held.values())
        opening = any(lock.locked() for lock in self._opening.values())
        return not (self._links or in_use or opening)
