"""All links of this node: its own, those that others open to it, and those that it carries.

A link goes over a direct connection where there is one, and through a third member where there is none.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import trio

from node.errors import BadWireData, LinkClosed
from node.swarm.base import Arrival, Lane, LinkLost
from node.swarm.circuits import CIRCUIT_PROTOCOL, RELAY_PROTOCOL, CircuitCarrier, Circuits, CircuitStream
from node.swarm.connection import Connection
from node.swarm.connections import Connections
from node.swarm.heartbeat import PeerClock
from node.swarm.identity import Identity
from node.swarm.lanes import PROTOCOLS, lane_of, open_lane
from node.swarm.muxed_stream import MuxedStream
from node.swarm.neighbour import Neighbour
from node.swarm.reach import Reach
from node.swarm.relay import Relay
from node.swarm.stream_link import StreamLink, receive_frames
from node.wire.ids import NodeId, short_id
from node.wire.records import NodeRecord

log = logging.getLogger(__name__)

LINK_WAIT_S = 3.0
DIRECT_FIRST_S = 1.0
"""For a direct connection, where a detour is known and there is hope for one."""

RELAYS_TRIED = 3

LINKS_PER_CONNECTION = 6
"""Inbound; an honest neighbour has one of each lane, and for a moment two where it had to open it again."""


class Members(Protocol):
    """What links need to know of the swarm."""

    def members(self) -> Mapping[NodeId, NodeRecord]:
        """Every live member's newest record."""

    def is_member(self, node_id: NodeId) -> bool:
        """Whether it is live now."""


