"""The screens at 80x24 as plain text, to be read in a diff. UPDATE_SNAPSHOTS=1 writes them anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from node.journal.state import ModelStatus, State
from node.wire.events import NodeGone
from tests.fakes.node_api import Answer, FakeNode
from tests.fakes.swarms import DESK, MODEL, STUDIO, hops, one_node, steered, three_nodes
from tests.fakes.terminal import Terminal, at_node, at_terminal, check_snapshot

FOLDER = Path(__file__).parent / "screens"
ANSWER = """The capital of France is **Paris**.

1. It lies on the *Seine*
2. `2.1 million` people live there

```python
print("Bonjour")
```

| City | People |
|---|--:|
| Paris | 2.1 M |
"""


async def settled(terminal: Terminal, *words: str) -> str:
    """The screen's text once it shows the words and has stopped changing."""
    await terminal.shows(*words)
    text = ""
    while text != terminal.text:
        text = terminal.text
        await terminal.pilot.pause(0.15)
    return text


async def test_starting(node: FakeNode) -> None:
    node.state = State(DESK, model=ModelStatus(MODEL.name, "fetch", 52 * 2**20, 104 * 2**20, "from the package index"))
    async with at_terminal(node.home) as terminal:
        check_snapshot(FOLDER / "starting.txt", await settled(terminal, "starting node…"))
        await node.start()
        check_snapshot(FOLDER / "fetching.txt", await settled(terminal, "52 MiB of 104 MiB"))
        await node.stop()


@pytest.mark.parametrize(("name", "state"), [("empty_alone", one_node), ("empty_three", three_nodes)])
async def test_empty_chat(name: str, state: Callable[[], State], node: FakeNode) -> None:
    node.state = state()
    async with at_node(node) as terminal:
        check_snapshot(FOLDER / f"{name}.txt", await settled(terminal, "ask anything"))


async def test_chat(node: FakeNode) -> None:
    node.state = three_nodes()
    node.answers = [Answer([ANSWER], hops=hops())]
    async with at_node(node) as terminal:
        await terminal.type("What is the capital of France?")
        check_snapshot(FOLDER / "chat.txt", await settled(terminal, "TTFT"))


async def test_topology(node: FakeNode) -> None:
    node.state = three_nodes()
    async with at_node(node) as terminal:
        await terminal.press("f2")
        check_snapshot(FOLDER / "topology.txt", await settled(terminal, "limits you"))
        node.say(NodeGone(STUDIO, "studio", "silent"))
        check_snapshot(FOLDER / "topology_gap.txt", await settled(terminal, "no node"))


async def test_wide_topology(node: FakeNode) -> None:
    node.state = three_nodes()
    async with at_node(node, size=(120, 40)) as terminal:
        await terminal.press("f2")
        check_snapshot(FOLDER / "topology_120x40.txt", await settled(terminal, "limits you"))


async def test_steered_topology(node: FakeNode) -> None:
    node.state = steered()
    async with at_node(node) as terminal:
        await terminal.press("f2")
        check_snapshot(FOLDER / "topology_steered.txt", await settled(terminal, "limits you"))


async def test_help(node: FakeNode) -> None:
    node.state = one_node()
    async with at_node(node) as terminal:
        await terminal.press("f1")
        check_snapshot(FOLDER / "help.txt", await settled(terminal, "Everywhere"))
