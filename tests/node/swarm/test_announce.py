"""Nodes behind a router that forwards a port: peers are told that port, and the node itself never dials it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio

from node.errors import UsageError
from node.home import Home
from node.swarm.host import SwarmSettings, open_swarm
from node.swarm.invitation import read_invitation
from node.swarm.libp2p_swarm import Libp2pSwarm

MakeHome = Callable[..., Home]


def settings(home: Home, **fields: object) -> SwarmSettings:
    basic = {"home": home, "name": home.data.name, "discover_lan": False, "machine_id": "here"}
    return SwarmSettings(**(basic | {"listen": ("/ip4/127.0.0.1/tcp/0",)} | fields))


class ForwardedPort:
    """Carries connections to a port that is named later, and counts them."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self.address = f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}"
        self.target = 0
        self.carried = 0

    async def carry(self, outside: trio.SocketStream) -> None:
        self.carried += 1
        async with outside, await trio.open_tcp_stream("127.0.0.1", self.target) as inside, trio.open_nursery() as both:
            for source, sink in ((outside, inside), (inside, outside)):
                both.start_soon(self._pour, source, sink, both.cancel_scope)

    async def _pour(self, source: trio.SocketStream, sink: trio.SocketStream, way: trio.CancelScope) -> None:
        try:
            async for piece in source:
                await sink.send_all(piece)
        except trio.BrokenResourceError:
            pass
        way.cancel()


async def see_each_other(*all_of_them: Libp2pSwarm) -> None:
    for one in all_of_them:
        while len(one.members()) < len(all_of_them):
            await one.news.receive()


def test_peers_come_by_the_announced_address_and_the_node_itself_does_not(make_home: MakeHome) -> None:
    async def main() -> None:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                (outside,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
                (free,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
                router = ForwardedPort(outside)
                router.target = free.socket.getsockname()[1]
                await free.aclose()
                nursery.start_soon(trio.serve_listeners, router.carry, [outside])
                here = (f"/ip4/127.0.0.1/tcp/{router.target}",)
                async with open_swarm(
                    settings(make_home("ada"), listen=here, announce=(router.address, router.address))
                ) as ada:
                    assert ada.members()[ada.node_id].addresses == (router.address,)
                    token = ada.invitation()
                    assert {str(place.at(None)) for place in read_invitation(token).addresses} == {router.address}
                    async with open_swarm(settings(make_home("bob"), invitations=(token,))) as bob:
                        await see_each_other(ada, bob)
                        assert bob.members()[ada.node_id].addresses == (router.address,)
                        assert [router.carried, *ada.connections.peers()] == [1, bob.node_id]
                nursery.cancel_scope.cancel()

    trio.run(main)


@pytest.mark.parametrize(
    "text",
    [
        "example.org:4001",
        "/ip4/0.0.0.0/tcp/4001",
        "/ip6/::/tcp/4001",
        "/ip4/192.0.2.7/tcp/0",
        "/ip4/192.0.2.7/tcp/4001/p2p/" + "A" * 52,
    ],
)
def test_what_nobody_could_dial_is_not_announced(make_home: MakeHome, text: str) -> None:
    async def main() -> None:
        async with open_swarm(settings(make_home(), announce=(text,))):
            raise AssertionError("it has opened")

    with pytest.raises(UsageError, match="--announce"):
        trio.run(main)
