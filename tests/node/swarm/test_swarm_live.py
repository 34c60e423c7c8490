"""Several nodes with real sockets in one process: joining, leaving, restarting, dialing at once, plans, links."""

from __future__ import annotations

import gc
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import msgspec
import psutil
import pytest
import trio

from node.errors import LinkClosed
from node.home import Home
from node.swarm import connections
from node.swarm.base import LinkLost, MemberGone, PlanHeard, SwarmNews
from node.swarm.connection import Connection
from node.swarm.host import SwarmSettings, open_swarm
from node.swarm.identity import load_identity
from node.swarm.libp2p_swarm import Libp2pSwarm
from node.swarm.links import LINKS_PER_CONNECTION
from node.swarm.socket_stream import SocketStream
from node.swarm.upgrade import Upgrader
from node.wire.frames import Close, Progress, Step
from node.wire.models import ModelFacts, ModelRef
from node.wire.parts import profile_of, status_of
from node.wire.plans import Assignment, Override, Plan, PlanSettings
from node.wire.versions import WIRE_VERSION
from tests.fakes.frames import step_frame

MakeHome = Callable[..., Home]
SESSION = "0" * 32
MIB = 1024 * 1024
SETTINGS = partial(
    SwarmSettings, listen=("/ip4/127.0.0.1/tcp/0",), discover_lan=False, machine_id="here", software="test"
)


def run(main: Callable[[], Awaitable[None]], limit_s: float = 40.0) -> None:
    async def bounded() -> None:
        with trio.fail_after(limit_s):
            await main()

    trio.run(bounded)


class Watched:
    """A swarm and all its news so far."""

    def __init__(self, swarm: Libp2pSwarm) -> None:
        self.swarm, self.id = swarm, swarm.node_id
        self.news: list[SwarmNews] = []
        self._changed = trio.Event()

    async def watch(self) -> None:
        async for item in self.swarm.news:
            self.news.append(item)
            self._changed.set()
            self._changed = trio.Event()

    async def until(self, what: Callable[[], bool]) -> None:
        while not what():
            with trio.move_on_after(0.25):  # what a view contains may also change without news
                await self._changed.wait()

    async def sees(self, *others: Watched) -> None:
        await self.until(lambda: {other.id for other in others} <= set(self.swarm.members()))

    def links_lost(self) -> list[str]:
        return [item.node_id for item in self.news if isinstance(item, LinkLost)]

    def gone(self) -> list[str]:
        return [item.node_id for item in self.news if isinstance(item, MemberGone)]


@asynccontextmanager
async def node(home: Home, name: str, *tokens: str, listen: str = "/ip4/127.0.0.1/tcp/0") -> AsyncIterator[Watched]:
    settings = SETTINGS(home=home, name=name, invitations=tokens, listen=(listen,))
    async with open_swarm(settings) as swarm, trio.open_nursery() as nursery:
        watched = Watched(swarm)
        nursery.start_soon(watched.watch)
        yield watched
        nursery.cancel_scope.cancel()


def plan_for_a_thousand(author: str, epoch: int) -> Plan:
    """Twice as large as a record may be."""
    assigned = tuple(Assignment(f"12D3KooW{number:044d}", number % 30, number % 30 + 1) for number in range(1000))
    facts = ModelFacts(30, 1, 1, 1, 1, 1, 1, 1)
    settings = PlanSettings(overrides=tuple(Override(each.node_id, (0, 30)) for each in assigned))
    return Plan(epoch, author, ModelRef("m", "default", "0"), "float32", facts, assigned, settings=settings)


def test_members_learn_of_each_other_and_of_changes_and_a_goodbye_is_seen_at_once(make_home: MakeHome) -> None:
    async def main() -> None:
        async with node(make_home("ada"), "ada") as ada:
            token = ada.swarm.invitation()
            async with node(make_home("eve"), "eve", token) as eve:
                async with node(make_home("bob"), "bob", token) as bob:
                    for one, *others in ((ada, bob, eve), (bob, ada, eve), (eve, ada, bob)):
                        await one.sees(*others)
                    await bob.swarm.update(sessions=3, state="serving")
                    await eve.until(lambda: eve.swarm.members()[bob.id].sessions == 3)
                    await ada.until(lambda: len(ada.swarm.members()[ada.id].rtt_ms) == 2)
                    assert 0 < ada.swarm.members()[ada.id].rtt_ms[bob.id] < 1000
                    asked = time.monotonic()
                    assert ada.gone() == eve.gone() == []
                for one in (ada, eve):
                    await one.until(lambda one=one: bob.id in one.gone())
                assert time.monotonic() - asked < 2.0
                assert [item.why for item in eve.news if isinstance(item, MemberGone)] == ["left"]
                await trio.sleep(1.5)  # its last records would have been passed on by now
                assert bob.id not in ada.swarm.members() | eve.swarm.members()

    run(main)


