"""`parallax -p` and `parallax status` against a node that says what the test wants."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from node.errors import NodeSilent, NoNode, ParallaxError
from node.home import Home
from node.journal.state import NodeView
from node.wire.events import ModelProgress, PlanImpossible
from node.wire.records import HeldRange
from parallax_tui.cli import build_parser, main
from parallax_tui.client import NodeClient
from parallax_tui.headless import one_question, piped
from parallax_tui.headless.child_nodes import last_words
from parallax_tui.headless.node_connection import Health, OtherVersion, read_health, read_state
from parallax_tui.headless.one_question import Question, ask
from parallax_tui.headless.piped import readable, text_of
from parallax_tui.headless.status_report import as_json, as_text
from parallax_tui.headless.status_watch import watch
from parallax_tui.headless.terminal import can_repaint
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


async def test_a_question_that_comes_while_layers_load_is_asked_again(
    node: FakeNode, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_question, "RETRY_EVERY_S", 0.0)
    loading = Answer(refuse=(503, b'{"error": {"message": "layers 0-9 have no ready node"}}'))
    node.answers = [loading, Answer(refuse=(502, b'{"error": {"message": "lost"}}')), Answer(["There", "."])]
    async with running(node):
        assert await answer_of(home) == "There.\n"
    assert len(node.asked) == 3


async def test_a_question_that_is_wrong_is_not_asked_again(node: FakeNode, home: Home) -> None:
    node.answers = [Answer(refuse=(400, b'{"error": {"message": "too long"}}'))]
    async with running(node):
        with pytest.raises(ParallaxError, match="too long"):
            await answer_of(home)
    assert len(node.asked) == 1


async def test_one_missed_look_at_a_busy_node_is_no_end(
    node: FakeNode, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.answers = [Answer(["There."])]
    looks = 0

    def sometimes(home: Home, patience_s: float = 0.0) -> Health:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise NodeSilent("here")
        if looks == 2:
            raise NoNode("here")
        return read_health(home)

    monkeypatch.setattr(one_question, "read_health", sometimes)
    async with running(node):
        assert await answer_of(home) == "There.\n"
    assert looks == 3


async def test_nothing_of_the_networks_environment_keeps_us_from_our_own_node(
    node: FakeNode, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent/cacert.pem")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    node.answers = [Answer(["There."])]
    async with running(node):
        assert await answer_of(home) == "There.\n"
        async with NodeClient(home.read_control()) as client:
            assert await client.models() == ["toy"]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"caf\xe9 at noon", "café at noon"),
        ("café 🎉".encode(), "café 🎉"),
        ("café".encode("utf-16"), "café"),
        ("café".encode("utf-8-sig"), "café"),
        ("café, naïve, 🎉".encode() + b"\xff", "café, naïve, 🎉\N{REPLACEMENT CHARACTER}"),
        (b"\x00\xff\x81", None),
        (b"", ""),
    ],
)
def test_any_bytes_become_text(data: bytes, text: str | None) -> None:
    read = text_of(data)
    assert text is None or read == text
    readable(os.fsdecode(data)).encode()


def test_a_silent_stdin_is_said_to_be_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = threading.Event()
    monkeypatch.setattr(piped, "TELL_AFTER_S", 0.0)
    plain = print

    def told_print(*words: object, **options: Any) -> None:
        plain(*words, **options)
        told.set()

    monkeypatch.setattr("builtins.print", told_print)

    class Silent(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: object) -> int:
            assert told.wait(10)
            return 0

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Silent())))
    assert piped.with_stdin("Where?") == "Where?"
    assert "reading stdin" in capsys.readouterr().err


def test_what_the_console_cannot_show_does_not_end_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    with pytest.raises(SystemExit):
        main(["--version"])
    sys.stdout.write("🎉 \udce9 é")
    sys.stdout.flush()
    assert raw.getvalue().endswith(b"? ? ?")


@pytest.mark.parametrize(
    ("code", "lines", "said"),
    [
        (2, ["12:00:00 info main: x", "parallax: --api 1:2: taken"], r"^--api 1:2: taken$"),
        (-9, ["12:00:00 info live.mover: layers are ready"], r"SIGKILL.*memory"),
        (-11, [], "SIGSEGV"),
        (1, ["Traceback", "  File x", "ValueError: no such thing"], r"status 1 \(ValueError: no such thing\)"),
        (1, ["  | ExceptionGroup: x (1 sub-exception)", "    | KeyError: 'a'"], r"status 1 \(KeyError: 'a'\)"),
        (1, ["12:00:00 info main: API at http://127.0.0.1:8765/v1"], r"^the node ended with status 1; its log is"),
    ],
)
def test_the_last_sentence_of_a_node_names_the_cause(code: int, lines: list[str], said: str) -> None:
    words = last_words(code, lines, Path("/home/node.log"))
    assert re.search(said, words)
    assert "info" not in words


@pytest.mark.parametrize("arguments", [["-p", "Hi"], ["node"], ["status"], ["invite"]])
def test_a_home_that_is_a_file_is_a_sentence_for_every_command(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = subprocess.run(
        [sys.executable, "-m", "parallax_tui.cli", *arguments],
        env={**os.environ, "PARALLAX_HOME": str(tmp_path / "file")},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode in (1, 2, 4)
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("parallax: ")


def test_a_dumb_terminal_gets_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "dumb")
    assert not can_repaint(Terminal())
    monkeypatch.setenv("TERM", "xterm")
    assert can_repaint(Terminal())
    assert not can_repaint(io.StringIO())


@pytest.mark.parametrize("command", [[], ["node"], ["invite"], ["status"], ["plan"], ["models"]])
def test_help_is_wrapped_to_the_terminal(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        build_parser().parse_args([*command, "--help"])
    told = capsys.readouterr().out
    assert not [line for line in told.splitlines() if len(line) > 80]
    assert command or "\n\nfolders: " in told
