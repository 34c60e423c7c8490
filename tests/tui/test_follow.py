"""The follower and the client against the fake node, without any screen."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from node.errors import NoNode
from node.wire.events import Notice
from parallax_tui.chat import Piece, Refused
from parallax_tui.chat.exchange import exchange
from parallax_tui.client import NodeClient, follow
from parallax_tui.refusal import NodeRefused
from parallax_tui.state.live import Live
from tests.fakes.node_api import Answer, FakeNode, running
from tests.fakes.swarms import one_node, three_nodes


async def test_pictures_follow_the_events(node: FakeNode) -> None:
    node.state = three_nodes()
    async with running(node), aclosing(follow(node.home.read_control)) as pictures:
        first = await anext(pictures)
        assert first.connected
        assert first.state == node.state
        node.say(Notice("info", "one"), Notice("info", "two"))
        assert [(await anext(pictures)).notices[-1].text for _ in range(2)] == ["one", "two"]


async def test_a_node_that_is_away_is_a_picture_too(node: FakeNode) -> None:
    async with aclosing(follow(node.home.read_control)) as pictures:
        away = await anext(pictures)
        assert not away.connected
        assert "no node answers" in away.problem
        node.state = one_node()
        async with running(node):
            live = away
            while not live.connected:
                live = await anext(pictures)
            assert live.problem == ""
        lost = await anext(pictures)
        assert not lost.connected
        assert lost.state == one_node()


async def test_a_restarted_node_is_never_mixed_with_its_former_life(node: FakeNode) -> None:
    node.state = three_nodes(seq=40)
    async with running(node), aclosing(follow(node.home.read_control)) as pictures:
        await anext(pictures)
        await node.stop()
        await node.restart(one_node(seq=60))
        live = Live()
        while not (live.connected and live.state is not None and live.state.seq == 60):
            live = await anext(pictures)
        assert live.state == node.state


async def test_lost_numbers_make_a_new_snapshot(node: FakeNode) -> None:
    node.state = three_nodes(seq=10)
    async with running(node), aclosing(follow(node.home.read_control)) as pictures:
        await anext(pictures)
        node.state = three_nodes(seq=12)  # two events that never come
        node.say(Notice("info", "after the hole"))
        live = await anext(pictures)
        assert live.state is not None
        assert live.state.seq == 13
        assert node.state_reads == 2


async def test_the_client_lists_models_and_tells_refusals(node: FakeNode) -> None:
    node.token = "right"
    async with running(node):
        async with NodeClient(node.home.read_control()) as client:
            assert await client.models() == ["toy"]
        node.token = "changed"
        wrong = node.home.read_control()
        async with NodeClient(wrong) as client:
            with pytest.raises(NodeRefused, match="no valid token") as refusal:
                await client.state()
            assert refusal.value.status == 401
    async with NodeClient(wrong) as client:
        with pytest.raises(NoNode):
            await client.state()


async def test_closing_an_exchange_hangs_up(node: FakeNode) -> None:
    node.answers = [Answer(["one", asyncio.Event()])]
    async with running(node):
        async with aclosing(exchange(node.home.read_control, "toy", [{"role": "user", "content": "x"}])) as parts:
            assert await anext(parts) == Piece("one")
        await asyncio.wait_for(node.hung_up.wait(), 5)


async def test_an_exchange_without_a_node_is_a_refusal(node: FakeNode) -> None:
    parts = [part async for part in exchange(node.home.read_control, "toy", [])]
    assert len(parts) == 1
    assert isinstance(parts[0], Refused)
    assert "no node answers" in parts[0].reason


async def test_settings_travel_with_the_request(node: FakeNode) -> None:
    node.answers = [Answer(["x"])]
    async with running(node):
        async for _ in exchange(node.home.read_control, "toy", [], max_tokens=7, temperature=0):
            pass
    assert (node.asked[0]["max_tokens"], node.asked[0]["temperature"]) == (7, 0)