def test_a_swarm_restarted_as_a_whole_finds_itself_without_invitations(make_home: MakeHome) -> None:
    homes = {name: make_home(name) for name in ("ada", "bob", "eve")}

    async def main() -> None:
        ids, token = {}, ()
        for name, home in homes.items():
            async with node(home, name, *token) as one:
                ids[name] = one.id
                token = token or (one.swarm.invitation(),)
        # now one has joined after the other, each while the inviter was down: nobody has met anybody
        async with node(homes["eve"], "eve") as eve, node(homes["bob"], "bob") as bob, node(homes["ada"], "ada") as ada:
            assert {"ada": ada.id, "bob": bob.id, "eve": eve.id} == ids, "identities are kept"
            for one, *others in ((ada, bob, eve), (bob, ada, eve), (eve, ada, bob)):
                await one.sees(*others)
        async with node(homes["bob"], "bob") as bob, node(homes["eve"], "eve") as eve:
            await bob.sees(eve)
            await eve.sees(bob)

    run(main)


def test_dialing_each_other_at_the_same_moment_ends_with_one_connection_and_never_with_none(
    make_home: MakeHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "REDUNDANT_AFTER_S", 1.0)
    names = ("ada", "bob", "eve", "joe")
    homes = {name: make_home(name) for name in names}

    async def meet(most: list[int]) -> None:
        async with (
            node(homes["ada"], "ada") as ada,
            node(homes["bob"], "bob") as bob,
            node(homes["eve"], "eve") as eve,
            node(homes["joe"], "joe") as joe,
        ):
            everyone = (ada, bob, eve, joe)
            for one in everyone:
                await one.sees(*everyone)
            for _ in range(30):
                await trio.sleep(0.1)
                counts = [len(one.swarm.connections.all()) for one in everyone]
                most.append(max(counts))
                assert all(len(one.swarm.connections.peers()) == 3 for one in everyone)
            assert counts == [3, 3, 3, 3], "the redundant ones are closed"
            assert [one.gone() + one.links_lost() for one in everyone] == [[], [], [], []]
            for one in everyone:
                for other in everyone:
                    if other is not one:
                        await (await one.swarm.link(other.id)).send(Close(SESSION, 1, "hello"))

    async def main() -> None:
        token: tuple[str, ...] = ()
        for name in names:
            async with node(homes[name], name, *token) as one:
                token = token or (one.swarm.invitation(),)
        # everyone knows everyone's address from here on, and dials at once
        async with (
            node(homes["ada"], "ada") as ada,
            node(homes["bob"], "bob") as bob,
            node(homes["eve"], "eve") as eve,
            node(homes["joe"], "joe") as joe,
        ):
            for one in (ada, bob, eve, joe):
                await one.sees(ada, bob, eve, joe)
        most: list[int] = []
        await meet(most)
        assert max(most) > 3, "this test is to dial twice at once"

    run(main)


