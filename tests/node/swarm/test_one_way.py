"""A way that carries in one direction alone: both ends must know within five seconds, each by itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

from node.home import Home
from node.swarm.addresses import Address
from node.swarm.invitation import Invitation, read_invitation
from node.swarm.ports import recall_ports
from tests.node.swarm.test_relay import node
from tests.node.swarm.test_swarm_live import Watched

MakeHome = Callable[..., Home]
NOWHERE = ("/ip4/127.0.0.1/tcp/9",)


def run(main: Callable[[], Awaitable[None]], limit_s: float = 60.0) -> None:
    async def bounded() -> None:
        with trio.fail_after(limit_s):
            await main()

    trio.run(bounded)


class Gate:
    """Between dialer and listener. What a dead direction is given vanishes, the end of the connection too."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self.dead: set[str] = set()
        self.port = 0

    async def serve(self) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            await trio.serve_listeners(self._carry, listeners, handler_nursery=nursery)

    async def _carry(self, dialer: trio.SocketStream) -> None:
        async with (
            dialer,
            await trio.open_tcp_stream("127.0.0.1", self._target_port) as listener,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(self._pour, "in", dialer, listener)
            nursery.start_soon(self._pour, "out", listener, dialer)

    async def _pour(self, direction: str, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        try:
            async for piece in source:
                if direction not in self.dead:
                    await sink.send_all(piece)
        except trio.BrokenResourceError:
            pass
        if not self.dead:
            await sink.aclose()


@pytest.mark.parametrize("dead", ["in", "out"])
def test_a_link_that_is_dead_in_one_direction_is_given_up_at_both_ends_within_five_seconds(
    make_home: MakeHome, dead: str
) -> None:
    async def main() -> None:
        async with node(make_home("ada"), "ada", announce=NOWHERE) as ada, trio.open_nursery() as nursery:
            (port,) = recall_ports(make_home("ada")).values()
            gate = Gate(port)
            nursery.start_soon(gate.serve)
            while not gate.port:  # noqa: ASYNC110
                await trio.sleep(0.01)
            invited = read_invitation(ada.swarm.invitation())
            token = Invitation(invited.secret, (Address("ip4", "127.0.0.1", gate.port, ada.id),)).token()
            async with node(make_home("bob"), "bob", token, announce=NOWHERE) as bob:
                await ada.sees(bob)
                await bob.sees(ada)
                await trio.sleep(1)
                gate.dead.add(dead)
                lost_s = trio.current_time()
                times: dict[str, float] = {}

                async def notice(one: Watched, other: Watched) -> None:
                    await one.until(lambda: other.id not in one.swarm.connections)
                    times[one.id] = trio.current_time() - lost_s

                async with trio.open_nursery() as both:
                    both.start_soon(notice, ada, bob)
                    both.start_soon(notice, bob, ada)
                assert max(times.values()) < 5.5
                assert bob.id in ada.gone() + ada.links_lost()
                assert ada.id in bob.gone() + bob.links_lost()
            nursery.cancel_scope.cancel()

    run(main)
