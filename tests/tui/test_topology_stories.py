"""A person looks at the swarm."""

from __future__ import annotations

from node.journal.state import NodeView
from node.wire.events import NodeGone, NodeSeen, Notice
from node.wire.records import HeldRange
from tests.fakes.node_api import FakeNode
from tests.fakes.swarms import DESK, LOFT, NAMES, STUDIO, record, three_nodes
from tests.fakes.terminal import at_node


async def test_three_nodes_tile_the_model(node: FakeNode) -> None:
    node.state = three_nodes()
    async with at_node(node) as terminal:
        await terminal.press("f2")
        await terminal.shows(*NAMES.values(), "0–9", "10–19", "20–29", "● ready", "30 layers, whole")
        await terminal.shows("studio limits you: 58 % of a step (10.8 ms of 18.7 ms), mostly computing")
        await terminal.press("escape")
        await terminal.shows("ask anything")


async def test_a_node_that_dies_leaves_a_gap_that_is_told_in_words(node: FakeNode) -> None:
    node.state = three_nodes()
    async with at_node(node) as terminal:
        await terminal.press("f2")
        await terminal.shows("studio")
        node.say(NodeGone(STUDIO, "studio", "silent"))
        await terminal.shows(
            "layers 10–19 have no node: waiting for studio to return", "✕ gone", "layers 10–19 missing"
        )
        await terminal.press("end")
        await terminal.shows("! studio fell silent")
        node.say(NodeSeen(record(STUDIO, held=(HeldRange(10, 20, "loading", 1),))))
        await terminal.press("home")
        await terminal.shows("layers 10–19 are being loaded by studio", "◐ loading")
        node.say(NodeSeen(record(STUDIO)))
        await terminal.shows("30 layers, whole")
        await terminal.hides("being loaded", "no node")


async def test_a_gap_that_was_there_from_the_start(node: FakeNode) -> None:
    members = {node_id: NodeView(record(node_id), 0.0) for node_id in (DESK, LOFT)}
    node.state = three_nodes(nodes=members)
    async with at_node(node) as terminal:
        await terminal.shows("layers 10–19 have no node")
        await terminal.press("f2")
        await terminal.shows("waiting for studio02 to return", "no node")


async def test_a_small_terminal_still_shows_it_all_by_scrolling(node: FakeNode) -> None:
    node.state = three_nodes()
    async with at_node(node, size=(60, 15)) as terminal:
        await terminal.press("f2")
        await terminal.shows("desk", "studio", "loft", "● ready")
        await terminal.press("pagedown", "pagedown")
        await terminal.shows("limits you")


async def test_names_and_problems_from_peers_cannot_write_to_the_terminal(node: FakeNode) -> None:
    node.state = three_nodes()
    async with at_node(node, size=(120, 40)) as terminal:
        await terminal.press("f2")
        node.say(
            NodeSeen(record(STUDIO, name="\x1b[2Jevil", problem="no\x07 room [bold]here[/bold]", state="failed")),
            Notice("error", "\x1b]0;title\x07 text"),
        )
        await terminal.shows("evil", "✕ failed", "room [bold]here[/bold]", "title")
        assert not any(ord(character) < 32 for character in terminal.text.replace("\n", ""))


async def test_help_lists_the_keys_and_closes(node: FakeNode) -> None:
    node.state = three_nodes()
    async with at_node(node, size=(80, 50)) as terminal:
        await terminal.press("f1")
        await terminal.shows("Stop the answer", "^r", "page up", "keymap.toml")
        await terminal.press("f1")
        await terminal.hides("keymap.toml")
        await terminal.press("f2", "question_mark")
        await terminal.shows("Stop the answer")
        await terminal.press("escape")
        await terminal.hides("keymap.toml")


async def test_the_palette_runs_actions_and_changes_the_theme(node: FakeNode) -> None:
    node.state = three_nodes()
    async with at_node(node) as terminal:
        await terminal.press("ctrl+p")
        await terminal.shows("Change the theme", "Topology")
        await terminal.press(*"topol", "enter")
        await terminal.until(lambda: terminal.app.current_mode == "topology")
        await terminal.press("ctrl+p")
        await terminal.shows("Change the theme")
        await terminal.press(*"change", "enter")
        await terminal.shows("parallax-light")
        await terminal.press(*"light", "enter")
        await terminal.until(lambda: terminal.app.theme == "parallax-light")
        await terminal.until((node.home.config.parent / "tui.toml").is_file)
    async with at_node(node) as again:
        assert again.app.theme == "parallax-light"