def test_a_node_of_the_next_version_and_one_of_this_are_a_swarm(make_home: MakeHome) -> None:
    """A rolling upgrade: the newer one has a device, a state and fields of which the older one has never heard."""

    async def main() -> None:
        home = make_home("ada")
        async with node(home, "ada") as ada:
            ada.swarm.versions = (WIRE_VERSION, WIRE_VERSION + 1)
            async with (
                node(make_home("bob"), "bob", ada.swarm.invitation()) as bob,
                node(make_home("eve"), "eve", ada.swarm.invitation()) as eve,
            ):
                for one, *others in ((ada, bob, eve), (bob, ada, eve), (eve, ada, bob)):
                    await one.sees(*others)
                (connection,) = [c for c in bob.swarm.connections.all() if c.peer == ada.id]
                assert (connection.version, connection.peer_most) == (WIRE_VERSION, WIRE_VERSION + 1)
                mark, identity = ada.swarm.secret.statement_mark(), load_identity(home)
                seq = ada.swarm.members()[ada.id].seq + 1
                profile = msgspec.to_builtins(profile_of(ada.swarm.members()[ada.id]))
                device = {"device": "npu", "device_name": "n", "memory_bytes": 1, "cores": 1, "watts": 9}
                device |= {"bandwidth_bytes_per_s": 1.0, "matmul_flops_per_s": 1.0}
                profile |= {"seq": seq, "hardware": device, "mood": ["good"]}
                status = [*msgspec.to_builtins(status_of(ada.swarm.members()[ada.id], profile_seq=0, trips_seq=0)), "x"]
                status[0:4] = [seq + 1, 1, seq, 42]
                for kind, payload in (("profile", profile), ("status", status), ("plan", {"of": "a later kind"})):
                    envelope = identity.sign(kind, msgspec.msgpack.encode(payload), mark)
                    for other in ada.swarm.connections.best_of_each():
                        other.outbox.tell(envelope)
                for one in (bob, eve):
                    await one.until(lambda one=one: one.swarm.members()[ada.id].state == "unknown")
                    hardware = one.swarm.members()[ada.id].hardware
                    assert hardware is not None
                    assert hardware.device == "unknown"
                link = await bob.swarm.link(ada.id)
                await link.send(Progress(SESSION, 1, 1))
                assert (await ada.swarm.arrivals.receive()).frame == Progress(SESSION, 1, 1)
                assert [one.gone() for one in (ada, bob, eve)] == [[], [], []]

    run(main)


def test_a_restarted_node_is_back_at_once_with_the_same_identity_and_port(make_home: MakeHome) -> None:
    async def main() -> None:
        async with node(make_home("ada"), "ada") as ada:
            token = ada.swarm.invitation()
            async with node(make_home("bob"), "bob", token) as bob:
                await ada.sees(bob)
                before = bob.swarm.members()[bob.id]
            await ada.until(lambda: bob.id in ada.gone())
            async with node(make_home("bob"), "bob") as again:
                await ada.sees(again)
                await again.sees(ada)
                after = again.swarm.members()[again.id]
                assert (after.node_id, after.addresses) == (before.node_id, before.addresses)
                assert after.seq > before.seq

    run(main)


def test_a_node_learns_of_another_that_it_cannot_reach(make_home: MakeHome) -> None:
    """Only hearsay connects the two: their addresses are taken from them."""

    async def main() -> None:
        async with node(make_home("ada"), "ada") as ada:
            token = ada.swarm.invitation()
            async with node(make_home("bob"), "bob", token) as bob, node(make_home("eve"), "eve", token) as eve:
                for one, other in ((bob, eve), (eve, bob)):
                    one.swarm._reach.forget(other.id)
                for connection in bob.swarm.connections.all():
                    if connection.peer == eve.id:
                        connection.end("disconnected", "test")
                await bob.sees(eve)
                await eve.sees(bob)

    run(main)


def test_plans_are_heard_by_all_and_by_those_who_join_when_the_author_is_gone(make_home: MakeHome) -> None:
    async def main() -> None:
        async with node(make_home("ada"), "ada") as ada:
            token = ada.swarm.invitation()
            async with node(make_home("bob"), "bob", token) as bob:
                await ada.sees(bob)
                await bob.sees(ada)
                plan = plan_for_a_thousand(bob.id, 7)
                await bob.swarm.publish_plan(plan)
                await ada.until(lambda: PlanHeard(plan) in ada.news)
            async with node(make_home("eve"), "eve", token) as eve:
                await eve.until(lambda: PlanHeard(plan) in eve.news)

    run(main)


