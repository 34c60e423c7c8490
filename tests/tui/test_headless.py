"""`parallax -p` and `parallax status` against a node that says what the test wants."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator

import pytest

from node.errors import NoNode, ParallaxError
from node.home import Home
from node.journal.state import NodeView
from node.wire.events import ModelProgress, PlanImpossible
from node.wire.records import HeldRange
from parallax_tui.cli import main
from parallax_tui.headless.node_connection import OtherVersion, read_health, read_state
from parallax_tui.headless.one_question import Question, ask
from parallax_tui.headless.status_report import as_json, as_text
from parallax_tui.headless.status_watch import watch
from tests.fakes.node_api import Answer, FakeNode, running
from tests.fakes.swarms import DESK, LOFT, record, steered, three_nodes

QUESTION = Question("Where?", None, 0.0, None, as_json=False)
WAITING = {"status": "waiting", "version": "0.0.1", "reason": "the nodes are measuring themselves"}


async def answer_of(home: Home, problem: str | None = None) -> str:
    out = io.StringIO()
    await asyncio.wait_for(asyncio.to_thread(ask, home, QUESTION, lambda: problem, out), 20)
    return out.getvalue()


async def test_a_node_without_layers_of_its_own_has_the_swarm_answer(node: FakeNode, home: Home) -> None:
    node.answers = [Answer(["There", "."])]
    assert node.state.model.phase == "none"
    async with running(node):
        assert await answer_of(home) == "There.\n"


async def test_a_node_that_could_not_load_has_the_swarm_answer(node: FakeNode, home: Home) -> None:
    node.answers = [Answer(["There", "."])]
    node.say(ModelProgress("toy", "failed", text="no room for layers 0–3"))
    async with running(node):
        assert await answer_of(home) == "There.\n"


async def test_a_swarm_that_cannot_answer_says_why(node: FakeNode, home: Home) -> None:
    node.health = WAITING
    node.say(PlanImpossible("toy does not fit: 3 GiB missing"))
    async with running(node):
        with pytest.raises(ParallaxError, match="3 GiB missing") as refused:
            await answer_of(home)
    assert refused.value.exit_code == 2, "as when a plan is asked for"
    assert not node.asked


async def test_a_local_node_that_ends_while_the_others_wait_is_told(node: FakeNode, home: Home) -> None:
    node.health = WAITING
    async with running(node):
        with pytest.raises(ParallaxError, match="local-2 ended: no room"):
            await answer_of(home, problem="local-2 ended: no room")


@pytest.mark.parametrize("state", [b'{"self_id": 7}', b"<html>", b'"\xff"'])
async def test_a_node_of_another_version_is_a_sentence(
    node: FakeNode, home: Home, state: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    node.raw_state = state
    monkeypatch.setenv("PARALLAX_HOME", str(home.data))
    async with running(node):
        with pytest.raises(OtherVersion, match=r"another version \(0\.0\.1, this program is") as raised:
            await asyncio.to_thread(read_state, home)
        assert str(home.socket_path) in str(raised.value)
        assert await asyncio.to_thread(main, ["status", "--once"]) == 1
    assert "another version" in capsys.readouterr().err


async def test_health_that_cannot_be_read_is_a_sentence_too(node: FakeNode, home: Home) -> None:
    node.health = {"state": "fine"}
    async with running(node):
        with pytest.raises(OtherVersion, match="unknown"):
            await asyncio.to_thread(read_health, home)


def test_the_status_tells_what_was_decided_and_why() -> None:
    text = as_text(steered())
    for told in ("plan 3 · latency · whole", "1 pipeline of up to 2 stages", "standby: loft holds nothing: it drains"):
        assert told in text
    for told in ("desk holds layers 0–14", "loft drains", "studio uses at most 1.0 GiB"):
        assert f"set by hand: {told}" in text
    told = json.loads(as_json(steered()))
    assert told["objective"] == told["settings"]["objective"] == "latency"
    assert [(each["name"], each["duty"]) for each in told["settings"]["overrides"]] == [
        ("desk", "serve"),
        ("loft", "drain"),
        ("studio", "serve"),
    ]
    assert [(each["name"], each["duty"]) for each in told["nodes"]][-1] == ("loft", "drain")
    assert told["standby"] == [{"node": LOFT, "name": "loft", "reason": "loft holds nothing: it drains"}]


def test_a_node_is_on_standby_only_when_the_last_answer_on_it_has_ended() -> None:
    def row_of(**changes: object) -> str:
        leaving = NodeView(record(LOFT, state="standby", **changes), 0.0)
        text = as_text(three_nodes(nodes={LOFT: leaving}))
        return next(line for line in text.splitlines() if line.startswith("loft"))

    assert "draining" in row_of(held=(HeldRange(20, 30, "draining", 1),))
    assert "draining" in row_of(held=(), sessions=1)
    assert "standby" in row_of(held=())


def test_names_from_peers_cannot_write_to_the_terminal() -> None:
    state = three_nodes(nodes={DESK: NodeView(record(DESK, name="\x1b[2Jevil", problem="a\x07b"), 0.0)})
    text = as_text(state)
    assert "evil" in text
    assert not any(ord(character) < 32 for character in text.replace("\n", ""))


def test_watching_the_status_outlives_the_node_and_ends_with_ctrl_c() -> None:
    said: Iterator[str | BaseException] = iter(["whole", NoNode("here"), "whole again", KeyboardInterrupt()])
    out = io.StringIO()

    def report() -> str:
        word = next(said)
        if isinstance(word, BaseException):
            raise word
        return word

    watch(report, out, wait=lambda: None)
    pictures = out.getvalue().split("\x1b[H")
    assert [picture.split("\x1b[K")[0] for picture in pictures[1:]] == ["whole", f"{NoNode('here')}", "whole again"]
    assert "still trying" in pictures[2]


def test_watching_what_is_not_there_is_refused() -> None:
    def report() -> str:
        raise NoNode("here")

    with pytest.raises(NoNode):
        watch(report, io.StringIO(), wait=lambda: None)
