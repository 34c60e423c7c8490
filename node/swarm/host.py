"""Opens this node's door, reaches its peers, and runs all that makes it a member of its swarm.

nursery of the swarm
├── front door            accepts connections, each with a task tree of its own (`front_door`, `connection`)
├── dialer                one task per peer that shall be reached, and the connections it makes (`dialer`)
├── publisher             our own record, at most four times a second, at least every second (`neighbourhood`)
├── clockwork             expiry and redundant connections; the address book on disk
└── LAN discovery         (`lan_discovery`)
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from node.errors import NotAdmitted, UsageError
from node.home import Home
from node.swarm.address_book import AddressBook
from node.swarm.addresses import ADDRESS_LIMIT, Address, announced, parse_all
from node.swarm.connection import Connection
from node.swarm.dialer import Dialer, first_to_answer
from node.swarm.front_door import ADMISSION_S, PendingConnections, answer, open_listeners
from node.swarm.identity import Identity, load_identity
from node.swarm.invitation import Invitation, read_invitation
from node.swarm.lan_discovery import discover
from node.swarm.libp2p_swarm import Libp2pSwarm
from node.swarm.ports import recall_ports, remember_ports
from node.swarm.quiet import Seldom, hush_libp2p
from node.swarm.secret import settle_secret
from node.swarm.socket_stream import SocketStream
from node.swarm.upgrade import Upgrader, peer_of
from node.wire.ids import NodeId, short_id
from node.wire.records import NodeRecord

log = logging.getLogger(__name__)

TTL_S = 5.0
"""Five times the interval at which a record is renewed."""

SAVE_EVERY_S = 2.0
INTERFACES_EVERY_S = 30.0
"""A laptop may change its network; asking the system costs about a millisecond."""

CLOSING_S = 1.0


@dataclass(frozen=True, slots=True)
class SwarmSettings:
    """What a node needs to be told before it can join."""

    home: Home
    name: str
    """For people."""
    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/0",)
    """Multiaddresses; port 0 takes the port of last time, or any."""
    announce: tuple[str, ...] = ()
    """Multiaddresses that peers are told instead of those of `listen`; the local network is told the true ones."""
    invitations: tuple[str, ...] = ()
    """Tokens from `parallax invite`."""
    discover_lan: bool = True
    machine_id: str = "unknown"
    software: str = "parallax"


@asynccontextmanager
async def open_swarm(settings: SwarmSettings, **record_fields: object) -> AsyncIterator[Libp2pSwarm]:
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
    listeners = await open_listeners(wanted, recall_ports(settings.home))
    try:
        bound = _bound(wanted, listeners)
        remember_ports(settings.home, {str(w): b.port for w, b in zip(wanted, bound, strict=True) if w.port == 0})
        fields: dict[str, object] = {
            "node_id": identity.node_id,
            "name": settings.name,
            "seq": 0,
            "ttl_s": TTL_S,
            "machine_id": settings.machine_id,
            "addresses": tuple(str(address) for address in announce or announced(bound)),
            "software": settings.software,
        }
        record = NodeRecord(**(fields | record_fields))  # type: ignore[arg-type]  # checked when it is published
        swarm = Libp2pSwarm(identity, secret, record, book)
        async with trio.open_nursery() as nursery:
            host = _Host(nursery, swarm, identity, bound, announce, settings.machine_id)
            host.begin(listeners, [i for i in invitations if i.secret == secret.value], lan=settings.discover_lan)
            try:
                yield swarm
            finally:
                with trio.CancelScope(shield=True), trio.move_on_after(CLOSING_S):
                    await swarm.depart()
                nursery.cancel_scope.cancel()
    finally:
        for listener in listeners:
            listener.socket.close()
    swarm.close()
    if book.dirty:
        _save(book)


@dataclass(slots=True)
class _Outcome:
    """What became of a connection that we made."""

    known: trio.Event
    error: NotAdmitted | None = None


class _Host:
    """The tasks of an open swarm."""

    def __init__(
        self,
        nursery: trio.Nursery,
        swarm: Libp2pSwarm,
        identity: Identity,
        bound: list[Address],
        announce: tuple[Address, ...],
        machine_id: str,
    ) -> None:
        self._nursery, self._swarm, self._machine_id = nursery, swarm, machine_id
        self._bound, self._announce = bound, announce
        self._upgrader = Upgrader(identity)
        self._dialer = Dialer(nursery, identity.node_id, swarm.connections.__contains__, self._dial)
        self._seldom = Seldom()
        self._answered: dict[NodeId, Address] = {}
        """Where members last answered us. Found on the local network, that may be another place than they announce."""
        self._interfaces: tuple[Address, ...] = ()
        self._interfaces_s = -INTERFACES_EVERY_S
        swarm.pursue = lambda peer: self._dialer.pursue(peer, polite=True)
        swarm.forget = self._forget
        swarm.hurry = self._dialer.hurry
        swarm.lost = self._dialer.lost

    def begin(self, listeners: list[trio.SocketListener], invitations: Sequence[Invitation], *, lan: bool) -> None:
        """Start everything; nothing of it ends before the nursery."""
        self._nursery.start_soon(answer, listeners, PendingConnections(), self._admit)
        self._nursery.start_soon(self._swarm.publish, self._addresses)
        self._nursery.start_soon(self._swarm.keep_time)
        self._nursery.start_soon(self._keep_book)
        for address in (address for invitation in invitations for address in invitation.addresses):
            self._suggest(address)
        for peer in self._swarm.book.peers():
            self._dialer.pursue(peer, polite=False)
        if lan:
            places = announced(self._bound)
            self._nursery.start_soon(discover, self._swarm.secret, self._swarm.own_id, places, self._suggest)

    def _suggest(self, address: Address) -> None:
        """Somebody named a place where a member may be."""
        if peer := self._swarm.book.suggest(address):
            self._dialer.pursue(peer, polite=False)
            if peer not in self._swarm.connections:
                self._dialer.hurry(peer)

    async def _admit(self, socket: SocketStream, leave_vestibule: Callable[[], None]) -> None:
        """Serve one accepted connection to its end. A door: whatever a stranger provokes stops here."""
        deadline_s = trio.current_time() + ADMISSION_S
        try:
            with trio.fail_at(deadline_s):
                muxed = await self._upgrader.accepted(socket)
            connection = Connection(self._swarm, muxed, socket, peer_of(muxed), dialed=False)
            await connection.serve(deadline_s, leave_vestibule)
        except NotAdmitted as error:
            self._not_admitted(error)
        except Exception as error:
            log.debug("a stranger was not let in: %r", error)

    async def _dial(self, peer: NodeId) -> None:
        """Connect to a peer and have it admitted. Raises SwarmError where that fails."""
        muxed, socket = await first_to_answer(self._places(peer), lambda socket: self._upgrader.dialed(socket, peer))
        connection = Connection(self._swarm, muxed, socket, peer, dialed=True)
        outcome = _Outcome(trio.Event())
        place = socket.get_remote_address()
        self._nursery.start_soon(self._serve_dialed, connection, outcome)
        await outcome.known.wait()
        if outcome.error is not None:
            self._not_admitted(outcome.error)
            raise outcome.error
        if place is not None:
            self._answered[peer] = Address("ip6" if ":" in place[0] else "ip4", *place)

    def _forget(self, peer: NodeId) -> None:
        """It said goodbye."""
        self._answered.pop(peer, None)
        self._dialer.forget(peer)

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
        elif self._seldom.now(error.peer, trio.current_time()):
            log.warning("%s", error)

    def _places(self, peer: NodeId) -> list[Address]:
        """Where to try: what the peer says of itself, where it answered before, then what is remembered.

        A loopback address means this machine to whoever dials it, so it serves only for peers on it, and comes first
        there; of a peer that nothing is known of, it may be tried last.
        """
        record = self._swarm.members().get(peer)
        told = parse_all(record.addresses) if record else ()
        answered = (self._answered[peer],) if peer in self._answered else ()
        places = list(dict.fromkeys((*told, *answered, *self._swarm.book.addresses(peer))))
        if record is not None and record.machine_id != self._machine_id:
            return [place for place in places if not place.is_loopback]
        return sorted(places, key=lambda place: place.is_loopback is (record is None))

    def _addresses(self) -> tuple[Address, ...]:
        """What peers are told now."""
        if self._announce:
            return self._announce
        if trio.current_time() - self._interfaces_s >= INTERFACES_EVERY_S:
            self._interfaces, self._interfaces_s = announced(self._bound), trio.current_time()
        return self._interfaces

    async def _keep_book(self) -> None:
        while True:
            await trio.sleep(SAVE_EVERY_S)
            if self._swarm.book.dirty:
                await trio.to_thread.run_sync(_save, self._swarm.book)


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


def _bound(wanted: Sequence[Address], listeners: Sequence[trio.SocketListener]) -> list[Address]:
    """The wanted addresses with the ports they got."""
    ports = [int(listener.socket.getsockname()[1]) for listener in listeners]
    return [Address(a.kind, a.host, port) for a, port in zip(wanted, ports, strict=True)]
