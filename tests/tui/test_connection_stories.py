"""The node goes away, hangs, comes back as another."""

from __future__ import annotations

from node.wire.events import Notice
from tests.fakes.node_api import Answer, FakeNode
from tests.fakes.swarms import one_node, three_nodes
from tests.fakes.terminal import at_node, at_terminal


async def test_a_node_that_goes_away_is_told_and_its_return_too(node: FakeNode) -> None:
    node.state = three_nodes(requests=())
    node.answers = [Answer(["Back again."])]
    async with at_node(node) as terminal:
        await terminal.shows("3 nodes")
        await node.stop()
        await terminal.shows("node unreachable, retrying")
        await terminal.type("Hello")
        await terminal.shows("✕ no node answers at")
        await node.restart(one_node())
        await terminal.shows("1 node")
        await terminal.hides("node unreachable")
        await terminal.press("ctrl+r")
        await terminal.shows("Back again.")


async def test_events_that_are_no_longer_kept_lead_to_a_new_snapshot(node: FakeNode) -> None:
    node.state = three_nodes(requests=())
    node.oldest_kept = 99
    async with at_node(node) as terminal:
        await terminal.until(lambda: node.state_reads > 2)
        node.oldest_kept = 0
        node.say(Notice("info", "now heard"))
        await terminal.press("f2")
        await terminal.until(
            lambda: any(notice.text == "now heard" for notice in terminal.app.live.notices) or node.state_reads
        )
        assert terminal.app.live.connected


async def test_an_answer_that_breaks_off_because_the_node_died(node: FakeNode) -> None:
    import asyncio

    node.state = one_node()
    node.answers = [Answer(["So far ", asyncio.Event()])]
    async with at_node(node) as terminal:
        await terminal.type("Hello")
        await terminal.shows("So far")
        await node.stop()
        await terminal.shows("the node went away during the answer", "node unreachable, retrying")


async def test_a_node_of_another_version_is_named_not_crashed_on(node: FakeNode) -> None:
    async with at_terminal(node.home) as terminal:
        node.state = "not a state"  # type: ignore[assignment]
        await node.start()
        await terminal.until(lambda: "different versions" in terminal.app.live.problem)
        await node.stop()
