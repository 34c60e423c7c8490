"""The small parts: addresses, the memory of peers and ports, the vestibule, the outbox, backoff, the LAN's riddle."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Callable

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from libp2p.io.exceptions import ConnectionClosedError
from trio.testing import MockClock

from node.errors import SwarmError, UsageError
from node.home import Home
from node.swarm.address_book import BOOK_FILE, PEER_LIMIT, AddressBook
from node.swarm.addresses import ADDRESS_LIMIT, Address, announced, parse_all
from node.swarm.control_queue import BATCH_BYTES, QUEUE_LIMIT_BYTES, ControlQueue
from node.swarm.dialer import LONGEST_WAIT_S, Backoff, Dialer
from node.swarm.front_door import PendingConnections, open_listeners
from node.swarm.identity import Identity
from node.swarm.lan_discovery import service_type
from node.swarm.ports import PORTS_FILE, recall_ports, remember_ports
from node.swarm.quiet import EVERY_S, PER_MINUTE, LogLimiter
from node.swarm.secret import SwarmSecret
from node.swarm.socket_stream import SocketStream
from node.wire.control import Ask, Envelopes, Welcome
from node.wire.ids import NodeId
from node.wire.peer_figures import mark_of
from node.wire.statements import Envelope

MakeHome = Callable[..., Home]
OWN, ADA = NodeId("1" * 52), NodeId("2" * 52)
HERE = Address("ip4", "192.0.2.7", 4001)


@pytest.mark.parametrize(
    "text", ["/ip4/192.0.2.7/tcp/4001", "/ip6/2001:db8::1/tcp/1", "/dns4/node.example/tcp/65535/p2p/" + "A" * 52]
)
def test_an_address_reads_back_as_it_was_written(text: str) -> None:
    assert str(Address.parse(text)) == text


@given(st.text(max_size=60) | st.from_regex(r"/(ip4|ip6|dns)/[0-9a-f.:]{1,20}/tcp/[0-9]{1,6}", fullmatch=True))
def test_any_other_text_is_refused_and_nothing_else_raised(text: str) -> None:
    for address in parse_all([text]):
        assert 0 <= address.port <= 65535
        assert Address.parse(str(address)) == address


def test_all_interfaces_are_announced_with_loopback_last_and_not_too_many() -> None:
    found = announced([Address("ip4", "0.0.0.0", 4001)] * 3)
    assert found
    assert len(found) <= ADDRESS_LIMIT
    assert all(address.port == 4001 and not address.is_any for address in found)
    assert [address.is_loopback for address in found] == sorted(address.is_loopback for address in found)
    assert announced([HERE]) == (HERE,)


def test_peers_are_remembered_over_a_restart_but_not_over_a_change_of_swarm(make_home: MakeHome) -> None:
    home = make_home()
    book = AddressBook(home, "swarm", OWN, 0.0)
    book.learn(ADA, [HERE], 1000.0)
    book.suggest(Address("ip4", "192.0.2.8", 1, ADA))
    book.learn(OWN, [HERE], 1000.0)
    book.save()
    again = AddressBook(home, "swarm", OWN, 2000.0)
    assert again.peers() == [ADA]
    assert again.addresses(ADA) == (Address("ip4", "192.0.2.8", 1), HERE)
    assert AddressBook(home, "other", OWN, 2000.0).peers() == []
    assert AddressBook(home, "swarm", OWN, 40 * 86400.0).peers() == []


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"\xff", b'{"swarm": "swarm", "peers": {"x": 1}}', b'{"swarm": "swarm"}']
)
def test_a_damaged_address_book_is_made_anew(make_home: MakeHome, content: bytes) -> None:
    home = make_home()
    home.data.mkdir()
    (home.data / BOOK_FILE).write_bytes(content)
    assert AddressBook(home, "swarm", OWN, 0.0).peers() == []


def test_the_address_book_is_bounded_and_keeps_the_latest(make_home: MakeHome) -> None:
    book = AddressBook(make_home(), "swarm", OWN, 0.0)
    for number in range(PEER_LIMIT + 10):
        book.learn(NodeId(f"peer{number}"), [HERE], float(number + 1))
    assert len(book.peers()) == PEER_LIMIT
    assert NodeId("peer0") not in book.peers()


def test_the_address_book_can_be_saved_while_peers_are_learned(make_home: MakeHome) -> None:
    book = AddressBook(make_home(), "swarm", OWN, 0.0)
    failures: list[Exception] = []

    def save() -> None:
        try:
            for _ in range(100):
                book.save()
        except Exception as error:
            failures.append(error)

    saving = threading.Thread(target=save)
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        saving.start()
        number = 0
        while saving.is_alive():
            number += 1
            book.learn(NodeId(f"peer{number}"), [HERE], float(number))
    finally:
        sys.setswitchinterval(interval_s)
        saving.join()
    assert failures == []


def test_a_connection_that_is_broken_already_is_taken_like_any_other() -> None:
    """Some systems refuse to change a socket whose peer has hung up; that must not end the door that it came by."""

    async def main() -> None:
        ours, theirs = socket.socketpair()
        theirs.close()
        broken = SocketStream(trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
        assert await broken.read(1) == b""
        with pytest.raises(ConnectionClosedError):
            for _ in range(2):
                await broken.write(bytes(8))
        broken.close_now()
        ours, theirs = socket.socketpair()
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        stream.socket.close()
        with pytest.raises(ConnectionClosedError):
            await SocketStream(stream).read(1)
        theirs.close()

    trio.run(main)


def test_ports_are_remembered_and_a_damaged_memory_is_none(make_home: MakeHome) -> None:
    home = make_home()
    assert recall_ports(home) == {}
    remember_ports(home, {"/ip4/0.0.0.0/tcp/0": 4001})
    assert recall_ports(home) == {"/ip4/0.0.0.0/tcp/0": 4001}
    for content in ("[]", "{", json.dumps({"x": "y"}), json.dumps({"x": 99999999})):
        (home.data / PORTS_FILE).write_text(content)
        assert recall_ports(home) == {}


def test_the_port_of_last_time_is_taken_again_and_never_shared() -> None:
    async def main() -> None:
        anywhere = Address("ip4", "127.0.0.1", 0)
        ((_, first),) = await open_listeners([anywhere], {})
        port = first.socket.getsockname()[1]
        ((_, second),) = await open_listeners([anywhere], {str(anywhere): port})
        assert second.socket.getsockname()[1] != port, "it is taken"
        with pytest.raises(UsageError, match="choose another"):
            await open_listeners([Address("ip4", "127.0.0.1", port)], {})
        for listener in (first, second):
            await listener.aclose()
        ((_, third),) = await open_listeners([anywhere], {str(anywhere): port})
        assert third.socket.getsockname()[1] == port
        await third.aclose()

    trio.run(main)


def test_a_full_vestibule_loses_the_oldest_of_the_largest_crowd() -> None:
    async def main() -> None:
        vestibule = PendingConnections(limit=4)
        scopes = {name: trio.CancelScope() for name in ("honest", "crowd1", "crowd2", "crowd3", "newcomer", "again")}
        leave = vestibule.enter("192.0.2.1", scopes["honest"])
        for name in ("crowd1", "crowd2", "crowd3"):
            vestibule.enter("192.0.2.9", scopes[name])
        vestibule.enter("192.0.2.9", scopes["newcomer"])
        assert [name for name, scope in scopes.items() if scope.cancel_called] == ["crowd1"]
        leave()
        leave()
        vestibule.enter("192.0.2.2", scopes["again"])
        assert len(vestibule) == 4
        assert not scopes["crowd2"].cancel_called
        await trio.lowlevel.checkpoint()

    trio.run(main)


def test_the_outbox_keeps_only_the_newest_of_each_and_never_overfills_a_message() -> None:
    async def main() -> None:
        outbox = ControlQueue()
        for number in range(30):
            for node in range(20):
                outbox.tell(Envelope("trips", f"node{node}", bytes([number]) * 30_000, b"s" * 64))
        outbox.welcome(Welcome(7, b""))
        for name in "aba":
            outbox.ask(Ask(mark_of(name), plan=name == "b"))
        outbox.answer(1, 2.0)
        batch = await outbox.take()
        assert batch.answers == ((1, 2.0),)
        assert batch.messages[:2] == (Welcome(7, b""), Ask(mark_of("a") + mark_of("b"), plan=True))
        messages = [message for message in batch.messages if isinstance(message, Envelopes)]
        told = [envelope for message in messages for envelope in message.envelopes]
        assert {envelope.payload[0] for envelope in told} == {29}
        assert len(told) == 20
        assert all(sum(len(e.payload) for e in message.envelopes) <= BATCH_BYTES for message in messages)

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_an_outbox_that_nobody_reads_holds_a_bounded_number_of_bytes_and_never_forgets_our_own_words() -> None:
    async def main() -> None:
        outbox = ControlQueue(OWN)
        for kind in ("profile", "plan"):
            outbox.tell(Envelope(kind, OWN, b"o" * 1000, b"s" * 64))
        for node in range(2000):
            outbox.tell(Envelope("trips", f"node{node}", bytes(30_000), b"s" * 64))
            assert outbox.size_bytes <= QUEUE_LIMIT_BYTES
        batch = await outbox.take()
        told = [each for message in batch.messages if isinstance(message, Envelopes) for each in message.envelopes]
        assert [(each.kind, each.node_id) for each in told[:2]] == [("profile", ""), ("plan", "")]
        assert told[-1].node_id == "node1999"
        assert sum(len(each.payload) for each in told) <= QUEUE_LIMIT_BYTES
        assert outbox.size_bytes == 0

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_waits_grow_to_their_limit_and_start_again_after_success() -> None:
    backoff = Backoff()
    waits = [backoff.after_failure() for _ in range(10)]
    assert waits[0] <= 0.5
    assert all(wait <= LONGEST_WAIT_S for wait in waits)
    assert waits[-1] >= 0.8 * LONGEST_WAIT_S
    backoff.reset()
    assert backoff.after_failure() <= 0.5


def test_a_lost_peer_is_dialed_for_ever_and_left_alone_while_connected() -> None:
    async def main() -> None:
        dials: list[float] = []
        connected: set[NodeId] = set()

        async def dial(peer: NodeId, source: NodeId | None) -> None:
            dials.append(trio.current_time())
            await trio.lowlevel.checkpoint()
            if len(dials) < 12:
                raise SwarmError("nobody there")
            connected.add(peer)

        async with trio.open_nursery() as nursery:
            dialer = Dialer(OWN, connected.__contains__, lambda peer: True)
            nursery.start_soon(dialer.run, dial)
            started = trio.current_time()
            dialer.pursue(ADA, polite=False)
            dialer.pursue(ADA, polite=False)
            await trio.sleep(300)
            assert len(dials) == 12
            assert dials[0] == started
            connected.discard(ADA)
            dialer.lost(ADA)
            lost = trio.current_time()
            await trio.sleep(10)
            assert len(dials) == 13
            assert 0.3 < dials[-1] - lost < 2
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_a_reason_to_hope_ends_the_wait() -> None:
    async def main() -> None:
        dials: list[float] = []

        async def dial(peer: NodeId, source: NodeId | None) -> None:
            dials.append(trio.current_time())
            await trio.lowlevel.checkpoint()
            raise SwarmError("nobody there")

        async with trio.open_nursery() as nursery:
            dialer = Dialer(OWN, lambda peer: False, lambda peer: True)
            nursery.start_soon(dialer.run, dial)
            dialer.pursue(ADA, polite=False)
            await trio.sleep(100)
            before = len(dials)
            dialer.hurry(ADA)
            await trio.sleep(0.1)
            assert len(dials) == before + 1
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_the_same_complaint_is_made_once_a_minute() -> None:
    log_limiter = LogLimiter()
    assert log_limiter.allows("eve", 0.0)
    assert not log_limiter.allows("eve", EVERY_S - 1)
    assert log_limiter.allows("bob", 1.0)
    assert log_limiter.allows("eve", EVERY_S)
    assert sum(log_limiter.allows(f"made up {number}", 2 * EVERY_S) for number in range(1000)) == PER_MINUTE


def test_the_lan_service_is_the_same_for_members_and_tells_nothing_of_the_secret(ada: Identity) -> None:
    secret = SwarmSecret(b"s" * 32)
    assert service_type(secret) == service_type(SwarmSecret(b"s" * 32)) != service_type(SwarmSecret(b"t" * 32))
    assert secret.value.hex()[:8] not in service_type(secret)
    assert len(service_type(secret).split(".")[0]) <= 16