def test_frames_arrive_whole_in_order_and_with_their_time_also_large_ones_both_ways_at_once(
    make_home: MakeHome,
) -> None:
    async def main() -> None:
        async with node(make_home("ada"), "ada") as ada, node(make_home("bob"), "bob", ada.swarm.invitation()) as bob:
            await ada.sees(bob)
            await bob.sees(ada)
            await ada.until(lambda: bob.id in ada.swarm.members()[ada.id].rtt_ms)
            body = bytes(range(256)) * 4096 * 4  # 4 MiB

            async def send(one: Watched, other: Watched) -> None:
                link = await one.swarm.link(other.id)
                for position in range(3):
                    await link.send(step_frame(SESSION, position, time.perf_counter()), body)
                    await link.send(Progress(SESSION, 1, position))

            async def receive(one: Watched, other: Watched) -> None:
                for position in range(3):
                    large = await one.swarm.arrivals.receive()
                    assert isinstance(large.frame, Step)
                    assert (large.peer, large.frame.parts[0].position, large.body) == (other.id, position, body)
                    assert 0 < large.wire_ms < 20_000
                    small = await one.swarm.arrivals.receive()
                    assert small.frame == Progress(SESSION, 1, position)
                    assert small.wire_ms == 0

            async with trio.open_nursery() as nursery:
                for one, other in ((ada, bob), (bob, ada)):
                    nursery.start_soon(send, one, other)
                    nursery.start_soon(receive, one, other)
            assert ada.gone() == bob.gone() == []

    run(main)


def test_a_sender_that_is_cancelled_half_way_does_not_harm_the_link(make_home: MakeHome) -> None:
    async def main() -> None:
        async with node(make_home("ada"), "ada") as ada, node(make_home("bob"), "bob", ada.swarm.invitation()) as bob:
            await ada.sees(bob)
            link = await ada.swarm.link(bob.id)
            with trio.move_on_after(0.02) as scope:
                await link.send(step_frame(SESSION, 1, math.inf), bytes(16 * MIB))
            assert scope.cancelled_caught
            await link.send(Progress(SESSION, 1, 2))
            first, second = await bob.swarm.arrivals.receive(), await bob.swarm.arrivals.receive()
            assert (len(first.body), first.wire_ms) == (16 * MIB, 0)
            assert second.frame == Progress(SESSION, 1, 2)

    run(main)


def test_a_link_to_a_lost_member_is_closed_and_to_a_stranger_never_opened(make_home: MakeHome) -> None:
    async def main() -> None:
        async with node(make_home("ada"), "ada") as ada:
            with pytest.raises(LinkClosed):
                await ada.swarm.link(ada.id)
            async with node(make_home("bob"), "bob", ada.swarm.invitation()) as bob:
                await ada.sees(bob)
                link = await ada.swarm.link(bob.id)
                assert await ada.swarm.link(bob.id) is link
            await ada.until(lambda: bob.id in ada.gone())
            with pytest.raises(LinkClosed):
                for _ in range(1000):
                    await link.send(Close(SESSION, 1, "x"))
            with pytest.raises(LinkClosed):
                await ada.swarm.link(bob.id)

    run(main)


def test_a_link_that_fails_is_told_to_both_and_opened_again_as_often_as_it_takes(make_home: MakeHome) -> None:
    async def main() -> None:
        async with node(make_home("ada"), "ada") as ada, node(make_home("bob"), "bob", ada.swarm.invitation()) as bob:
            await ada.sees(bob)
            await bob.sees(ada)
            for number in range(1, 3 * LINKS_PER_CONNECTION):
                link = await ada.swarm.link(bob.id)
                await link.send(Progress(SESSION, 1, number))
                assert (await bob.swarm.arrivals.receive()).frame == Progress(SESSION, 1, number)
                link.close("test")
                for one, other in ((ada, bob), (bob, ada)):
                    await one.until(lambda one=one, lost=[other.id] * number: one.links_lost() == lost)
            assert [one.gone() for one in (ada, bob)] == [[], []]
            for one in (ada, bob):
                assert [connection.links for connection in one.swarm.connections.all()] == [0]

    run(main)


