"""Opens this node's door, reaches its peers, and runs all that makes it a member of its swarm.

nursery of the swarm
├── front door            accepts connections, each with a task tree of its own (`front_door`, `connection`)
├── dialer                one task per peer that shall be reached (`dialer`), and the connections it makes
├── publisher             our own record, at most four times a second, at least every second (`libp2p_swarm`)
├── clockwork             expiry and redundant connections; the address book on disk; our own addresses
└── LAN discovery         (`lan_discovery`)
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Unpack

import trio
from msgspec.structs import replace

from node.errors import NotAdmitted, SwarmError, UsageError
from node.home import Home
from node.swarm.address_book import AddressBook
from node.swarm.addresses import ADDRESS_LIMIT, Address, parse_all
from node.swarm.connection import Connection
from node.swarm.connections import Connections
from node.swarm.dial_budget import DialBudget
from node.swarm.dial_race import first_to_answer
from node.swarm.dialer import Dialer
from node.swarm.front_door import ADMISSION_S, PendingConnections, answer, open_listeners
from node.swarm.identity import Identity, load_identity
from node.swarm.invitation import Invitation, read_invitation
from node.swarm.lan_discovery import discover
from node.swarm.libp2p_swarm import Libp2pSwarm
from node.swarm.own_addresses import OwnAddresses
from node.swarm.ports import recall_ports, remember_ports
from node.swarm.quiet import LogLimiter, hush_libp2p
from node.swarm.record_changes import RecordChanges
from node.swarm.secret import SwarmSecret, settle_secret
from node.swarm.socket_stream import SocketStream
from node.swarm.suggestions import Suggestions
from node.swarm.upgrade import Upgrader, peer_of
from node.wire.ids import NodeId, short_id
from node.wire.records import NodeRecord

if TYPE_CHECKING:
    from node.task_status import TaskStatus

log = logging.getLogger(__name__)

TTL_S = 5.0
"""Five times the interval at which a record is renewed."""

SAVE_EVERY_S = 5.0
CLOSING_S = 1.0
ANSWERED_LIMIT = 256


@dataclass(frozen=True, slots=True)
class SwarmSettings:
    """What a node needs to be told before it can join."""

    home: Home
    name: str
    """For people."""
    listen: tuple[str, ...] = ()
    """Multiaddresses; port 0 takes the port of last time, or any. Empty: every interface, IPv4 and IPv6."""
    announce: tuple[str, ...] = ()
    """Multiaddresses that peers are told instead of those of `listen`; the local network is told the true ones. Names
    (`/dns4/…`) are looked up again and again."""
    invitations: tuple[str, ...] = ()
    """Tokens from `parallax invite`."""
    discover_lan: bool = True
    machine_id: str = "unknown"
    software: str = "parallax"


@asynccontextmanager
async def open_swarm(settings: SwarmSettings, **record_fields: Unpack[RecordChanges]) -> AsyncIterator[Libp2pSwarm]:
    """This node as a member of its swarm; a `node.swarm.base.Swarm`. `record_fields` complete its first record.

    Resource handling: leaving the block says goodbye, which the others see at once, and closes every socket, within
    about two seconds.

    Raises:
        UsageError: an address in `listen` or `announce` cannot be used.
        BadInvitation: a token that does not decode.
        ConfigError: the key or the secret in the home is damaged.
    """
    hush_libp2p()
    wanted = [_listen_address(text) for text in settings.listen]
    announce = _announce_addresses(settings.announce)
    invitations = [read_invitation(token) for token in settings.invitations]
    identity = load_identity(settings.home)
    secret = settle_secret(settings.home, invitations)
    book = AddressBook(settings.home, secret.mark(), identity.node_id, time.time())
    opened = await open_listeners(wanted, recall_ports(settings.home))
    try:
        own = OwnAddresses(_bound(opened, settings.home), announce)
        record = _first_record(settings, identity.node_id, own, record_fields)
        host = _Host(identity, secret, record, book, own, settings.machine_id)
        valid = [invitation for invitation in invitations if invitation.secret == secret.value]
        async with trio.open_nursery() as nursery:
            await nursery.start(host.run, [listener for _, listener in opened], valid, settings.discover_lan)
            try:
                yield host.swarm
            finally:
                with trio.CancelScope(shield=True), trio.move_on_after(CLOSING_S):
                    await host.swarm.depart()
                nursery.cancel_scope.cancel()
    finally:
        for _, listener in opened:
            listener.socket.close()
    host.swarm.close()
    if book.dirty:
        _save(book)


def _first_record(settings: SwarmSettings, own_id: NodeId, own: OwnAddresses, more: RecordChanges) -> NodeRecord:
    record = NodeRecord(
        node_id=own_id,
        name=settings.name,
        seq=0,
        ttl_s=TTL_S,
        machine_id=settings.machine_id,
        addresses=tuple(str(address) for address in own.told()),
        software=settings.software,
    )
    return replace(record, **more)  # checked when it is published


@dataclass(slots=True)
class _Outcome:
    """What became of a connection that we made."""

    known: trio.Event
    error: NotAdmitted | None = None


class _Host:
    """The tasks of an open swarm."""

    def __init__(
        self,
        identity: Identity,
        secret: SwarmSecret,
        record: NodeRecord,
        book: AddressBook,
        own: OwnAddresses,
        machine_id: str,
    ) -> None:
        self._own, self._machine_id = own, machine_id
        self._upgrader = Upgrader(identity)
        connections: Connections[Connection] = Connections(identity.node_id)
        self._dialer = Dialer(identity.node_id, connections.__contains__, self._is_wanted)
        self.swarm = Libp2pSwarm(identity, secret, record, book, connections, self._dialer)
        self._budget = DialBudget()
        self._suggestions = Suggestions()
        self._log_limiter = LogLimiter()
        self._answered: dict[NodeId, Address] = {}
        """Where peers last answered us. Found on the local network, that may be another place than they announce."""
        self._nursery: trio.Nursery

    async def run(
        self,
        listeners: Sequence[trio.SocketListener],
        invitations: Sequence[Invitation],
        discover_lan: bool,
        task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """All of it, until cancelled."""
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(answer, listeners, PendingConnections(), self._admit)
            self._nursery.start_soon(self.swarm.publish, self._own.told)
            self._nursery.start_soon(self.swarm.keep_time)
            self._nursery.start_soon(self._keep_book)
            self._nursery.start_soon(self._own.watch, self._moved)
            self._pursue_known(invitations)
            self._nursery.start_soon(self._dialer.run, self._dial)
            if discover_lan:
                self._nursery.start_soon(discover, self.swarm.secret, self.swarm.own_id, self._own, self._suggest)
            task_status.started()

    def _pursue_known(self, invitations: Sequence[Invitation]) -> None:
        for address in (address for invitation in invitations for address in invitation.addresses):
            if peer := self.swarm.book.suggest(address):
                log.info("joining: %s is tried at %s", short_id(peer), address.at(None))
        for peer in self.swarm.book.peers():
            self._dialer.pursue(peer, polite=False)

    def _moved(self) -> None:
        """Our addresses have changed: others are told, and whoever was lost with the old network is tried."""
        self.swarm.stir()
        self._dialer.hurry_all()

    def _is_wanted(self, peer: NodeId) -> bool:
        """Whether there is any reason to believe that this peer is one of us and may be found."""
        if peer in self.swarm.members() or self.swarm.book.addresses(peer):
            return True
        return bool(self._suggestions.addresses(peer, trio.current_time()))

    def _suggest(self, address: Address) -> None:
        """An entry of the local network names a place where a member may be."""
        if address.peer == self.swarm.own_id or not self._is_near(address):
            return
        if peer := self._suggestions.add(address, trio.current_time(), self.swarm.members().__contains__):
            self._dialer.pursue(peer, polite=False)
            if peer not in self.swarm.connections:
                self._dialer.hurry(peer)

    def _is_near(self, address: Address) -> bool:
        """Whether it can be of our local network: no multicast comes from elsewhere."""
        return any(address.is_near(ours) for ours in self._own.local)

    async def _admit(self, socket: SocketStream, leave_vestibule: Callable[[], None]) -> None:
        """Serve one accepted connection to its end. A door: whatever a stranger provokes stops here."""
        deadline_s = trio.current_time() + ADMISSION_S
        try:
            with trio.fail_at(deadline_s):
                muxed = await self._upgrader.accepted(socket)
            connection = Connection(self.swarm, muxed, socket, peer_of(muxed), dialed=False)
            await connection.serve(deadline_s, leave_vestibule)
        except NotAdmitted as error:
            self._not_admitted(error)
        except Exception as error:
            log.debug("a stranger was not let in: %r", error)

    async def _dial(self, peer: NodeId, source: NodeId | None) -> None:
        """Connect to a peer and have it admitted. Raises SwarmError where that fails."""
        now = trio.current_time()
        known = self._places(peer)
        places = self._budget.choose(peer, known, source or peer, now)
        if known and not places:
            raise SwarmError("too many connections have been tried in the last minute")
        muxed, socket = await first_to_answer(places, lambda socket: self._upgrader.dialed(socket, peer))
        connection = Connection(self.swarm, muxed, socket, peer, dialed=True)
        outcome = _Outcome(trio.Event())
        place = socket.get_remote_address()
        self._nursery.start_soon(self._serve_dialed, connection, outcome)
        await outcome.known.wait()
        if outcome.error is not None:
            self._not_admitted(outcome.error)
            raise outcome.error
        if place is not None:
            self._answered.pop(peer, None)  # the latest comes last, and the eldest goes
            while len(self._answered) >= ANSWERED_LIMIT:
                del self._answered[next(iter(self._answered))]
            self._answered[peer] = Address("ip6" if ":" in place[0] else "ip4", *place)

    async def _serve_dialed(self, connection: Connection, outcome: _Outcome) -> None:
        try:
            await connection.serve(trio.current_time() + ADMISSION_S, outcome.known.set)
        except NotAdmitted as error:
            outcome.error = error
        except Exception as error:  # a door as in `_admit`: whatever a peer provokes costs its connection alone
            log.warning("the connection with %s broke: %r", short_id(connection.peer), error)
            outcome.error = NotAdmitted(connection.peer, "its connection broke", refused=False)
        finally:
            outcome.known.set()

    def _not_admitted(self, error: NotAdmitted) -> None:
        if not error.refused:
            log.debug("%s", error)
        elif self._log_limiter.allows(error.peer, trio.current_time()):
            log.warning("%s", error)

    def _places(self, peer: NodeId) -> list[Address]:
        """Where to try: where it answered before or is said to be here, what it says of itself, what is remembered.

        A loopback address means this machine to whoever dials it, so it serves only for peers on it, and comes first
        there; of a peer that nothing is known of, it may be tried last.
        """
        record = self.swarm.members().get(peer)
        told = parse_all(record.addresses) if record else ()
        answered = (self._answered[peer],) if peer in self._answered else ()
        suggested = self._suggestions.addresses(peer, trio.current_time())
        places = list(dict.fromkeys((*answered, *suggested, *told, *self.swarm.book.addresses(peer))))
        if record is not None and record.machine_id != self._machine_id:
            return [place for place in places if not place.is_loopback]
        return sorted(places, key=lambda place: place.is_loopback is (record is None))

    async def _keep_book(self) -> None:
        while True:
            await trio.sleep(SAVE_EVERY_S)
            if self.swarm.book.dirty:
                await trio.to_thread.run_sync(_save, self.swarm.book)


def _save(book: AddressBook) -> None:
    """A full disk costs the memory of where the others are, not the node."""
    try:
        book.save()
    except OSError as error:
        log.warning("the address book could not be saved: %s", error)


def _listen_address(text: str) -> Address:
    try:
        address = Address.parse(text)
    except ValueError as error:
        raise UsageError(f"--listen: {error}") from error
    if address.peer is not None or address.kind not in ("ip4", "ip6"):
        raise UsageError(f"--listen {text}: an IP address of this machine is needed, or 0.0.0.0 for all")
    return address


def _announce_addresses(texts: Sequence[str]) -> tuple[Address, ...]:
    found: dict[Address, None] = {}
    for text in texts:
        try:
            address = Address.parse(text)
        except ValueError as error:
            raise UsageError(f"--announce: {error}") from error
        if address.peer is not None or address.is_any or address.port == 0:
            raise UsageError(f"--announce {text}: the address and port at which others reach this node are needed")
        found[address] = None
    if len(found) > ADDRESS_LIMIT:
        raise UsageError(f"--announce: {len(found)} addresses, at most {ADDRESS_LIMIT} are told")
    return tuple(found)


def _bound(opened: Sequence[tuple[Address, trio.SocketListener]], home: Home) -> list[Address]:
    """The wanted addresses with the ports they got, which are remembered."""
    ports = {wanted: int(listener.socket.getsockname()[1]) for wanted, listener in opened}
    remember_ports(home, {str(wanted): port for wanted, port in ports.items() if wanted.port == 0})
    return [Address(wanted.kind, wanted.host, port) for wanted, port in ports.items()]
