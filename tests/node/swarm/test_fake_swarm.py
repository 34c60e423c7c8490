"""The in-memory swarm keeps the promises of node.swarm.base that the pipeline's tests rely on."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from node.errors import LinkClosed
from node.swarm.base import LinkLost, MemberGone, MemberSeen, Swarm
from node.wire.frames import Close, Progress
from tests.fakes.frames import step_frame
from tests.fakes.swarm import open_fake_network

SESSION = "0" * 32


def run(main: object) -> None:
    trio.run(main, clock=MockClock(autojump_threshold=0))  # type: ignore[arg-type]


def test_frames_arrive_in_order_after_the_delay_with_their_own_copy_of_the_body() -> None:
    async def main() -> None:
        async with open_fake_network("ada", "bob", delay_s=0.25) as network:
            ada, bob = network.swarms
            link = await ada.link(bob.node_id)
            body = bytearray(b"abcd")
            await link.send(step_frame(SESSION, 0, 0.0), body)
            body[:] = b"zzzz"
            for position in range(3):
                await link.send(Progress(SESSION, 1, position))
            started = trio.current_time()
            first = await bob.arrivals.receive()
            assert trio.current_time() - started == pytest.approx(0.25)
            assert (first.peer, bytes(first.body)) == (ada.node_id, b"abcd")
            assert first.wire_ms == pytest.approx(250)
            rest = [await bob.arrivals.receive() for _ in range(3)]
            assert [arrival.frame for arrival in rest] == [Progress(SESSION, 1, p) for p in range(3)]
            assert rest[0].wire_ms == 0

    run(main)


def test_killing_a_member_closes_its_links_and_is_told() -> None:
    async def main() -> None:
        async with open_fake_network("ada", "bob", "eve") as network:
            ada, bob, eve = network.swarms
            link = await ada.link(bob.node_id)
            network.kill(bob)
            with pytest.raises(LinkClosed):
                await link.send(Close(SESSION, 1, "test"))
            with pytest.raises(LinkClosed):
                await ada.link(bob.node_id)
            news = [await eve.news.receive() for _ in range(4)]
            assert news[-1] == MemberGone(bob.node_id, "bob", "disconnected")
            assert set(eve.members()) == {ada.node_id, eve.node_id}
            async for _ in bob.arrivals:
                raise AssertionError("nothing arrives at the dead")

    run(main)


def test_a_partition_parts_two_and_heals() -> None:
    async def main() -> None:
        async with open_fake_network("ada", "bob", "eve") as network:
            ada, bob, eve = network.swarms
            network.partition(ada, bob)
            assert set(ada.members()) == {ada.node_id, eve.node_id}
            assert set(eve.members()) == {ada.node_id, bob.node_id, eve.node_id}
            await bob.update(state="serving")
            network.heal(ada, bob)
            assert ada.members()[bob.node_id].state == "serving"
            await (await ada.link(bob.node_id)).send(Close(SESSION, 1, "test"))
            assert (await bob.arrivals.receive()).peer == ada.node_id

    run(main)


def test_a_broken_link_loses_what_is_under_way_is_told_to_both_and_can_be_opened_again() -> None:
    async def main() -> None:
        async with open_fake_network("ada", "bob", delay_s=0.5) as network:
            ada, bob = network.swarms
            link = await ada.link(bob.node_id)
            await link.send(Close(SESSION, 1, "lost"))
            network.break_link(ada, bob)
            with pytest.raises(LinkClosed):
                await link.send(Close(SESSION, 1, "too late"))
            await (await ada.link(bob.node_id)).send(Close(SESSION, 1, "again"))
            assert (await bob.arrivals.receive()).frame == Close(SESSION, 1, "again")
            for one, other in ((ada, bob), (bob, ada)):
                news = [await one.news.receive() for _ in range(3)]
                assert news[-1] == LinkLost(other.node_id, "the connection broke")
                assert set(one.members()) == {ada.node_id, bob.node_id}

    run(main)


def test_an_update_is_seen_by_all_and_by_its_owner() -> None:
    async def main() -> None:
        async with open_fake_network("ada", "bob") as network:
            ada, bob = network.swarms
            await ada.update(sessions=3)
            for swarm in (ada, bob):
                while not (isinstance(news := await swarm.news.receive(), MemberSeen) and news.record.sessions == 3):
                    pass

    run(main)


def test_the_fake_is_a_swarm() -> None:
    def takes(_: Swarm) -> None: ...

    async def main() -> None:
        async with open_fake_network("ada") as fake:
            takes(fake.swarms[0])

    run(main)


def test_severed_members_stay_members_and_are_heard_through_a_third() -> None:
    async def main() -> None:
        async with open_fake_network("ada", "bob", "eve", delay_s=0.01) as network:
            ada, bob, eve = network.swarms
            network.sever(ada, bob)
            assert bob.node_id in ada.members()
            sent_s = trio.current_time()
            await (await ada.link(bob.node_id)).send(Progress(SESSION, 1, 1))
            await bob.arrivals.receive()
            assert trio.current_time() - sent_s == pytest.approx(0.02)
            network.sever(bob, eve)
            with pytest.raises(LinkClosed):
                await ada.link(bob.node_id)
            network.heal(ada, bob)
            await (await ada.link(bob.node_id)).send(Progress(SESSION, 1, 2))

    trio.run(main, clock=MockClock(autojump_threshold=0))
