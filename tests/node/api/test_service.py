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
import trio.testing

from node.api.asking import Ask
from node.api.dialects.openai_chat import OpenAIChat
from node.api.routes.apps import MOST_PATIENCE_S, _patience_s
from node.api.service import Service
from node.errors import BadRequest, NoRoute
from node.journal.log import Journal
from node.journal.state import KEPT_REQUESTS
from node.models import ChatModel
from node.models.chat_model import Prompt
from node.pipeline.dispatch import WAIT_LIMIT_S, Dispatcher
from node.pipeline.failover import FailoverStream
from node.pipeline.generation import Generation
from node.wire.events import PlanAdopted, PlanImpossible, RequestFinished, RequestStarted
from node.wire.frames import Hop
from node.wire.ids import RequestId
from tests.fakes.node_control import FakeNodeControl
from tests.fakes.speaking import PLAIN
from tests.fakes.swarms import DESK, plan

RECOMMENDED = SimpleNamespace(temperature=0.0, top_p=1.0, top_k=0)
CHAT_MODEL = SimpleNamespace(
    context_tokens=100,
    stop_tokens=(),
    recommended=RECOMMENDED,
    prompt=lambda *_: Prompt([1, 2], ""),
    marked_stream=lambda: None,
    speech=PLAIN,
)


def parsed(body: bytes) -> Ask:
    return OpenAIChat().parse(body).ask


QUESTION = parsed(b'{"messages": [{"role": "user", "content": "hello"}]}')


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
    request = parsed(b'{"messages": [{"role": "user", "content": "hello"}]}')
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
    request = parsed(b'{"messages": [{"role": "user", "content": "hello"}]}')

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
    request = parsed(b'{"messages": [{"role": "user", "content": "hello"}]}')

    async def ask() -> float:
        async with service.answer(request, arrived_s=perf_counter() - 5) as answer:
            answer.timings[0].first_s = perf_counter()
            return answer.timings[0].ttft_ms

    assert 5_000 <= trio.run(ask) < 60_000


def test_texts_that_only_a_template_would_use_count_too_and_a_long_model_name_is_not_repeated() -> None:
    service = Service(ServingNodeControl(plan(), ()), cast("Dispatcher", SilentDispatcher()), Journal(DESK))
    long = "x" * 100_000
    said = [{"role": "assistant", "content": "", "reasoning_content": long}]

    async def ask(**fields: object) -> str:
        request = parsed(json.dumps(fields).encode())
        with pytest.raises(BadRequest) as refused:
            async with service.answer(request):
                pass
        return str(refused.value)

    assert "no room" in trio.run(lambda: ask(messages=said))
    told = trio.run(lambda: ask(model=long, messages=[{"role": "user", "content": "hello"}]))
    assert "model" in told
    assert len(told) < 300


def test_a_question_that_comes_before_the_first_plan_waits_for_it() -> None:
    journal = Journal(DESK)
    control = ServingNodeControl(None, ())
    service = Service(control, cast("Dispatcher", SilentDispatcher()), journal)

    async def story() -> None:
        async with trio.open_nursery() as nursery:
            answered = trio.Event()

            async def ask() -> None:
                async with service.answer(QUESTION):
                    answered.set()

            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            assert not answered.is_set()
            control.in_force = plan()
            journal.append(PlanAdopted(plan()))
            await answered.wait()

    trio.run(story)


def test_a_question_that_no_plan_will_ever_answer_is_refused_at_once() -> None:
    journal = Journal(DESK)
    service = Service(ServingNodeControl(None, ()), cast("Dispatcher", SilentDispatcher()), journal)
    journal.append(PlanImpossible("does not fit: 3.20 GiB missing"))

    async def ask() -> None:
        async with service.answer(QUESTION):
            pass

    with pytest.raises(NoRoute):
        trio.run(ask)


def test_a_question_waits_for_a_plan_no_longer_than_for_layers() -> None:
    service = Service(ServingNodeControl(None, ()), cast("Dispatcher", SilentDispatcher()), Journal(DESK))

    async def ask() -> float:
        before_s = trio.current_time()
        with pytest.raises(NoRoute):
            async with service.answer(QUESTION):
                pass
        return trio.current_time() - before_s

    waited_s = trio.run(ask, clock=trio.testing.MockClock(autojump_threshold=0))
    assert waited_s == pytest.approx(WAIT_LIMIT_S, abs=0.5)


@pytest.mark.parametrize("told", ["", "nonsense", "-3", "nan"])
def test_whoever_names_no_patience_is_told_at_once(told: str) -> None:
    assert _patience_s(told) == 0.0


def test_no_patience_is_longer_than_the_bound() -> None:
    assert _patience_s("inf") == _patience_s("1e9") == MOST_PATIENCE_S


def test_whoever_waits_for_the_service_is_told_as_soon_as_it_serves_and_when_his_patience_ends() -> None:
    journal = Journal(DESK)
    control = ServingNodeControl(None, ())
    service = Service(control, cast("Dispatcher", SilentDispatcher()), journal)

    async def story() -> None:
        assert not await service.until_serving(3.0)
        assert trio.current_time() - began_s == pytest.approx(3.0)
        async with trio.open_nursery() as nursery:

            async def serve() -> None:
                await trio.sleep(1.0)
                control.in_force = plan()
                journal.stir()  # as when the tokenizer has been read

            nursery.start_soon(serve)
            assert await service.until_serving(60.0)
        assert trio.current_time() - began_s == pytest.approx(4.0)

    async def main() -> None:
        nonlocal began_s
        began_s = trio.current_time()
        await story()

    began_s = 0.0
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


class NotingDispatcher(SilentDispatcher):
    """Notes what it is asked to generate."""

    def __init__(self) -> None:
        self.asked: list[Generation] = []

    @asynccontextmanager
    async def generate(
        self, generation: Generation, request_id: str, started: Callable[[tuple[Hop, ...]], None], *_: object
    ) -> AsyncIterator[FailoverStream]:
        self.asked.append(generation)
        yield cast("FailoverStream", None)


@pytest.mark.parametrize(("limit", "tokens"), [("", 98), (', "max_tokens": 7', 7), (', "max_tokens": 5000', 98)])
def test_an_answer_of_a_client_that_names_no_limit_may_run_to_the_end_of_the_context(limit: str, tokens: int) -> None:
    dispatcher = NotingDispatcher()
    service = Service(ServingNodeControl(plan(), ()), cast("Dispatcher", dispatcher), Journal(DESK))
    request = parsed(f'{{"messages": [{{"role": "user", "content": "hello"}}]{limit}}}'.encode())

    async def ask() -> None:
        async with service.answer(request):
            pass

    trio.run(ask)
    assert [generation.max_new_tokens for generation in dispatcher.asked] == [tokens]
