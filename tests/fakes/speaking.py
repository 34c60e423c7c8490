"""A node's HTTP app over answers that are written down: no model, no swarm, every dialect."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import trio
from starlette.testclient import TestClient

from node.api.http.owner import Owner
from node.api.routes.apps import client_app
from node.api.service import Service
from node.journal.log import Journal
from node.models import ChatModel
from node.models.chat_model import Prompt
from node.models.speech import Speech
from node.pipeline.dispatch import Dispatcher
from node.pipeline.failover import FailoverStream
from node.pipeline.generation import Generation, TokenStep
from node.wire.frames import Hop, HopTiming
from tests.fakes.node_control import FakeNodeControl
from tests.fakes.swarms import DESK, plan

STOP = 0
PLAIN = Speech("generic", None, False, frozenset())
HERMES = Speech("hermes", ("<think>", "</think>"), True, frozenset({"enable_thinking"}))
CHAIN = (Hop(DESK, 0, 30),)


class Pieces:
    """Token `n` is the text of piece `n`, counted from 1."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts

    def push(self, token: int) -> str:
        return self._texts[token - 1]

    def finish(self) -> str:
        return ""


@dataclass
class FakeChatModel:
    """Renders messages as JSON, one token for each word; says what the dispatcher's script says."""

    texts: Sequence[str] = ()
    speech: Speech = PLAIN
    context_tokens: int = 1000
    stop_tokens: tuple[int, ...] = (STOP,)
    goes_round: bool = False
    recommended: object = field(default_factory=lambda: SimpleNamespace(temperature=0.0, top_p=1.0, top_k=0))
    prompts: list[dict[str, Any]] = field(default_factory=list)
    """What it was asked to render."""
    prompt_end: str = ""

    template: str | None = "{{ messages }}"

    def prompt(
        self, messages: Sequence[Any], tools: Sequence[Any] = (), options: Mapping[str, Any] = {}, prefill: str = ""
    ) -> Prompt:
        self.prompts.append(
            {"messages": list(messages), "tools": list(tools), "options": dict(options), "prefill": prefill}
        )
        return Prompt(self._ids(self.prompt_text(messages, tools, options, prefill)), self.prompt_end)

    def prompt_text(
        self, messages: Sequence[Any], tools: Sequence[Any] = (), options: Mapping[str, Any] = {}, prefill: str = ""
    ) -> str:
        return f"{json.dumps([*messages, *tools], ensure_ascii=False)} {prefill}"

    def encode(self, text: str, *, starts: bool = True) -> list[int]:
        return [*([1] if starts else []), *self._ids(text)]

    def decode(self, tokens: Sequence[int]) -> str:
        return " ".join(map(str, tokens))

    def piece(self, token: int) -> str:
        return str(token)

    def stream(self) -> Pieces:
        return Pieces(self.texts)

    marked_stream = stream

    def _ids(self, text: str) -> list[int]:
        return [2 + len(word) % 1000 for word in text.split()]


class SpeakingNodeControl(FakeNodeControl):
    model: FakeChatModel | None = None

    def chat_model(self) -> ChatModel:
        return cast("ChatModel", self.model)


@dataclass
class ScriptedDispatcher:
    """Gives a token for each text, and an end."""

    model: FakeChatModel
    finish: str = "stop"
    fails: Exception | None = None
    """Instead of an answer."""
    fails_after: int | None = None
    """Only after so many tokens."""
    waits_s: float = 0.0
    """Before the first token."""
    generations: list[Generation] = field(default_factory=list)
    open: int = 0
    given: int = 0

    @asynccontextmanager
    async def generate(
        self,
        generation: Generation,
        request_id: str,
        started: Callable[[tuple[Hop, ...]], None],
        waits: Callable[[str], None],
        arrived_s: float,
    ) -> AsyncIterator[FailoverStream]:
        self.generations.append(generation)
        if self.fails is not None and self.fails_after is None:
            raise self.fails
        self.open += 1
        try:
            await trio.sleep(self.waits_s)
            started(CHAIN)
            async with aclosing(self._steps(generation)) as steps:
                yield cast("FailoverStream", steps)
        finally:
            self.open -= 1

    async def _steps(self, generation: Generation) -> AsyncGenerator[TokenStep, None]:
        count = len(self.model.texts)
        for number in range(1, count + 1):
            if self.fails_after is not None and number > self.fails_after:
                assert self.fails is not None
                raise self.fails
            await trio.lowlevel.checkpoint()
            self.given += 1
            at_limit = number >= generation.max_new_tokens
            last = at_limit or (self.finish == "length" and number == count)
            yield self._step(number, "length" if last else None)
            if last:
                return
        yield self._step(STOP, "stop")

    def _step(self, token: int, finish: Any) -> TokenStep:
        return TokenStep(token, 0, finish, CHAIN, (HopTiming(0.1, 0.2, 3.0, 0.1),), 0.1)


@dataclass
class SpeakingNode:
    """The app, and what it was asked."""

    client: TestClient
    model: FakeChatModel
    dispatcher: ScriptedDispatcher
    service: Service
    control: SpeakingNodeControl

    def post(self, path: str, body: object, **headers: str) -> Any:
        return self.client.post(path, json=body, headers=headers)

    def events(self, path: str, body: Mapping[str, object]) -> list[tuple[str, Any]]:
        """A stream's events, each with its name, `message` where it has none; the data parsed."""
        reply = self.client.post(path, json={**body, "stream": True})
        assert reply.status_code == 200, reply.text
        assert reply.headers["content-type"].startswith("text/event-stream")
        return sse_events(reply.text)

    def chunks(self, path: str, body: Mapping[str, object]) -> list[Any]:
        """Data of unnamed events, without the end mark, which must be there."""
        events = [data for _, data in self.events(path, body)]
        assert events[-1] == "[DONE]"
        return events[:-1]


def sse_events(text: str) -> list[tuple[str, Any]]:
    """Events of a server-sent stream."""
    found = []
    for block in text.split("\n\n"):
        name, data = "message", None
        for line in block.splitlines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                told = line.removeprefix("data: ")
                data = told if told == "[DONE]" else json.loads(told)
        if data is not None:
            found.append((name, data))
    return found


def speaking_node(*texts: str, speech: Speech = PLAIN, owner: Owner | None = None, **script: Any) -> SpeakingNode:
    """One that answers with these texts, a token each."""
    model = FakeChatModel(texts, speech)
    dispatcher = ScriptedDispatcher(model, **script)
    control = SpeakingNodeControl(plan(), ())
    control.model = model
    service = Service(control, cast("Dispatcher", dispatcher), Journal(DESK))
    app = client_app(service, loopback_only=True, owner=owner or Owner())
    client = TestClient(app, base_url="http://localhost", backend="trio")
    return SpeakingNode(client, model, dispatcher, service, control)
