"""What this node knows of its swarm and says to it, over whatever connections there are. Implements `Swarm`.

Opens no sockets: `host` brings connections, and `reach` is told with whom they are wanted.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterable
from typing import Unpack

import msgspec
import trio

from node.errors import BadWireData, LinkClosed
from node.swarm.address_book import AddressBook
from node.swarm.addresses import Address, parse_all
from node.swarm.base import Arrival, Lane, LinkLost, MemberGone, MemberSeen, Misbehaved, SwarmNews
from node.swarm.connection import Connection
from node.swarm.connections import Connections
from node.swarm.gossip import Flood, Gossip, changed
from node.swarm.heartbeat import PeerClock, interval_s
from node.swarm.identity import Identity
from node.swarm.invitation import Invitation
from node.swarm.links import Links
from node.swarm.muxed_stream import MuxedStream
from node.swarm.news_queue import NewsQueue
from node.swarm.quiet import LogLimiter
from node.swarm.reach import Reach
from node.swarm.record_changes import RecordChanges
from node.swarm.secret import SwarmSecret
from node.swarm.stream_link import StreamLink
from node.swarm.told_trips import ToldTrips
from node.wire.control import Ask, Envelopes, News, Welcome
from node.wire.ids import NodeId, short_id
from node.wire.plans import Plan
from node.wire.records import NodeRecord
from node.wire.statements import Envelope
from node.wire.versions import LEAST_WIRE_VERSION, WIRE_VERSION

log = logging.getLogger(__name__)

REFRESH_S = 1.0
"""We say that we are still here this often, where some member knows us by hearsay alone."""

CONNECTED_REFRESH_S = 2.0
"""And this often where everybody is connected to us: a heartbeat tells them sooner that we are gone, and a record lives
for five seconds."""

SHORTEST_S, LONGEST_PAUSE_S, MEMBERS_PER_S = 0.25, 1.0, 64
"""Between two times that we speak: at most four a second, and no more than once a second in a large swarm, where each
of our words goes to everyone."""

TICK_S, LONELY_TICK_S = 0.25, 2.0
"""The second where nobody else is known: an idle node sleeps."""
STALL_S = 0.75
"""A tick that comes so much later than it should: this process stood still (stopped, or the machine slept)."""

SHUNNED_S = 30.0
"""Who was disconnected for what it sent is not a neighbour again for so long: it would only go on."""

GOODBYE_S = 0.5

ARRIVALS_BOUND = 64
"""Frames between the links and their one reader. Its purpose is only to bridge a few milliseconds of that reader; when
it is full, the links stop reading, and their senders wait."""

INVITED_ADDRESSES = 6
INVITED_OTHERS = 2
"""Other members that an invitation names, so that it works while the inviter is down."""


class Libp2pSwarm:
    """One node among its peers."""

    def __init__(
        self,
        identity: Identity,
        secret: SwarmSecret,
        record: NodeRecord,
        book: AddressBook,
        connections: Connections[Connection],
        reach: Reach,
    ) -> None:
        self.node_id = self.own_id = identity.node_id
        self.secret = secret
        self.life = secrets.token_bytes(32)
        self.versions = LEAST_WIRE_VERSION, WIRE_VERSION
        self.book = book
        self.connections = connections
        self._reach = reach
        self.news = NewsQueue()
        self._arrivals_in, self.arrivals = trio.open_memory_channel[Arrival](ARRIVALS_BOUND)
        self._gossip = Gossip(identity, record, secret.statement_mark())
        self._told_trips = ToldTrips()
        self._log_limiter = LogLimiter()
        self._shunned: dict[NodeId, float] = {}
        """Until when."""
        self._changes: RecordChanges = {}
        self._stirred = trio.Event()
        self._parted = trio.Event()
        self.links = Links(identity, connections, reach, self._gossip, self._arrivals_in, self._tell_of_link)

    # What others use of it: node.swarm.base.Swarm

    def members(self) -> dict[NodeId, NodeRecord]:
        """Every live member's newest record, our own as last published included."""
        return self._gossip.members()

    async def update(self, **changes: Unpack[RecordChanges]) -> None:
        """Change fields of our own record; published within a quarter of a second, or one in a large swarm.

        Raises:
            TypeError: there is no such field.
            BadWireData: a value that other nodes would refuse.
        """
        pending: RecordChanges = {**self._changes, **changes}
        changed(self._gossip.record, pending)
        self._changes = pending
        if any(getattr(self._gossip.record, name) != value for name, value in pending.items()):
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

    def set_aside(self, author: NodeId, aside: bool) -> None:
        """Neither take nor spread plans of this author, and forget the one known if it is theirs; or do so again."""
        self._gossip.set_aside(author, aside)

    async def link(self, peer: NodeId, lane: Lane = "steps") -> StreamLink:
        """One lane of the link to a member, opened on first use. Raises LinkClosed."""
        if peer == self.own_id or not self._gossip.is_member(peer):
            raise LinkClosed(peer, "no live member of this swarm")
        return await self.links.link(peer, lane)

    def invitation(self) -> str:
        """A token that admits its bearer: one word, no spaces."""
        ours = parse_all(self._gossip.record.addresses)
        addresses = [address.at(self.own_id) for address in ours[:INVITED_ADDRESSES]]
        addresses += [address.at(self.own_id) for address in ours[INVITED_ADDRESSES:] if address.is_loopback][:1]
        others = [peer for peer in self.connections.peers() if self._gossip.is_member(peer)][:INVITED_OTHERS]
        addresses += [address.at(peer) for peer in others for address in self.book.addresses(peer)[:1]]
        return Invitation(self.secret.value, tuple(addresses)).token()

    # What connections call: node.swarm.connection.ConnectionOwner

    def joined(self, connection: Connection) -> None:
        """A peer is admitted: greet it with all that we know."""
        now = trio.current_time()
        if self._shunned.get(connection.peer, now) > now:
            connection.end("disconnected", "it was disconnected for what it sent a moment ago")
            return
        first, obsolete = self.connections.add(connection)
        for other in obsolete:
            other.end("disconnected", "a newer connection took its place")
            self.links.ended(other, "a newer connection took its place")
        has_restarted = any(other.life != connection.life for other in obsolete)
        if has_restarted:  # all that its former life held for us is gone, before that life's connection is known dead
            self._tell(self._gossip.disconnected(connection.peer, "disconnected", now, for_good=True))
        if first or has_restarted:
            self.links.clock_of(connection.peer).reset()
            self._gossip.connected(connection.peer, now)
        if (record := self._gossip.members().get(connection.peer)) is not None:
            self._pursue(record, None)
        welcome, own = self._gossip.welcome(connection.peer)
        connection.outbox.welcome(welcome)
        for envelope in own:
            connection.outbox.tell(envelope)
        self.links.joined()
        self._stirred.set()
        log.debug("connected with %s", short_id(connection.peer))

    def told(self, connection: Connection, news: News) -> None:
        """A neighbour told us something. Raises BadWireData where it must be let go for it."""
        if connection not in self.connections.to(connection.peer):
            return  # a newer one took its place: these may be words of a former life
        now = trio.current_time()
        try:
            match news:
                case Envelopes(envelopes):
                    for envelope in envelopes:
                        self._hear(connection, envelope, now)
                case Welcome():
                    if self._gossip.outdo(news.your_seq):
                        self._stirred.set()
                    self._ask(connection, self._gossip.hear_welcome(news, connection.peer, now))
                case Ask():
                    for envelope in self._gossip.answer(news, connection.peer, now):
                        connection.outbox.tell(envelope)
        except Flood as flood:
            self._report(connection.peer, str(flood), now)
            raise

    def _hear(self, connection: Connection, envelope: Envelope, now: float) -> None:
        peer = connection.peer
        if not envelope.node_id:
            envelope = msgspec.structs.replace(envelope, node_id=peer)
        try:
            heard = self._gossip.hear(envelope, peer, now, time.time())
        except Flood:
            raise
        except BadWireData as error:
            if envelope.node_id == peer and connection.peer_most <= self.versions[1]:
                self._report(peer, str(error), now)
                raise
            # Not its own words, or those of a newer program: what we cannot read we do not follow, and that is all
            log.debug("%s told what is left out: %s", short_id(peer), error)
            self._gossip.fault(peer, now)
            return
        if heard.spread:
            self._spread(envelope, peer)
        if heard.released is not None:
            self._spread(heard.released, peer)
        self._tell(heard.news, via=None if envelope.node_id == peer else peer)
        self._ask(connection, heard.ask)
        if envelope.kind == "leave" and envelope.node_id == peer and heard.spread:
            for one in self.connections.to(peer):
                one.end("disconnected", "it said goodbye")

    def _ask(self, connection: Connection, ask: Ask | None) -> None:
        if ask is not None:
            connection.outbox.ask(ask)

    def _report(self, peer: NodeId, what: str, now: float) -> None:
        """Name a member that is disconnected for what it sent, once in a while, and have it stay away for some time."""
        self._shunned = {other: until_s for other, until_s in self._shunned.items() if until_s > now}
        self._shunned[peer] = now + SHUNNED_S
        if self._log_limiter.allows(peer, now):
            record = self._gossip.members().get(peer)
            name = f"{record.name} ({short_id(peer)})" if record is not None else short_id(peer)
            self.news.put(Misbehaved(peer, f"{name} was disconnected: {what}"))

    def clock_of(self, peer: NodeId) -> PeerClock:
        """The one clock of that peer."""
        return self.links.clock_of(peer)

    def beat_s(self, connection: Connection) -> float:
        """How long to wait between two pings on it."""
        return interval_s(len(self.connections.peers()), carries_links=connection.links > 0)

    def protocols(self, connection: Connection) -> tuple[str, ...]:
        """What the peer may open streams for."""
        return self.links.protocols

    async def serve_stream(self, connection: Connection, protocol: str, stream: MuxedStream) -> None:
        """A neighbour opened a stream to us for one of these."""
        await self.links.serve_stream(connection, protocol, stream)

    def parted(self, connection: Connection) -> None:
        """An admitted connection is over."""
        peer = connection.peer
        self.links.ended(connection, "the connection ended")
        cut = connection.lanes_cut()
        if self.connections.remove(connection):
            self._tell(self._gossip.disconnected(peer, connection.why, trio.current_time()))
            if self._gossip.is_member(peer):  # others reach it
                self._tell([LinkLost(peer, connection.reason or "the connection ended")])
            self._stirred.set()
            self._parted.set()
            self._parted = trio.Event()
            self._reach.lost(peer)
        elif cut and (best := self.connections.best(peer)) and best.life == connection.life:
            self._tell([LinkLost(peer, connection.reason, cut)])  # a former life's loss is told already

    # What `host` runs

    def stir(self) -> None:
        """Something that our record tells has changed."""
        self._stirred.set()

    async def publish(self, addresses: Callable[[], Iterable[Address]]) -> None:
        """Say what is new of us, and that we are still here, for as long as we are."""
        while True:
            self._stirred = trio.Event()
            now = trio.current_time()
            members = self._gossip.members()
            rates = self._changes.pop("mbps", self._gossip.record.mbps)
            changes: dict[str, object] = {
                **self._changes,
                "addresses": tuple(str(address) for address in addresses()),
                **self._told_trips.due(
                    now,
                    {c.peer: c.clock.rtt_ms for c in self.connections.best_of_each()},
                    rates,
                    [peer for peer in members if peer != self.own_id and self._reach.is_hopeless(peer)],
                ),
            }
            self._changes = {}
            envelopes, news = self._gossip.publish(changes, int(time.time() * 1000))
            self._tell(news)
            for envelope in envelopes:
                self._spread(envelope, None)
                await trio.lowlevel.checkpoint()  # to a thousand neighbours, each takes some milliseconds
            pause_s = min(LONGEST_PAUSE_S, max(SHORTEST_S, len(members) / MEMBERS_PER_S))
            await trio.sleep(pause_s)
            by_hearsay = self._gossip.is_known_by_hearsay(self.connections.peers())
            with trio.move_on_after((REFRESH_S if by_hearsay else CONNECTED_REFRESH_S) - pause_s):
                await self._stirred.wait()

    async def keep_time(self) -> None:
        """Let what is old expire."""
        ticked_s = trio.current_time()
        while True:
            tick_s = TICK_S if self.connections.peers() or len(self.members()) > 1 else LONELY_TICK_S
            await trio.sleep(tick_s)
            now = trio.current_time()
            stall_s = max(0.0, now - ticked_s - tick_s - STALL_S)
            ticked_s = now
            self._tell(self._gossip.pass_time(now, stall_s))
            for connection in self.connections.redundant(now):
                connection.end("disconnected", "the peer and this node have a better one")
            self.links.tidy(now)

    async def depart(self) -> None:
        """Say goodbye to everyone, in bounded time. What becomes of the others is no news of ours any more.

        Whoever hears it hangs up. We wait for that: yamux throws away what it has received but nobody has read yet
        when a connection ends, so that a goodbye right before our end could be lost.
        """
        self.news.close()
        self._spread(self._gossip.leave(), None)
        with trio.move_on_after(GOODBYE_S):
            while self.connections.peers():
                await self._parted.wait()

    def close(self) -> None:
        """No frame will arrive any more."""
        self._arrivals_in.close()

    def _tell(self, news: Iterable[SwarmNews], via: NodeId | None = None) -> None:
        """To our own reader. `via`: the neighbour from whom it comes."""
        for item in news:
            if isinstance(item, MemberSeen) and item.record.id != self.own_id:
                self._pursue(item.record, via)
            elif isinstance(item, MemberGone) and item.why == "left":
                self._reach.forget(item.node_id)
            self.news.put(item)

    def _tell_of_link(self, lost: LinkLost) -> None:
        self._tell([lost])

    def _pursue(self, record: NodeRecord, source: NodeId | None) -> None:
        """Have a member dialed; remember where it says that it is, once it has proven to be there.

        Members that are only told of may be invented, and so may their addresses: the book has no room for those.
        """
        if record.id in self.connections:
            self.book.learn(record.id, parse_all(record.addresses), time.time())
        self._reach.pursue(record.id, polite=True, source=source)

    def _spread(self, envelope: Envelope, via: NodeId | None) -> None:
        for peer in self._gossip.targets(envelope, via, self.connections.peers()):
            if connection := self.connections.best(peer):
                connection.outbox.tell(envelope)
