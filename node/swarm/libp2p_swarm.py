"""What this node knows of its swarm and says to it, over whatever connections there are. Implements `Swarm`.

Opens no sockets: `host` brings connections, and is asked for one by `reach`.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Callable, Iterable
from functools import partial

import msgspec
import trio

from node.errors import BadWireData, LinkClosed
from node.swarm.address_book import AddressBook
from node.swarm.addresses import Address, parse_all
from node.swarm.base import Arrival, LinkLost, MemberGone, MemberSeen, SwarmNews
from node.swarm.connection import LINK_PROTOCOL, Connection
from node.swarm.connections import Connections
from node.swarm.gossip import Gossip
from node.swarm.identity import Identity
from node.swarm.invitation import Invitation
from node.swarm.muxed_stream import MuxedStream
from node.swarm.secret import SwarmSecret
from node.swarm.stream_link import StreamLink, receive_frames
from node.wire.codec import decode, encode
from node.wire.control import Told
from node.wire.ids import NodeId, short_id
from node.wire.plans import Plan
from node.wire.records import RECORD_LIMIT_BYTES, Envelope, NodeRecord

log = logging.getLogger(__name__)

REFRESH_S = 1.0
SHORTEST_S = 0.25
"""Between two records of ours: at most four a second."""

TICK_S = 0.25
STALL_S = 1.0
"""A tick that comes later than this means that this process stood still (stopped, or the machine slept)."""

GOODBYE_S = 0.5
LINK_WAIT_S = 3.0
ROUND_TRIPS = 600
"""How many peers' round trips our record tells: with the longest ids 42 KiB of the 64 that it may have. Who knows the
secret can come with any number of identities."""

LONGEST_ROUND_TRIP_MS = 1e9
"""As a record takes; a process that was stopped for weeks would measure more."""

LINKS_PER_CONNECTION = 4
"""Inbound; an honest neighbour has one, and for a moment two when it had to open it again."""

ARRIVALS_BOUND = 64
"""Frames between the links and their one reader. Its purpose is only to bridge a few milliseconds of that reader; when
it is full, the links stop reading, and their senders wait."""

INVITED_ADDRESSES = 6
INVITED_OTHERS = 2
"""Other members that an invitation names, so that it works while the inviter is down."""


class Libp2pSwarm:
    """One node among its peers."""

    def __init__(self, identity: Identity, secret: SwarmSecret, record: NodeRecord, book: AddressBook) -> None:
        self.node_id = self.own_id = identity.node_id
        self.secret = secret
        self.life = secrets.token_bytes(32)
        self.book = book
        self.connections: Connections[Connection] = Connections(identity.node_id)
        # No bound: members speak four times a second at most, and a reader that is gone ends the whole node
        self._news_in, self.news = trio.open_memory_channel[SwarmNews](math.inf)
        self._arrivals_in, self.arrivals = trio.open_memory_channel[Arrival](ARRIVALS_BOUND)
        self._gossip = Gossip(identity, record)
        self._changes: dict[str, object] = {}
        self._stirred = trio.Event()
        self._joined = trio.Event()
        self._parted = trio.Event()
        self._links: dict[NodeId, StreamLink] = {}
        self._opening: dict[NodeId, trio.Lock] = {}
        self._link_streams: dict[Connection, int] = {}
        self._cut: set[Connection] = set()
        """Those that end, and had a link in use."""
        self.pursue: Callable[[NodeId], None] = lambda peer: None
        """Called for every member that we learn of; set by `host`."""
        self.forget: Callable[[NodeId], None] = lambda peer: None
        """Called for a member that said goodbye; set by `host`."""
        self.hurry: Callable[[NodeId], None] = lambda peer: None
        """Called when a member is needed now; set by `host`."""
        self.lost: Callable[[NodeId], None] = lambda peer: None
        """Called when the last connection to a peer ended; set by `host`."""

    # What others use of it: node.swarm.base.Swarm

    def members(self) -> dict[NodeId, NodeRecord]:
        """Every live member's newest record, our own as last published included."""
        return self._gossip.members()

    async def update(self, **changes: object) -> None:
        """Change fields of our own record; published within a quarter of a second.

        Raises:
            TypeError: there is no such field.
            BadWireData: a value that other nodes would refuse.
        """
        pending = self._changes | changes
        draft = msgspec.structs.replace(self._gossip.record, **pending)
        decode(encode(draft), NodeRecord, where="our own record", limit_bytes=RECORD_LIMIT_BYTES)
        self._changes = pending
        self._stirred.set()
        await trio.lowlevel.checkpoint()

    async def publish_plan(self, plan: Plan) -> bool:
        """Sign a plan of ours and spread it; False where it is outranked already.

        Raises:
            BadWireData: its author is not this node, or it is too large.
        """
        envelope = self._gossip.publish_plan(plan)
        if envelope is not None:
            self._spread(envelope, None)
        await trio.lowlevel.checkpoint()
        return envelope is not None

    async def link(self, peer: NodeId) -> StreamLink:
        """The link to a member, opened on first use. Raises LinkClosed."""
        if peer == self.own_id or not self._gossip.is_member(peer):
            raise LinkClosed(peer, "no live member of this swarm")
        async with self._opening.setdefault(peer, trio.Lock()):
            link = self._links.get(peer)
            if link is None or not link.is_open:
                connection = await self._reach(peer)
                stream = await connection.open(LINK_PROTOCOL)
                if connection.is_over:
                    raise LinkClosed(peer, "the connection ended")
                connection.links += 1
                link = self._links[peer] = StreamLink(stream, connection, partial(self._link_over, connection))
            return link

    def invitation(self) -> str:
        """A token that admits its bearer: one word, no spaces."""
        ours = parse_all(self._gossip.record.addresses)
        addresses = [address.at(self.own_id) for address in ours[:INVITED_ADDRESSES]]
        addresses += [address.at(self.own_id) for address in ours[INVITED_ADDRESSES:] if address.is_loopback][:1]
        others = [peer for peer in self.connections.peers() if self._gossip.is_member(peer)][:INVITED_OTHERS]
        addresses += [address.at(peer) for peer in others for address in self.book.addresses(peer)[:1]]
        return Invitation(self.secret.value, tuple(addresses)).token()

    # What connections call: node.swarm.connection.AroundConnection

    def joined(self, connection: Connection) -> None:
        """A peer is admitted: greet it with all that we know."""
        now = trio.current_time()
        first, obsolete = self.connections.add(connection)
        for other in obsolete:
            other.end("disconnected", "a newer connection took its place")
            self._close_link(other, "a newer connection took its place")
        has_restarted = any(other.life != connection.life for other in obsolete)
        if has_restarted:  # all that its former life held for us is gone, before that life's connection is known dead
            self._tell(self._gossip.disconnected(connection.peer, "disconnected", now))
        if first or has_restarted:
            self._gossip.connected(connection.peer, now)
        connection.outbox.welcome(self._gossip.welcome(), self._gossip.seq_of(connection.peer))
        self._joined.set()
        self._joined = trio.Event()
        self._stirred.set()
        log.debug("connected with %s", short_id(connection.peer))

    def told(self, connection: Connection, told: Told) -> None:
        """A neighbour told us something. Raises BadWireData where it must be let go for it."""
        if connection not in self.connections.to(connection.peer):
            return  # a newer one took its place: these may be words of a former life
        if told.welcome and self._gossip.outdo(told.your_seq):
            self._stirred.set()
        for envelope in told.envelopes:
            heard = self._gossip.hear(envelope, connection.peer, trio.current_time(), welcome=told.welcome)
            if heard.spread:
                self._spread(envelope, connection.peer)
            if heard.released is not None:
                self._spread(heard.released, connection.peer)
            self._tell(heard.news)
            if envelope.kind == "leave" and envelope.node_id == connection.peer and heard.spread:
                for one in self.connections.to(connection.peer):
                    one.end("disconnected", "it said goodbye")

    async def serve_link(self, connection: Connection, stream: MuxedStream) -> None:
        """A neighbour opened a link to us: hand its frames over until it ends."""
        in_use = self._link_streams.get(connection, 0)
        if in_use >= LINKS_PER_CONNECTION:
            raise BadWireData(f"connection of {short_id(connection.peer)}", "too many links at once")
        self._link_streams[connection] = in_use + 1
        connection.links += 1
        try:
            await receive_frames(stream, connection, self._arrivals_in)
        finally:
            self._link_streams[connection] -= 1
            self._link_over(connection, "the member closed it")

    def parted(self, connection: Connection) -> None:
        """An admitted connection is over."""
        self._link_streams.pop(connection, None)
        self._close_link(connection, "the connection ended")
        carried_links = connection in self._cut
        self._cut.discard(connection)
        if self.connections.remove(connection):
            self._tell(self._gossip.disconnected(connection.peer, connection.why, trio.current_time()))
            self._stirred.set()
            self._parted.set()
            self._parted = trio.Event()
            self.lost(connection.peer)
        elif carried_links and (best := self.connections.best(connection.peer)) and best.life == connection.life:
            self._tell([LinkLost(connection.peer, connection.reason)])  # a former life's loss is told already

    # What `host` runs

    async def publish(self, addresses: Callable[[], Iterable[Address]]) -> None:
        """Say what is new of us, and that we are still here, for as long as we are."""
        while True:
            self._stirred = trio.Event()
            changes = self._changes | {
                "rtt_ms": self._rtt_ms(),
                "addresses": tuple(str(address) for address in addresses()),
            }
            self._changes = {}
            envelope, news = self._gossip.publish(changes, int(time.time() * 1000))
            self._spread(envelope, None)
            self._tell(news)
            await trio.sleep(SHORTEST_S)
            with trio.move_on_after(REFRESH_S - SHORTEST_S):
                await self._stirred.wait()

    async def keep_time(self) -> None:
        """Let what is old expire."""
        ticked_s = trio.current_time()
        while True:
            await trio.sleep(TICK_S)
            now = trio.current_time()
            stall_s = max(0.0, now - ticked_s - STALL_S)
            ticked_s = now
            self._tell(self._gossip.pass_time(now, stall_s))
            for connection in self.connections.redundant(now):
                connection.end("disconnected", "the peer and this node have a better one")

    async def depart(self) -> None:
        """Say goodbye to everyone, in bounded time. What becomes of the others is no news of ours any more.

        Whoever hears it hangs up. We wait for that: yamux throws away what it has received but nobody has read yet
        when a connection ends, so that a goodbye right before our end could be lost.
        """
        self._news_in.close()
        self._spread(self._gossip.leave(), None)
        with trio.move_on_after(GOODBYE_S):
            while self.connections.peers():
                await self._parted.wait()

    def close(self) -> None:
        """No frame will arrive any more."""
        self._arrivals_in.close()

    def _tell(self, news: Iterable[SwarmNews]) -> None:
        for item in news:
            if isinstance(item, MemberSeen) and item.record.id != self.own_id:
                self.book.learn(item.record.id, parse_all(item.record.addresses), time.time())
                self.pursue(item.record.id)
            elif isinstance(item, MemberGone) and item.why == "left":
                self.forget(item.node_id)
            try:
                self._news_in.send_nowait(item)
            except (trio.ClosedResourceError, trio.BrokenResourceError):
                return

    def _close_link(self, connection: Connection, reason: str) -> None:
        """Our link to the peer, if this connection carries it."""
        link = self._links.get(connection.peer)
        if link is not None and link.connection is connection:
            del self._links[connection.peer]
            link.close(reason)

    def _link_over(self, connection: Connection, reason: str) -> None:
        """A link in either direction is closed. Where its connection ends with it, `parted` tells what that means."""
        connection.links -= 1
        if connection.is_ending:
            self._cut.add(connection)
        else:
            log.debug("a link with %s is over: %s", short_id(connection.peer), reason)
            self._tell([LinkLost(connection.peer, reason)])

    def _spread(self, envelope: Envelope, via: NodeId | None) -> None:
        for peer in self._gossip.targets(envelope, via, self.connections.peers()):
            if connection := self.connections.best(peer):
                connection.outbox.tell(envelope)

    def _rtt_ms(self) -> dict[str, float]:
        """Round trips to those we are connected to; small changes are no news and keep the old figure."""
        told = self._gossip.record.rtt_ms
        found: dict[str, float] = {}
        for connection in self.connections.best_of_each():
            rtt_ms = connection.clock.rtt_ms
            if rtt_ms is None:
                continue
            if len(found) == ROUND_TRIPS:
                break
            rtt_ms = min(rtt_ms, LONGEST_ROUND_TRIP_MS)
            before = told.get(connection.peer)
            steady = before is not None and abs(rtt_ms - before) <= max(0.5, 0.25 * before)
            found[connection.peer] = before if before is not None and steady else round(rtt_ms, 2)
        return found

    async def _reach(self, peer: NodeId) -> Connection:
        with trio.move_on_after(LINK_WAIT_S):
            while True:
                if connection := self.connections.best(peer):
                    return connection
                self.hurry(peer)
                await self._joined.wait()
        raise LinkClosed(peer, "it cannot be reached directly")
