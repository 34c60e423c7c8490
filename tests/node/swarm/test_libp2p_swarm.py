"""What becomes of members, links and our own record as connections come and go; no sockets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
import trio
import trio.testing
from msgspec.structs import replace
from trio.testing import MockClock

from node.errors import BadWireData
from node.home import Home
from node.swarm.address_book import AddressBook
from node.swarm.base import Lane, LinkLost, MemberGone, MemberSeen, Misbehaved, SwarmNews
from node.swarm.connection import Connection
from node.swarm.connections import Connections
from node.swarm.control_queue import ControlQueue
from node.swarm.heartbeat import PeerClock
from node.swarm.identity import Identity
from node.swarm.libp2p_swarm import SHUNNED_S, Libp2pSwarm
from node.swarm.secret import SwarmSecret
from node.wire.control import Envelopes, Pong, Welcome
from node.wire.ids import NodeId
from node.wire.records import NodeRecord
from node.wire.versions import WIRE_VERSION
from tests.node.swarm.words import told_by

Make = Callable[..., NodeRecord]


class Link:
    """An inbound link on which nothing comes, until it breaks."""

    def __init__(self) -> None:
        self.broken = trio.Event()

    async def read_exactly(self, n: int) -> bytes:
        await self.broken.wait()
        raise EOFError


class NoReach:
    """Nobody dials; who would be, and on whose word, is noted."""

    def __init__(self) -> None:
        self.pursued: dict[NodeId, NodeId | None] = {}

    def pursue(self, peer: NodeId, *, polite: bool, source: NodeId | None = None) -> None:
        self.pursued.setdefault(peer, source)

    def forget(self, peer: NodeId) -> None:
        pass

    def hurry(self, peer: NodeId) -> None:
        pass

    def lost(self, peer: NodeId) -> None:
        pass

    def is_hopeless(self, peer: NodeId) -> bool:
        return False


class Wire:
    """What a neighbourhood knows of a connection, without one."""

    def __init__(self, peer: NodeId, *, dialed: bool = True, life: bytes = b"1", rtt_s: float = 0.01) -> None:
        self.peer, self.dialed, self.life = peer, dialed, life
        self.admitted_s = self.heard_s = trio.current_time()
        self.lanes: Counter[Lane] = Counter()
        self.inbound_links = 0
        self.cut: set[Lane] = set()
        self.why, self.reason = "disconnected", ""
        self.is_ending = False
        self.peer_most = WIRE_VERSION
        self.clock, self.outbox = PeerClock(), ControlQueue()
        self.clock.pong(Pong(self.clock.ping(0.0), 0.0, 0.0), rtt_s)

    links, lane_over, lanes_cut = Connection.links, Connection.lane_over, Connection.lanes_cut

    def end(self, why: str, reason: str) -> None:
        self.why, self.reason, self.is_ending = why, reason, True

    def start(self, work: object, *args: object) -> bool:
        return False

    def real(self) -> Connection:
        return cast(Connection, self)


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=MockClock(autojump_threshold=0))


def news_of(swarm: Libp2pSwarm) -> list[SwarmNews]:
    found = []
    while True:
        try:
            found.append(swarm.news.receive_nowait())
        except trio.WouldBlock:
            return found


@pytest.fixture
def open_neighbourhood(ada: Identity, make_home: Callable[..., Home], record_of: Make) -> Callable[..., Any]:
    """To be called within trio."""

    @contextmanager
    def make(**fields: Any) -> Iterator[Libp2pSwarm]:
        book = AddressBook(make_home(), "swarm", ada.node_id, 0.0)
        connections: Connections[Connection] = Connections(ada.node_id)
        record = record_of(ada.node_id, 0, **fields)
        yield Libp2pSwarm(ada, SwarmSecret(b"s" * 32), record, book, connections, NoReach())

    return make


def test_whatever_neighbours_there_are_our_record_is_published(open_neighbourhood: Any) -> None:
    """A member gone bad may come with any number of identities, and a process that stood still has odd round trips."""

    async def main() -> None:
        with open_neighbourhood(problem="€" * 512) as swarm:
            for number in range(2000):
                swarm.joined(Wire(NodeId(f"12D3KooW{number:044}"), rtt_s=1e9).real())
                await trio.lowlevel.checkpoint()
            with trio.move_on_after(1.5):
                await swarm.publish(lambda: ())
            (news,) = news_of(swarm)
            assert isinstance(news, MemberSeen)
            assert len(news.record.rtt_ms) >= 500

    run(main)


def test_no_number_that_a_neighbour_names_ends_the_publisher(open_neighbourhood: Any, bob: Identity) -> None:
    async def main() -> None:
        with open_neighbourhood() as swarm:
            connection = Wire(bob.node_id).real()
            swarm.joined(connection)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(swarm.publish, lambda: ())
                await trio.sleep(0.1)
                swarm.told(connection, Welcome(2**53, b""))
                await trio.sleep(2)
                await swarm.update(sessions=1)
                await trio.sleep(2)
                nursery.cancel_scope.cancel()
            assert swarm.members()[swarm.node_id].sessions == 1

    run(main)


def test_a_peer_that_restarts_is_gone_before_it_is_seen_again(
    open_neighbourhood: Any, bob: Identity, record_of: Make
) -> None:
    async def main() -> None:
        with open_neighbourhood() as swarm:

            def says(connection: Wire, seq: int) -> None:
                words = told_by(bob, record_of(bob.node_id, seq), swarm.secret.statement_mark())
                swarm.told(connection.real(), Envelopes(words))

            former = Wire(bob.node_id, life=b"1")
            swarm.joined(former.real())
            says(former, 1)
            assert news_of(swarm) == [MemberSeen(record_of(bob.node_id, 1))]
            async with trio.open_nursery() as nursery:
                link = Link()
                nursery.start_soon(swarm.links.serve_link, former, "steps", link)
                await trio.testing.wait_all_tasks_blocked()
                now, second = Wire(bob.node_id, life=b"2"), Wire(bob.node_id, life=b"2")
                swarm.joined(now.real())
                assert former.is_ending
                says(former, 2)
                says(now, 3)
                swarm.joined(second.real())
                link.broken.set()
            swarm.parted(former.real())
            gone, again = news_of(swarm)
            assert again == MemberSeen(record_of(bob.node_id, 3))
            assert gone == MemberGone(bob.node_id, record_of(bob.node_id).name, "disconnected")
            assert bob.node_id in swarm.members()

    run(main)


def test_a_connection_that_ends_beside_another_is_told_only_where_it_carried_a_link(
    open_neighbourhood: Any, bob: Identity
) -> None:
    async def main() -> None:
        with open_neighbourhood() as swarm:
            one, two, three = (Wire(bob.node_id) for _ in range(3))
            for wire in (one, two, three):
                swarm.joined(wire.real())
            one.end("silent", "nothing came")
            swarm.parted(one.real())
            assert news_of(swarm) == []
            async with trio.open_nursery() as nursery:
                links = [Link(), Link()]
                for link in links:
                    nursery.start_soon(swarm.links.serve_link, two, "bulk", link)
                await trio.testing.wait_all_tasks_blocked()
                assert two.links == 2
                two.end("silent", "nothing came")
                for link in links:
                    link.broken.set()
            swarm.parted(two.real())
            assert news_of(swarm) == [LinkLost(bob.node_id, "nothing came", ("bulk",))]
            assert two.links == 0

    run(main)


def test_a_link_that_ends_alone_is_told(open_neighbourhood: Any, bob: Identity) -> None:
    async def main() -> None:
        with open_neighbourhood() as swarm:
            wire, link = Wire(bob.node_id), Link()
            swarm.joined(wire.real())
            link.broken.set()
            await swarm.links.serve_link(wire.real(), "steps", link)
            assert news_of(swarm) == [LinkLost(bob.node_id, "the member closed it", ("steps",))]
            assert wire.links == 0

    run(main)


def talkative(who: Identity, record: NodeRecord, mark: bytes, count: int) -> Iterator[Envelopes]:
    """So many statuses without a pause."""
    for number in range(count):
        (*_, status) = told_by(who, replace(record, seq=record.seq + number), mark)
        yield Envelopes((status,))


def test_who_floods_is_let_go_named_once_and_kept_away_while_the_honest_are_heard(
    open_neighbourhood: Any, bob: Identity, eve: Identity, record_of: Make
) -> None:
    async def main() -> None:
        with open_neighbourhood() as swarm:
            mark = swarm.secret.statement_mark()
            wires = {each.node_id: Wire(each.node_id) for each in (bob, eve)}
            for who in (bob, eve):
                swarm.joined(wires[who.node_id].real())
                swarm.told(wires[who.node_id].real(), Envelopes(told_by(who, record_of(who.node_id, 1), mark)))
            news_of(swarm)
            with pytest.raises(BadWireData, match="without pause"):
                for told in talkative(bob, record_of(bob.node_id, 10), mark, 400):
                    swarm.told(wires[bob.node_id].real(), told)
                    await trio.lowlevel.checkpoint()
            swarm.parted(wires[bob.node_id].real())
            assert [item.node_id for item in news_of(swarm) if isinstance(item, Misbehaved)] == [bob.node_id]
            again = Wire(bob.node_id)
            swarm.joined(again.real())
            assert again.is_ending
            assert bob.node_id not in swarm.connections
            swarm.told(wires[eve.node_id].real(), Envelopes(told_by(eve, record_of(eve.node_id, 2, sessions=3), mark)))
            assert swarm.members()[eve.node_id].sessions == 3
            await trio.sleep(SHUNNED_S)
            swarm.joined(Wire(bob.node_id).real())
            assert bob.node_id in swarm.connections

    run(main)


def test_a_relay_stays_whatever_it_passes_on_and_a_member_answers_for_its_own_words(
    open_neighbourhood: Any, bob: Identity, eve: Identity, record_of: Make
) -> None:
    async def main() -> None:
        with open_neighbourhood() as swarm:
            mark = swarm.secret.statement_mark()
            bad = (
                replace(told_by(eve, record_of(eve.node_id), mark)[2], signature=bytes(64)),
                eve.sign("status", b"\xc1", mark),
                *told_by(eve, record_of(eve.node_id), b"another swarm"),
            )
            relay = Wire(bob.node_id)
            swarm.joined(relay.real())
            swarm.told(relay.real(), Envelopes((*bad, *told_by(bob, record_of(bob.node_id), mark))))
            assert set(swarm.members()) == {swarm.node_id, bob.node_id}, "what was badly told is left out"
            own = Wire(eve.node_id)
            swarm.joined(own.real())
            for envelope in bad:
                with pytest.raises(BadWireData):
                    swarm.told(own.real(), Envelopes((replace(envelope, node_id=""),)))
            own.peer_most = WIRE_VERSION + 1
            swarm.told(own.real(), Envelopes((eve.sign("plan", b"\xc1", mark),)))

    run(main)


def test_members_that_are_only_told_of_are_dialed_on_the_word_of_who_told_and_not_written_down(
    open_neighbourhood: Any, bob: Identity, eve: Identity, record_of: Make
) -> None:
    async def main() -> None:
        with open_neighbourhood() as swarm:
            mark = swarm.secret.statement_mark()
            relay = Wire(bob.node_id)
            swarm.joined(relay.real())
            for who in (bob, eve):
                swarm.told(relay.real(), Envelopes(told_by(who, record_of(who.node_id), mark)))
            assert swarm._reach.pursued == {bob.node_id: None, eve.node_id: bob.node_id}  # type: ignore[attr-defined]
            assert swarm.book.peers() == [bob.node_id]
            swarm.joined(Wire(eve.node_id).real())
            assert set(swarm.book.peers()) == {bob.node_id, eve.node_id}

    run(main)
