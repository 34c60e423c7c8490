"""Members of one LAN find each other without an invitation; a machine without multicast does without."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import trio
from zeroconf import Zeroconf

from node.home import Home, write_private
from node.swarm import lan_discovery
from node.swarm.base import MemberGone
from node.swarm.host import SwarmSettings, open_swarm
from node.swarm.libp2p_swarm import Libp2pSwarm
from node.swarm.secret import SECRET_FILE

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
    assert "No such device" in caplog.text