class Links:
    """Opens, serves and ends them."""

    protocols = (*PROTOCOLS.values(), RELAY_PROTOCOL, CIRCUIT_PROTOCOL)
    """Of the streams that members may open to us."""

    def __init__(
        self,
        identity: Identity,
        connections: Connections[Connection],
        reach: Reach,
        members: Members,
        arrivals: trio.MemorySendChannel[Arrival],
        tell: Callable[[LinkLost], None],
    ) -> None:
        self.relay = Relay(connections.best, members.is_member)
        self._connections, self._reach, self._members = connections, reach, members
        self._arrivals_in, self._tell = arrivals, tell
        self._circuits = Circuits(identity)
        self._carried_here: Counter[NodeId] = Counter()
        """Circuits that end here, by their origin."""
        self._neighbours: dict[NodeId, Neighbour] = {}
        self._joined = trio.Event()

    async def link(self, peer: NodeId, lane: Lane) -> StreamLink:
        """One lane of the link to a member, opened on first use. Raises LinkClosed."""
        return await self._neighbour(peer).link(lane, partial(self._open_link, peer))

    def clock_of(self, peer: NodeId) -> PeerClock:
        """The one clock of that peer."""
        return self._neighbour(peer).clock

    def joined(self) -> None:
        """There is another connection."""
        self._joined.set()
        self._joined = trio.Event()

    def ended(self, connection: Connection, reason: str) -> None:
        """A connection is over, and all of our links that it carries with it."""
        for neighbour in list(self._neighbours.values()):
            neighbour.close_links(connection, reason)

    def tidy(self, now: float) -> None:
        """Let go of detours and of what is kept of peers that are gone. To be called a few times a second."""
        for peer, neighbour in list(self._neighbours.items()):
            if peer in self._connections:
                neighbour.retire_circuits(now)
            elif neighbour.is_forgotten:
                del self._neighbours[peer]

    async def serve_stream(self, connection: Connection, protocol: str, stream: MuxedStream) -> None:
        """A neighbour opened a stream to us for one of these."""
        if lane := lane_of(protocol):
            await self.serve_link(connection, lane, stream)
        elif protocol == RELAY_PROTOCOL:
            await self.relay.carry(connection, stream)
        elif protocol == CIRCUIT_PROTOCOL:
            await self._serve_circuit(stream)

    async def serve_link(self, connection: Connection, lane: Lane, stream: MuxedStream) -> None:
        """A neighbour opened a lane to us: hand its frames over until it ends."""
        if connection.inbound_links >= LINKS_PER_CONNECTION:
            raise BadWireData(f"connection of {short_id(connection.peer)}", "too many links at once")
        connection.inbound_links += 1
        connection.lanes[lane] += 1
        neighbour = self._neighbour(connection.peer)
        try:
            await receive_frames(stream, connection.peer, neighbour.clock, neighbour.held[lane], self._arrivals_in)
        finally:
            connection.inbound_links -= 1
            self._link_over(connection, lane, "the member closed it")

    async def _open_link(self, peer: NodeId, lane: Lane) -> StreamLink:
        relays = self._relays(peer)
        connection = await self._direct(peer, self._direct_wait_s(peer, relays))
        if connection is None:
            return await self._open_circuit(peer, lane, relays)
        stream = await open_lane(connection, lane)
        if connection.is_over:
            raise LinkClosed(peer, "the connection ended")
        connection.lanes[lane] += 1
        return StreamLink(lane, stream, connection, partial(self._link_over, connection, lane))

    async def _open_circuit(self, peer: NodeId, lane: Lane, relays: Sequence[Connection]) -> StreamLink:
        """A lane through the first of `relays` that carries it."""
        problem = "it cannot be reached directly, and no member reaches it"
        for via in relays[:RELAYS_TRIED]:
            try:
                circuit = await self._circuits.open(via, peer, lane)
            except LinkClosed as error:
                problem = error.reason
                continue
            link = StreamLink(lane, circuit, CircuitCarrier(peer, via), partial(self._circuit_over, peer, lane))
            if not via.start(self._watch_circuit, link, circuit, via.peer):
                problem = f"the connection to {short_id(via.peer)} ended"
                continue
            log.info("%s cannot be reached directly: %s go through %s", short_id(peer), lane, short_id(via.peer))
            return link
        raise LinkClosed(peer, problem)

    async def _watch_circuit(self, link: StreamLink, circuit: CircuitStream, via: NodeId) -> None:
        await circuit.ended()
        link.close(f"the way through {short_id(via)} ended")

    def _circuit_over(self, peer: NodeId, lane: Lane, reason: str) -> None:
        if self._members.is_member(peer):
            self._tell(LinkLost(peer, reason, (lane,)))

    async def _serve_circuit(self, stream: MuxedStream) -> None:
        """A member that cannot reach us comes through another. A door: its faults are not those of who carries it."""
        try:
            origin, lane, circuit = await self._circuits.accept(stream)
        except Exception as error:
            log.debug("a circuit was not opened: %r", error)
            return
        if not self._members.is_member(origin) or self._carried_here[origin] >= LINKS_PER_CONNECTION:
            log.debug("a circuit of %s is not taken", short_id(origin))
            return
        self._carried_here[origin] += 1
        neighbour, is_clean = self._neighbour(origin), False
        try:
            await receive_frames(circuit, origin, neighbour.clock, neighbour.held[lane], self._arrivals_in)
            is_clean = origin in self._connections  # then it has taken the direct way
        except BadWireData as error:
            log.warning("%s sent what it must not, its circuit is closed: %s", short_id(origin), error)
        except Exception as error:
            log.debug("a circuit of %s ended: %r", short_id(origin), error)
        finally:
            self._carried_here -= Counter({origin: 1})
            if not is_clean:
                self._circuit_over(origin, lane, "the way through another member ended")

    def _relays(self, peer: NodeId) -> list[Connection]:
        """Direct connections to members who say that they reach `peer`, the shortest way first."""
        found: list[tuple[float, NodeId, Connection]] = []
        members = self._members.members()
        for connection in self._connections.best_of_each():
            record, ours_ms = members.get(connection.peer), connection.clock.rtt_ms
            if record is not None and ours_ms is not None and peer in record.rtt_ms:
                found.append((ours_ms + record.rtt_ms[peer], connection.peer, connection))
        return [connection for _, _, connection in sorted(found, key=lambda entry: entry[:2])]

    def _direct_wait_s(self, peer: NodeId, relays: Sequence[Connection]) -> float:
        """How long to wait for a direct connection where there is none."""
        if not relays:
            return LINK_WAIT_S
        return 0.0 if self._reach.is_hopeless(peer) else DIRECT_FIRST_S

    def _link_over(self, connection: Connection, lane: Lane, reason: str) -> None:
        """A lane in either direction is closed. Where its connection ends with it, `parted` tells what that means."""
        if connection.lane_over(lane):
            log.debug("a link with %s is over: %s", short_id(connection.peer), reason)
            self._tell(LinkLost(connection.peer, reason, (lane,)))

    async def _direct(self, peer: NodeId, wait_s: float) -> Connection | None:
        with trio.move_on_after(wait_s):
            while not (connection := self._connections.best(peer)):
                self._reach.pursue(peer, polite=False)
                self._reach.hurry(peer)
                await self._joined.wait()
            return connection
        return self._connections.best(peer)

    def _neighbour(self, peer: NodeId) -> Neighbour:
        return self._neighbours.setdefault(peer, Neighbour())
