"""Two members that cannot reach one another, as behind two routers: a third carries what they say, and only that."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import pytest
import trio

from node.errors import LinkClosed
from node.home import Home
from node.swarm.base import Lane
from node.swarm.circuits import RELAY_PROTOCOL, Circuits, send
from node.swarm.connection import Connection
from node.swarm.host import SwarmSettings, open_swarm
from node.swarm.identity import identity_from_seed, load_identity
from node.swarm.ports import recall_ports
from node.swarm.relay import CIRCUITS_EACH, CIRCUITS_LIMIT, Relay
from node.swarm.socket_stream import SocketStream
from node.swarm.upgrade import Upgrader
from node.wire.circuits import NotReached, Reached, Through
from node.wire.frames import Progress
from node.wire.ids import NodeId
from tests.fakes.frames import step_frame
from tests.node.swarm.test_swarm_live import Watched

MakeHome = Callable[..., Home]
SESSION = "0" * 32
NOWHERE = ("/ip4/127.0.0.1/tcp/9",)  # nobody listens there
SETTINGS = partial(
    SwarmSettings, listen=("/ip4/127.0.0.1/tcp/0",), discover_lan=False, machine_id="here", software="test"
)
MIB = 1024 * 1024


def run(main: Callable[[], Awaitable[None]], limit_s: float = 40.0) -> None:
    async def bounded() -> None:
        with trio.fail_after(limit_s):
            await main()

    trio.run(bounded)


@asynccontextmanager
async def node(home: Home, name: str, *tokens: str, announce: tuple[str, ...] = ()) -> AsyncIterator[Watched]:
    settings = SETTINGS(home=home, name=name, invitations=tokens, announce=announce)
    async with open_swarm(settings) as swarm, trio.open_nursery() as nursery:
        watched = Watched(swarm)
        nursery.start_soon(watched.watch)
        yield watched
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def broken_pair(make_home: MakeHome) -> AsyncIterator[tuple[Watched, Watched, Watched]]:
    """Ada, whom both reach; bob and eve, whom nobody can dial."""
    async with node(make_home("ada"), "ada") as ada:
        token = ada.swarm.invitation()
        async with (
            node(make_home("bob"), "bob", token, announce=NOWHERE) as bob,
            node(make_home("eve"), "eve", token, announce=NOWHERE) as eve,
        ):
            for one, other in ((bob, eve), (eve, bob)):
                await one.sees(ada, other)
                reaches_both = {bob.id, eve.id}
                await one.until(lambda one=one, both=reaches_both: both <= set(one.swarm.members()[ada.id].rtt_ms))
                assert other.id not in one.swarm.connections
            yield ada, bob, eve


def test_frames_go_through_a_third_in_both_directions_whole_and_in_order(make_home: MakeHome) -> None:
    async def main() -> None:
        async with broken_pair(make_home) as (ada, bob, eve):
            for one, other in ((bob, eve), (eve, bob)):
                for lane in cast(tuple[Lane, ...], ("steps", "bulk")):
                    link = await one.swarm.link(other.id, lane)
                    body = bytes(range(256)) * 4096  # 1 MiB
                    for position in range(3):
                        await link.send(step_frame(SESSION, position, time.perf_counter()), body)
                        await link.send(Progress(SESSION, 1, position))
                    for position in range(3):
                        large = await other.swarm.arrivals.receive()
                        assert (large.peer, large.body) == (one.id, body)
                        small = await other.swarm.arrivals.receive()
                        assert small.frame == Progress(SESSION, 1, position)
                    assert await one.swarm.link(other.id, lane) is link
            assert ada.swarm.links.relay._carried.total() == 4
            assert ada.links_lost() == bob.links_lost() == eve.links_lost() == []
            for one, other in ((bob, eve), (eve, bob)):
                assert other.id not in one.swarm.members()[one.id].rtt_ms, "a detour is no reach"

    run(main)


def test_when_the_third_loses_one_of_them_both_are_told_and_it_holds_nothing(make_home: MakeHome) -> None:
    async def main() -> None:
        async with broken_pair(make_home) as (ada, bob, eve):
            link = await bob.swarm.link(eve.id)
            await link.send(Progress(SESSION, 1, 1))
            await eve.swarm.arrivals.receive()
            for connection in ada.swarm.connections.to(eve.id):
                connection.end("disconnected", "test")
            await bob.until(lambda: not link.is_open)
            with pytest.raises(LinkClosed):
                await link.send(Progress(SESSION, 1, 2))
            await eve.until(lambda: bob.id in eve.gone() + eve.links_lost())
            await ada.until(lambda: ada.swarm.links.relay._carried.total() == 0)
            await ada.until(lambda: eve.id in ada.swarm.connections and eve.id in ada.swarm.members())
            await bob.until(lambda: eve.id in bob.swarm.members() and eve.id in bob.swarm.members()[ada.id].rtt_ms)
            again = await bob.swarm.link(eve.id)
            await again.send(Progress(SESSION, 1, 3))
            assert (await eve.swarm.arrivals.receive()).frame == Progress(SESSION, 1, 3)

    run(main)


def test_a_direct_way_is_taken_when_there_is_one_and_the_detour_ends_without_a_word(
    make_home: MakeHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.swarm.neighbour.UNUSED_S", 0.5)

    async def main() -> None:
        async with broken_pair(make_home) as (ada, bob, eve), trio.open_nursery() as nursery:
            link = await bob.swarm.link(eve.id)
            await link.send(Progress(SESSION, 1, 1))
            await eve.swarm.arrivals.receive()
            nursery.start_soon(connect, make_home("bob"), bob, make_home("eve"), eve)
            await bob.until(lambda: eve.id in bob.swarm.connections)
            await bob.until(lambda: not link.is_open)
            now = await bob.swarm.link(eve.id)
            assert now is not link
            await now.send(Progress(SESSION, 1, 2))
            assert (await eve.swarm.arrivals.receive()).frame == Progress(SESSION, 1, 2)
            await ada.until(lambda: ada.swarm.links.relay._carried.total() == 0)
            assert bob.links_lost() == eve.links_lost() == []
            nursery.cancel_scope.cancel()

    run(main)


async def connect(home: Home, one: Watched, other_home: Home, other: Watched) -> None:
    """A direct connection, by the port that the other really listens on."""
    (port,) = recall_ports(other_home).values()
    socket = SocketStream(await trio.open_tcp_stream("127.0.0.1", port))
    muxed = await Upgrader(load_identity(home)).dialed(socket, other.id)
    await Connection(one.swarm, muxed, socket, other.id, dialed=True).serve(trio.current_time() + 5, lambda: None)


def test_a_relay_that_pretends_to_be_the_target_is_found_out(make_home: MakeHome) -> None:
    """It answers `Reached` and then speaks for itself: it has no key but its own."""

    async def main() -> None:
        async with broken_pair(make_home) as (ada, bob, eve):
            impostor = Circuits(identity_from_seed(b"impostor" * 4))

            async def carry(origin: Any, stream: Any) -> None:
                await stream.read_message(Through, where="test", limit_bytes=1024)
                await send(stream, Reached())
                await impostor._noise.secure_inbound(raw_of(stream))

            ada.swarm.links.relay.carry = carry  # type: ignore[method-assign]
            with pytest.raises(LinkClosed):
                await bob.swarm.link(eve.id)

    run(main)


def raw_of(stream: Any) -> Any:
    from libp2p.network.connection.raw_connection import RawConnection

    from node.swarm.circuits import _Bytes

    return RawConnection(_Bytes(stream), False)


def test_a_relay_carries_to_members_it_reaches_and_not_without_end(make_home: MakeHome) -> None:
    async def main() -> None:
        async with broken_pair(make_home) as (ada, bob, eve):
            to_ada = bob.swarm.connections.best(ada.id)
            assert to_ada is not None

            async def ask(target: str) -> object:
                stream = await to_ada.open(RELAY_PROTOCOL)
                await send(stream, Through(target, "steps"))
                return await stream.read_message(
                    Reached | NotReached,  # type: ignore[arg-type]
                    where="test",
                    limit_bytes=1024,
                )

            for target in (bob.id, ada.id, NodeId("12D3KooWnobody")):
                assert isinstance(await ask(target), NotReached)
            answers = [await ask(eve.id) for _ in range(CIRCUITS_EACH + 1)]
            assert [isinstance(answer, Reached) for answer in answers] == [True] * CIRCUITS_EACH + [False]
            assert to_ada in bob.swarm.connections.all(), "it is refused, not punished"

    run(main)


def test_there_is_an_end_to_what_one_node_carries() -> None:
    relay = Relay(lambda peer: cast(Any, object()), lambda peer: True)
    for number in range(CIRCUITS_LIMIT):
        assert relay._refusal(NodeId(f"origin{number}"), NodeId(f"target{number}"), cast(Any, object())) == ""
        relay._carried[NodeId(f"origin{number}")] += 1
    assert "too many" in relay._refusal(NodeId("another"), NodeId("target"), cast(Any, object()))
