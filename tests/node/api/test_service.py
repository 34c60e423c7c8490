"""What the journal tells of a request, however it ends."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import perf_counter
from types import SimpleNamespace
from typing import cast

import pytest
import trio

from node.api.chat_request import parse_chat_request
from node.api.service import Service
from node.errors import BadRequest
from node.journal.log import Journal
from node.journal.state import KEPT_REQUESTS
from node.models import ChatModel
from node.pipeline.dispatch import Dispatcher
from node.pipeline.failover import FailoverStream
from node.pipeline.generation import Generation
from node.wire.events import RequestFinished, RequestStarted
from node.wire.frames import Hop
from node.wire.ids import RequestId
from tests.fakes.node_control import FakeNodeControl
from tests.fakes.swarms import DESK, plan

RECOMMENDED = SimpleNamespace(temperature=0.0, top_p=1.0, top_k=0)
CHAT_MODEL = SimpleNamespace(
    context_tokens=100, stop_tokens=(), recommended=RECOMMENDED, render=lambda messages: [1, 2], stream=lambda: None
)


class ServingNodeControl(FakeNodeControl):
    def chat_model(self) -> ChatModel:
        return cast("ChatModel", CHAT_MODEL)


class SilentDispatcher:
    """Opens a chain on which no token ever comes."""

    @asynccontextmanager
    async def generate(
        self, generation: Generation, request_id: str, started: Callable[[tuple[Hop, ...]], None], *_: object
    ) -> AsyncIterator[FailoverStream]:
        started((Hop(DESK, 0, 30),))
        yield cast("FailoverStream", None)


def test_a_cancelled_request_is_told_however_many_came_after_it() -> None:
    journal = Journal(DESK)
    service = Service(ServingNodeControl(plan(), ()), cast("Dispatcher", SilentDispatcher()), journal)
    request = parse_chat_request(b'{"messages": [{"role": "user", "content": "hello"}]}')
    before = journal.state.seq

    async def leave_in_the_middle() -> str:
        async with service.answer(request) as answer:
            for number in range(KEPT_REQUESTS):
                journal.append(RequestStarted(RequestId(f"{number}"), 1, ()))
            return answer.request_id

    request_id = trio.run(leave_in_the_middle)
    events = [numbered.event for numbered in journal.after(before)]
    ended = [event for event in events if isinstance(event, RequestFinished)]
    assert [(event.request_id, event.reason) for event in ended] == [(request_id, "cancelled")]


class WaitingDispatcher:
    """Finds no chain for a while."""

    @asynccontextmanager
    async def generate(
        self,
        generation: Generation,
        request_id: str,
        started: Callable[[tuple[Hop, ...]], None],
        waits: Callable[[str], None],
        arrived_s: float,
    ) -> AsyncIterator[FailoverStream]:
        waits("layers 3–5 of 6 have no ready node")
        self.waited_s = trio.current_time() - arrived_s
        started((Hop(DESK, 0, 30),))
        yield cast("FailoverStream", None)


def test_a_request_that_waits_is_an_event_and_its_patience_runs_from_its_arrival() -> None:
    journal, dispatcher = Journal(DESK), WaitingDispatcher()
    service = Service(ServingNodeControl(plan(), ()), cast("Dispatcher", dispatcher), journal)
    request = parse_chat_request(b'{"messages": [{"role": "user", "content": "hello"}]}')

    async def ask() -> None:
        async with service.answer(request, arrived_s=perf_counter() - 5):
            pass

    before = journal.state.seq
    trio.run(ask)
    told = [numbered.event for numbered in journal.after(before)]
    assert [type(event).__name__ for event in told] == ["RequestWaiting", "RequestStarted", "RequestFinished"]
    assert "layers 3–5" in getattr(told[0], "reason", "")
    assert 5 <= dispatcher.waited_s < 60


def test_the_time_to_the_first_token_begins_when_the_request_arrives() -> None:
    service = Service(ServingNodeControl(plan(), ()), cast("Dispatcher", SilentDispatcher()), Journal(DESK))
    request = parse_chat_request(b'{"messages": [{"role": "user", "content": "hello"}]}')

    async def ask() -> float:
        async with service.answer(request, arrived_s=perf_counter() - 5) as answer:
            answer.timing.first_s = perf_counter()
            return answer.timing.ttft_ms

    assert 5_000 <= trio.run(ask) < 60_000


def test_texts_that_only_a_template_would_use_count_too_and_a_long_model_name_is_not_repeated() -> None:
    service = Service(ServingNodeControl(plan(), ()), cast("Dispatcher", SilentDispatcher()), Journal(DESK))
    long = "x" * 100_000
    said = [{"role": "assistant", "content": "", "reasoning_content": long}]

    async def ask(**fields: object) -> str:
        request = parse_chat_request(json.dumps(fields).encode())
        with pytest.raises(BadRequest) as refused:
            async with service.answer(request):
                pass
        return str(refused.value)

    assert "do not fit" in trio.run(lambda: ask(messages=said))
    told = trio.run(lambda: ask(model=long, messages=[{"role": "user", "content": "hello"}]))
    assert "model" in told
    assert len(told) < 300
