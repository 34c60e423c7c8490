"""Members of one LAN find each other without an invitation; a machine without multicast does without."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, cast

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from zeroconf import ServiceInfo, Zeroconf

from node.home import Home, write_private
from node.swarm import lan_discovery
from node.swarm.addresses import Address
from node.swarm.base import MemberGone
from node.swarm.host import SwarmSettings, open_swarm
from node.swarm.lan_discovery import announcement, discover, is_of_swarm, read_announcement
from node.swarm.libp2p_swarm import Libp2pSwarm
from node.swarm.secret import SECRET_FILE, SwarmSecret
from node.wire.ids import NodeId

MakeHome = Callable[..., Home]


def settings(home: Home, secret: str, announce: tuple[str, ...] = ()) -> SwarmSettings:
    write_private(home.data / SECRET_FILE, secret.encode())
    return SwarmSettings(home, home.data.name, announce=announce, machine_id="here")


async def found(one: Libp2pSwarm, other: Libp2pSwarm) -> None:
    async for _ in one.news:
        if other.node_id in one.members():
            return


def multicast_works() -> bool:
    try:
        Zeroconf().close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not multicast_works(), reason="no multicast on this machine")
def test_nodes_with_the_same_secret_find_each_other_and_no_others(make_home: MakeHome) -> None:
    async def main() -> None:
        with trio.fail_after(30):
            async with (
                open_swarm(settings(make_home("ada"), "aa" * 32)) as ada,
                open_swarm(settings(make_home("bob"), "aa" * 32)) as bob,
                open_swarm(settings(make_home("eve"), "ee" * 32)) as eve,
            ):
                await found(ada, bob)
                await found(bob, ada)
                assert set(eve.members()) == {eve.node_id}

    trio.run(main)


@pytest.mark.skipif(not multicast_works(), reason="no multicast on this machine")
def test_nodes_of_one_lan_meet_and_meet_again_without_the_router_whose_address_they_announce(
    make_home: MakeHome,
) -> None:
    router = ("/ip4/192.0.2.1/tcp/4001",)

    async def main() -> None:
        with trio.fail_after(30):
            async with (
                open_swarm(settings(make_home("ada"), "aa" * 32, router)) as ada,
                open_swarm(settings(make_home("bob"), "aa" * 32, router)) as bob,
            ):
                await found(ada, bob)
                await found(bob, ada)
                for one, other in ((ada, bob), (bob, ada)):
                    await one.update(sessions=1)
                    while not other.members()[one.node_id].sessions:
                        await other.news.receive()
                for connection in ada.connections.all():
                    connection.end("disconnected", "test")
                async for news in bob.news:
                    if isinstance(news, MemberGone):
                        break
                await found(bob, ada)

    trio.run(main)


ADA, EVE = NodeId("A" * 52), NodeId("E" * 52)
PLACES = (Address("ip4", "192.168.1.7", 4001), Address("ip6", "fd00::7", 4001), Address("ip4", "127.0.0.1", 4001))


def test_an_entry_reads_back_for_members_and_for_nobody_else() -> None:
    ours, theirs = SwarmSecret(b"a" * 32), SwarmSecret(b"e" * 32)
    entry = announcement(ours, ADA, PLACES)
    assert entry is not None
    assert {str(place) for place in read_announcement(ours, entry)} == {
        f"/ip4/192.168.1.7/tcp/4001/p2p/{ADA}",
        f"/ip6/fd00::7/tcp/4001/p2p/{ADA}",
    }
    assert read_announcement(theirs, entry) == []
    assert is_of_swarm(ours, entry.name)
    assert not is_of_swarm(theirs, entry.name)
    assert is_of_swarm(ours, entry.name.replace("._plx", "-2._plx", 1)), "the name was in use"
    assert announcement(ours, ADA, PLACES[2:]) is None


@given(st.binary(max_size=80), st.text(max_size=40), st.integers(0, 65535), st.text(max_size=64))
def test_what_strangers_announce_is_nothing_to_us(peer: bytes, mac: str, port: int, name: str) -> None:
    secret = SwarmSecret(b"a" * 32)
    entry = ServiceInfo(
        "_plx._tcp.local.",
        "x._plx._tcp.local.",
        parsed_addresses=["8.8.8.8"],
        port=port,
        properties={"id": peer, "mac": mac},
    )
    assert read_announcement(secret, entry) == []
    assert not is_of_swarm(secret, name)


def test_an_entry_of_a_member_with_another_place_in_it_is_not_believed() -> None:
    secret = SwarmSecret(b"a" * 32)
    entry = announcement(secret, ADA, PLACES)
    assert entry is not None
    properties = {key.decode(): value for key, value in entry.properties.items()}
    for host, port, peer in (("8.8.8.8", 4001, ADA), ("192.168.1.7", 22, ADA), ("192.168.1.7", 4001, EVE)):
        forged = ServiceInfo(
            entry.type, entry.name, parsed_addresses=[host], port=port, properties=properties | {"id": peer}
        )
        assert read_announcement(secret, forged) == []


class Zeroconfs:
    """In place of the library: counts its lives, and fails when it is told to."""

    def __init__(self) -> None:
        self.said: list[list[str]] = []
        self.open = 0
        self.broken = False

    def __call__(self) -> Zeroconfs:
        if self.broken:
            raise OSError(19, "No such device")
        self.open += 1
        return self

    def register_service(self, info: ServiceInfo, *, allow_name_change: bool) -> None:
        self.said.append(sorted(info.parsed_addresses()))

    def close(self) -> None:
        self.open -= 1


class Interfaces:
    """In place of OwnAddresses: moved by hand."""

    def __init__(self, *local: Address) -> None:
        self.local = local
        self._moved = trio.Event()

    async def changed(self) -> None:
        await self._moved.wait()

    def move(self, *local: Address) -> None:
        self.local = local
        self._moved.set()
        self._moved = trio.Event()


def test_discovery_outlives_a_start_without_wifi_a_failure_and_a_change_of_network(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    zeroconfs = Zeroconfs()
    monkeypatch.setattr(lan_discovery, "Zeroconf", zeroconfs)
    monkeypatch.setattr(lan_discovery, "ServiceBrowser", lambda *_args, **_named: None)
    loopback = Address("ip4", "127.0.0.1", 4001)
    home, office = Address("ip4", "192.168.1.7", 4001), Address("ip4", "10.1.2.3", 4001)

    async def until(what: Callable[[], bool]) -> None:
        with trio.fail_after(10):
            while not what():  # noqa: ASYNC110  the library's threads have no event for us
                await trio.sleep(0.01)

    async def main() -> None:
        own = Interfaces(loopback)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(discover, SwarmSecret(b"a" * 32), ADA, cast(Any, own), lambda address: None)
            await until(lambda: "loopback interface alone" in caplog.text)
            own.move(home, loopback)
            await until(lambda: zeroconfs.said == [["192.168.1.7"]])
            zeroconfs.broken = True
            own.move(office, loopback)
            await until(lambda: "No such device" in caplog.text)
            assert zeroconfs.open == 0
            zeroconfs.broken = False
            own.move(office, loopback)
            await until(lambda: zeroconfs.said[1:] == [["10.1.2.3"]])
            assert zeroconfs.open == 1
            nursery.cancel_scope.cancel()
        assert zeroconfs.open == 0

    with caplog.at_level(logging.INFO):
        trio.run(main)


def test_without_multicast_the_swarm_works_and_says_so(
    make_home: MakeHome, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_multicast() -> None:
        raise OSError(19, "No such device")

    monkeypatch.setattr(lan_discovery, "Zeroconf", no_multicast)

    async def main() -> None:
        with trio.fail_after(30):
            async with open_swarm(settings(make_home("ada"), "aa" * 32)) as ada:
                while "LAN discovery is off" not in caplog.text:  # noqa: ASYNC110  a log has no event
                    await trio.sleep(0.05)
                assert set(ada.members()) == {ada.node_id}

    with caplog.at_level(logging.WARNING):
        trio.run(main)
    assert caplog.text.count("No such device") == 1
