"""`parallax -p TEXT`: one question, its answer on stdout and nothing else there."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TextIO

import msgspec

from node.errors import NodeSilent, NoNode, NoRoute, ParallaxError, PlanError
from node.home import Home
from node.journal.state import ModelStatus
from parallax_tui.headless.node_connection import answers, read_health, read_state
from parallax_tui.headless.plain_http import Answer, NodeUnreached, asked
from parallax_tui.headless.terminal import can_repaint
from parallax_tui.refusal import NodeRefused, refusal

READY_S = 1800.0
"""A first start fetches and converts a model; a slow line needs a while, and the progress is shown."""

ENDING_S = 5.0
"""Between a node's last answer and the end of its process, at most."""

POLL_S = 0.5
"""Between two looks at how far the node is; it says at once that it can answer."""
TELL_AFTER_S = 30.0
"""A usual start takes less; a first one, which fetches the model, may take longer."""

RETRY_S, RETRY_EVERY_S = 60.0, 1.0
"""A question that is refused while layers load, or for a node that was lost, is asked again for so long."""

PASSING = (429, 502, 503)
"""Refusals that pass: no room, a lost node, layers that nobody has ready."""

SILENT_S = 120.0
"""A node that answers nothing for so long, on a machine that may be short of memory, is given up."""

PATIENCE_S = 3.0
"""A plan problem may be a passing one while nodes find one another; one that stays this long is told."""


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask, and how."""

    prompt: str
    max_tokens: int | None
    temperature: float
    seed: int | None
    as_json: bool


def ask(home: Home, question: Question, problem: Callable[[], str | None], out: TextIO) -> None:
    """Wait until the swarm can answer, ask, and write the answer as it comes.

    What is refused because layers load or a node has gone, before a word of the answer has come, is asked again.

    Raises:
        ParallaxError: the node ended, refuses, or lost a hop; what had come of the answer is on `out` by then.
    """
    give_up_s: float | None = None
    while True:
        _wait_until_served(home, problem)
        try:
            _ask_once(home, question, problem, out)
        except _NotYet as refused:
            now_s = time.monotonic()
            give_up_s = give_up_s or now_s + RETRY_S
            if now_s > give_up_s:
                raise refused.why from None
            time.sleep(RETRY_EVERY_S)
        else:
            return


class _NotYet(Exception):
    """Refused in a way that passes; `why` is what to tell where it does not."""

    def __init__(self, why: ParallaxError) -> None:
        self.why = why


def _ask_once(home: Home, question: Question, problem: Callable[[], str | None], out: TextIO) -> None:
    body: dict[str, Any] = {
        "model": "",
        "messages": [{"role": "user", "content": question.prompt}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    for field in ("max_tokens", "temperature", "seed"):
        value = getattr(question, field)
        if value is not None:
            body[field] = value
    control = home.read_control()
    try:
        with asked(control, "POST", "/v1/chat/completions", body, answer_s=None) as answer:
            if answer.status != 200:
                refused = refusal(answer.status, answer.body())
                if answer.status in PASSING:
                    raise _NotYet(refused)
                raise refused
            _write_answer(answer, question.as_json, out)
    except NodeUnreached as error:
        raise _NotYet(ParallaxError(f"the node takes no question: {problem() or error}")) from error
    except NoNode as error:
        raise ParallaxError(f"the connection to the node broke: {problem() or error}") from error


def _write_answer(answer: Answer, as_json: bool, out: TextIO) -> None:
    text, ended = "", ""
    summary: dict[str, Any] = {}
    for line in answer.lines():
        if not line.startswith(b"data: ") or line == b"data: [DONE]":
            continue
        chunk = msgspec.json.decode(line[6:])
        if "error" in chunk:
            raise NodeRefused(answer.status, chunk["error"]["message"])
        if chunk.get("usage"):
            summary["usage"] = chunk["usage"]
        for choice in chunk["choices"]:
            piece = choice["delta"].get("content") or ""
            text += piece
            if choice["finish_reason"]:
                ended = choice["finish_reason"]
                summary |= {"model": chunk["model"], "parallax": chunk["parallax"]}
            if not as_json and piece:
                out.write(piece)
                out.flush()
    if as_json:
        told = {"text": text, "finish_reason": ended, **summary}
        out.write(msgspec.json.format(msgspec.json.encode(told), indent=2).decode() + "\n")
    elif not text.endswith("\n"):
        out.write("\n")
    out.flush()


def _wait_until_served(home: Home, problem: Callable[[], str | None]) -> None:
    """Health decides: a node that holds no layers, or failed to load its own, can still have the others answer."""
    deadline = time.monotonic() + READY_S
    troubled_s: float | None = None
    silent_s: float | None = None
    patience_s = 0.0
    with _ProgressLine(sys.stderr) as progress:
        while True:
            if (said := problem()) is not None:
                raise ParallaxError(said)
            try:
                asked_s = time.monotonic()
                health = read_health(home, patience_s)
                early_s = asked_s + patience_s - time.monotonic()
                patience_s = POLL_S
                if health.status == "ok":
                    return
                state = read_state(home)
                silent_s = None
            except NodeSilent:
                silent_s = silent_s or time.monotonic()
                if time.monotonic() - silent_s > SILENT_S:
                    raise
                continue
            except NoNode:
                if (words := _last_words(problem, home)) is None:
                    continue  # it is back
                raise ParallaxError(words) from None
            trouble = state.plan_problem or (state.model.text if state.model.phase == "failed" else "")
            troubled_s = (troubled_s or time.monotonic()) if trouble else None
            if troubled_s is not None and time.monotonic() - troubled_s > PATIENCE_S:
                raise PlanError(trouble) if state.plan_problem else ParallaxError(trouble)
            if time.monotonic() > deadline:
                raise NoRoute(f"nothing is served after {READY_S / 60:.0f} minutes: {health.reason}")
            progress.show(state.model, health.reason)
            if early_s > 0:
                time.sleep(early_s)  # of a version that answers at once


def _last_words(problem: Callable[[], str | None], home: Home) -> str | None:
    """What a node that does not answer says at its end: more than we know of it. None where it answers again."""
    deadline = time.monotonic() + ENDING_S
    while time.monotonic() < deadline:
        if (said := problem()) is not None:
            return said
        if answers(home):
            return None
        time.sleep(0.05)
    return f"the node stopped answering; its log is {home.data / 'node.log'}"


class _ProgressLine:
    """One line that is written over; where stderr is no terminal, one sentence if it takes long."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown = ""
        self._told = False
        self._begun_s = time.monotonic()

    def __enter__(self) -> _ProgressLine:
        return self

    def __exit__(self, *error: object) -> None:
        self._write("")

    def show(self, model: ModelStatus, reason: str) -> None:
        """How far the model is; without a terminal, once, what keeps the answer waiting for long."""
        if not can_repaint(self._stream):
            if not self._told and time.monotonic() - self._begun_s > TELL_AFTER_S:
                self._told = True
                why = reason.removesuffix("; try again in a moment")  # which is what we do
                self._stream.write(f"parallax: waiting: {why}\n")
            return
        share = f" {100 * model.done_bytes / model.total_bytes:3.0f} %" if model.total_bytes else ""
        words = {"fetch": "fetching", "convert": "converting", "load": "loading"}
        self._write(f"{words.get(model.phase, 'starting')} {model.model}{share}".rstrip())

    def _write(self, text: str) -> None:
        if can_repaint(self._stream) and text != self._shown:
            self._stream.write(f"\r{text:<{len(self._shown)}}" + ("" if text else "\r"))
            self._stream.flush()
            self._shown = text
