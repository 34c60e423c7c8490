"""A person opens the program before any node answers."""

from __future__ import annotations

import pytest

from node.journal.state import ModelStatus, State
from node.wire.events import ModelProgress, NodeSeen, PlanAdopted
from node.wire.records import HeldRange
from parallax_tui.screens import starting
from tests.fakes.node_api import Answer, FakeNode
from tests.fakes.swarms import DESK, FACTS, MODEL, one_node, record
from tests.fakes.terminal import at_terminal

MIB = 1024**2


async def test_the_first_start_shows_progress_and_ends_in_the_chat(node: FakeNode) -> None:
    node.state = State(DESK)
    node.answers = [Answer(["Paris."])]
    async with at_terminal(node.home) as terminal:
        await terminal.shows("starting node…", "fetch the model")
        await node.start()
        try:
            await terminal.shows("start the node")
            node.say(ModelProgress(MODEL.name, "fetch", 52 * MIB, 104 * MIB, "from the package index"))
            await terminal.shows("52 MiB of 104 MiB · 50 %", "█████", "from the package index")
            node.say(ModelProgress(MODEL.name, "convert", 10 * MIB, 100 * MIB))
            await terminal.shows("✓ fetch the model", "◐ convert it", "10 %")
            node.say(ModelProgress(MODEL.name, "load", 0, 0))
            await terminal.shows("✓ convert it", "◐ load its layers")
            alone = one_node()
            assert alone.plan is not None
            node.say(
                PlanAdopted(alone.plan),
                NodeSeen(record(DESK, held=(HeldRange(0, 30, "ready", 1),), rtt_ms={})),
                ModelProgress(MODEL.name, "ready"),
            )
            await terminal.shows("ask anything", f"{FACTS.layers} layers, whole")
            await terminal.type("Capital of France?")
            await terminal.shows("Paris.")
        finally:
            await node.stop()


async def test_a_node_that_dies_at_start_is_shown_with_its_last_words(node: FakeNode) -> None:
    words: list[str] = []
    async with at_terminal(node.home, child_problem=lambda: "\n".join(words) or None) as terminal:
        await terminal.shows("starting node…")
        words += ["Traceback: long", "parallax: /models: 2.00 GiB needed, 0.10 GiB free"]
        await terminal.shows("the node ended", "2.00 GiB needed, 0.10 GiB free", "ctrl+q quits", "the node has ended")
        await terminal.press("ctrl+q")
    assert terminal.app.return_code == 0


async def test_a_model_that_cannot_be_made_ready_says_why(node: FakeNode) -> None:
    node.state = State(DESK, model=ModelStatus("x", "failed", text="could not fetch x: no route to the index"))
    async with at_terminal(node.home) as terminal:
        await node.start()
        await terminal.shows("could not fetch x: no route to the index", "ctrl+q quits")
        await terminal.press("f2")
        await terminal.shows("no plan yet")
        await terminal.press("escape")
        await terminal.shows("could not fetch x")
        await node.stop()


async def test_control_over_loopback_tcp_sends_the_token(node: FakeNode) -> None:
    node.token, node.state = "secret-token", one_node()
    async with at_terminal(node.home) as terminal:
        await node.start()
        await terminal.shows("ask anything")
        assert {headers["authorization"] for headers in node.seen_headers} == {"Bearer secret-token"}
        await node.stop()


async def test_the_start_shows_that_time_passes_and_how_many_layers_are_loaded(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr(starting, "monotonic", lambda: now_s)
    monkeypatch.setattr(starting, "TICK_S", 0.01)
    node.state = State(DESK)
    async with at_terminal(node.home) as terminal:
        await terminal.shows("starting node…")
        assert " s\n" not in terminal.text
        now_s = 107.4
        await terminal.shows("7 s")
        await node.start()
        node.say(ModelProgress(MODEL.name, "load", 52 * MIB, 104 * MIB, "15 of 30 layers"))
        await terminal.shows("◐ load its layers", "52 MiB of 104 MiB · 50 %", "15 of 30 layers")
        now_s = 109.0
        await terminal.shows("9 s")
        await node.stop()


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_question_asked_at_the_start_waits_and_is_answered_first(node: FakeNode, elsewhere: bool) -> None:
    node.state = State(DESK)
    node.answers = [Answer(["Paris."])]
    async with at_terminal(node.home) as terminal:
        await node.start()
        try:
            await terminal.shows("start the node")
            await terminal.type("Capital of France?")
            await terminal.shows("> Capital of France?", "is answered as soon as the model can")
            await terminal.type("And of Spain?")
            await terminal.shows("one question waits already")
            assert node.asked == []
            if elsewhere:
                await terminal.press("f2")
                await terminal.shows("no plan yet")
            alone = one_node()
            assert alone.plan is not None
            ready = NodeSeen(record(DESK, held=(HeldRange(0, 30, "ready", 1),), rtt_ms={}))
            node.say(PlanAdopted(alone.plan), ready, ModelProgress(MODEL.name, "ready"))
            if elsewhere:
                await terminal.shows("0–29")
                await terminal.press("escape")
            await terminal.shows("Capital of France?", "Paris.", "And of Spain?")
            assert len(node.asked) == 1
        finally:
            await node.stop()