def test_when_one_of_two_connections_dies_those_are_told_whose_link_it_carried(make_home: MakeHome) -> None:
    home = make_home("ada")

    async def dial_again(ada: Watched, bob: Watched) -> None:
        address = bob.swarm.members()[bob.id].addresses[0].split("/")
        socket = SocketStream(await trio.open_tcp_stream(address[2], int(address[4])))
        muxed = await Upgrader(load_identity(home)).dialed(socket, bob.id)
        connection = Connection(ada.swarm, muxed, socket, bob.id, dialed=True)
        await connection.serve(trio.current_time() + 5, lambda: None)

    async def main() -> None:
        async with (
            node(home, "ada") as ada,
            node(make_home("bob"), "bob", ada.swarm.invitation()) as bob,
            trio.open_nursery() as nursery,
        ):
            await ada.sees(bob)
            await bob.sees(ada)
            for _ in range(2):
                nursery.start_soon(dial_again, ada, bob)
            for one in (ada, bob):
                await one.until(lambda one=one: len(one.swarm.connections.all()) == 3)
            link = await ada.swarm.link(bob.id)
            await link.send(Progress(SESSION, 1, 1))
            await bob.swarm.arrivals.receive()
            carriers = [held for held in ada.swarm.connections.all() if held.links]
            idle = [held for held in ada.swarm.connections.all() if not held.links]
            assert (carriers, len(idle)) == ([link.connection], 2)

            idle[0].end("disconnected", "test")
            for one in (ada, bob):
                await one.until(lambda one=one: len(one.swarm.connections.all()) == 2)
            await trio.sleep(0.1)
            assert ada.links_lost() == bob.links_lost() == []

            link.connection.end("disconnected", "test")
            for one, other in ((ada, bob), (bob, ada)):
                await one.until(lambda one=one, other=other: one.links_lost() == [other.id])
                await one.until(lambda one=one: len(one.swarm.connections.all()) == 1)
            with pytest.raises(LinkClosed):
                await link.send(Progress(SESSION, 1, 2))
            await (await ada.swarm.link(bob.id)).send(Progress(SESSION, 1, 3))
            assert (await bob.swarm.arrivals.receive()).frame == Progress(SESSION, 1, 3)
            assert [one.gone() for one in (ada, bob)] == [[], []]
            nursery.cancel_scope.cancel()

    run(main)


def test_a_peer_that_dialed_us_and_drops_is_dialed_by_us(make_home: MakeHome) -> None:
    async def main() -> None:
        async with node(make_home("ada"), "ada") as ada, node(make_home("bob"), "bob", ada.swarm.invitation()) as bob:
            await ada.sees(bob)
            await bob.sees(ada)
            bob.swarm._reach.forget(ada.id)
            (inbound,) = ada.swarm.connections.all()
            assert not inbound.dialed
            inbound.end("disconnected", "test")
            await ada.until(lambda: any(connection.dialed for connection in ada.swarm.connections.all()))

    run(main)


def test_a_hundred_connections_that_come_and_go_leave_nothing_behind(make_home: MakeHome) -> None:
    async def main() -> None:
        async with node(make_home("ada"), "ada") as ada:
            process = psutil.Process()

            async def visit() -> None:
                async with node(make_home("bob"), "bob", ada.swarm.invitation()) as bob:
                    await ada.sees(bob)
                    await (await bob.swarm.link(ada.id)).send(Close(SESSION, 1, "hello"))
                    await ada.swarm.arrivals.receive()

            await visit()
            await trio.sleep(0.5)
            gc.collect()
            tasks, descriptors = trio.lowlevel.current_statistics().tasks_living, process.num_fds()
            for _ in range(25):
                async with trio.open_nursery() as nursery:
                    for _ in range(4):
                        nursery.start_soon(knock_and_leave, ada)
            await visit()
            await trio.sleep(0.5)
            gc.collect()
            assert trio.lowlevel.current_statistics().tasks_living <= tasks + 2
            assert process.num_fds() <= descriptors + 2

    async def knock_and_leave(ada: Watched) -> None:
        from node.swarm.identity import identity_from_seed
        from node.swarm.socket_stream import SocketStream
        from node.swarm.upgrade import Upgrader

        address = ada.swarm.members()[ada.id].addresses[0].split("/")
        stream = await trio.open_tcp_stream(address[2], int(address[4]))
        socket = SocketStream(stream)
        await Upgrader(identity_from_seed(b"k" * 32)).dialed(socket, ada.id)
        await socket.close()

    run(main)


def test_nothing_of_the_secret_is_logged(make_home: MakeHome, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with node(make_home("ada"), "ada") as ada, node(make_home("eve"), "eve") as eve:
            stranger = eve.swarm.invitation()
            async with node(make_home("bob"), "bob", ada.swarm.invitation()) as bob:
                await ada.sees(bob)
            async with node(make_home("bob"), "bob", stranger) as bob:
                await eve.sees(bob)
            for secret in (ada.swarm.secret.value, eve.swarm.secret.value):
                assert secret.hex() not in caplog.text
                assert repr(secret) not in caplog.text
                assert str(list(secret)) not in caplog.text
            for token in (ada.swarm.invitation(), stranger):
                assert token[4:40] not in caplog.text

    with caplog.at_level(logging.DEBUG):
        run(main)
