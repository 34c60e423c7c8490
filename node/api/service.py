"""What the routes call: this node's answers to requests, told as events. Knows no HTTP and no dialect."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Protocol

import trio

from node.api.asking import Ask, Chat, Ended
from node.api.dialects.fields import shown
from node.api.merging import merged
from node.api.prompting import Prompted, Prompting
from node.api.speech.reading import Reading
from node.api.speech.said import CallEnded, Said
from node.errors import ModelNotServed, NoRoute, RequestError
from node.journal.log import Journal
from node.models import ChatModel
from node.pipeline.answer import AnswerTiming, read_answer
from node.pipeline.dispatch import WAIT_LIMIT_S, Dispatcher
from node.pipeline.generation import Generation, TokenStep
from node.pipeline.loops import LoopGuard
from node.plan.live.propose import Proposal
from node.wire.events import RequestFailed, RequestFinished, RequestProgress, RequestStarted, RequestWaiting
from node.wire.frames import Hop
from node.wire.ids import NodeId, RequestId
from node.wire.plans import Plan, PlanSettings
from node.wire.records import NodeRecord

PROGRESS_EVERY_S = 0.25


class NodeControl(Protocol):
    """What the service must know of the node around it."""

    def plan(self) -> Plan | None: ...
    def chat_model(self) -> ChatModel | None: ...
    def records(self) -> Iterable[NodeRecord]: ...
    def invitation(self) -> str: ...
    def models_folder(self) -> Path:
        """Where this node keeps models."""

    def names(self) -> Mapping[str, str]:
        """Of all nodes seen in this run, by id: those that are away can be named too."""

    @property
    def leaving(self) -> bool:
        """Whether it has been asked to end: it finishes what runs and takes nothing new."""

    def waiting_for(self) -> str: ...

    async def propose(self, settings: PlanSettings | None = None) -> Proposal:
        """The plan under these settings, by default those in force. Raises NoRoute, PlanError."""

    async def apply(self, settings: PlanSettings | None = None, epoch: int | None = None) -> Proposal:
        """Make it the plan in force. Raises the same, and PlanChanged where `epoch` is not in force any more."""


@dataclass(slots=True)
class Answer:
    """One request under way."""

    request_id: RequestId
    model: str
    prompt_tokens: int
    """Of all prompts together."""
    timings: list[AnswerTiming]
    """One for each choice: all answers to the first prompt, then those to the second."""
    events: AsyncIterator[tuple[int, Said | Ended]]
    """Which choice, and what it says. Raises RequestError where it cannot go on."""
    prompts: list[str] = field(default_factory=list)
    """Texts of plain prompts, one for each choice."""
    arrived_s: float = 0.0
    """When the request came, by `perf_counter`."""
    queued_ms: float = 0.0
    """Until it had a chain with room."""

    @property
    def tokens(self) -> int:
        """Of all answers so far."""
        return sum(timing.tokens for timing in self.timings)


@dataclass(frozen=True, slots=True)
class Serving:
    """What is served now."""

    plan: Plan
    chat_model: ChatModel


class Service:
    """One node's service to its clients."""

    def __init__(
        self, here: NodeControl, dispatcher: Dispatcher, journal: Journal, clock: Callable[[], float] = time.time
    ) -> None:
        self.here, self.journal = here, journal
        self._dispatcher, self._clock = dispatcher, clock
        self.started_s = clock()
        self.prompting = Prompting()
        self._running: set[RequestId] = set()
        """Those of which the journal has a start and no end."""

    @property
    def serving(self) -> bool:
        """Whether a question would be answered now: all layers are ready, and the tokenizer is known here."""
        whole = self.here.plan() is not None and not self.journal.state.uncovered()
        return whole and self.here.chat_model() is not None and not self.here.leaving

    async def until_serving(self, patience_s: float) -> bool:
        """Whether it is, as soon as it is, or after `patience_s`."""
        with trio.move_on_after(patience_s):
            while not self.serving:
                await self.journal.news()
        return self.serving

    async def _known(self, give_up_at_s: float) -> tuple[Plan, ChatModel] | None:
        """A question that comes before the first plan waits for it, as one that comes before its layers does. None:
        waiting does not help, or did not."""
        with trio.CancelScope(deadline=give_up_at_s):
            while not self.here.leaving:
                plan, chat_model = self.here.plan(), self.here.chat_model()
                if plan is not None and chat_model is not None:
                    return plan, chat_model
                if self.journal.state.plan_problem or self.journal.state.model.phase == "failed":
                    return None
                await self.journal.news()
        return None

    def served(self, model: str = "") -> Serving:
        """The model that is served, which is the only one that can be asked for.

        Raises:
            NoRoute: none is, for now.
            ModelNotServed: it is another one.
        """
        plan, chat_model = self.here.plan(), self.here.chat_model()
        if plan is None or chat_model is None or self.here.leaving:
            raise NoRoute(self.here.waiting_for())
        return self._named(plan, chat_model, model)

    def _named(self, plan: Plan, chat_model: ChatModel, model: str) -> Serving:
        if model and model != plan.model.name:
            raise ModelNotServed(shown(model), plan.model.name)
        return Serving(plan, chat_model)

    @asynccontextmanager
    async def answer(self, ask: Ask, arrived_s: float | None = None) -> AsyncIterator[Answer]:
        """Run a request. The block begins with its first token; leaving it, however it is left, frees it on every hop.

        Args:
            ask: a checked one.
            arrived_s: when it reached this node, by `perf_counter`: its time to first token begins there; None: now.

        Raises:
            RequestError: it cannot be served, or a hop was lost; also out of `events`.
        """
        arrived_s = perf_counter() if arrived_s is None else arrived_s
        since_s = trio.current_time() - (perf_counter() - arrived_s)
        if (known := await self._known(since_s + WAIT_LIMIT_S)) is None:
            raise NoRoute(self.here.waiting_for())
        serving = self._named(*known, ask.model)
        prompts = [
            await self.prompting.prompted(prompt, serving.chat_model, serving.plan.facts.vocab_size)
            for prompt in ask.prompts
        ]
        request_id = RequestId(f"{ask.id_prefix}{secrets.token_hex(12)}")
        counts = len(prompts) * ask.count
        timings = [AnswerTiming({}, arrived_s) for _ in range(counts)]
        answer = Answer(
            request_id,
            serving.plan.model.name,
            sum(len(prompt.ids) for prompt in prompts),
            timings,
            _none(),
            [prompt.text for prompt in prompts for _ in range(ask.count)],
            arrived_s,
        )
        sources = [
            partial(self._sequence, index, ask, prompts[index // ask.count], serving, answer) for index in range(counts)
        ]
        async with merged(sources) as events:
            answer.events = events
            yield answer

    @asynccontextmanager
    async def _sequence(
        self, index: int, ask: Ask, prompt: Prompted, serving: Serving, answer: Answer
    ) -> AsyncIterator[AsyncGenerator[Said | Ended, None]]:
        """One of a request's answers. The block begins with its first token."""
        request_id = RequestId(f"{answer.request_id}-{index}") if index else answer.request_id
        timing = answer.timings[index]
        tokens_of_prompt = len(prompt.ids)

        def started(chain: tuple[Hop, ...]) -> None:
            nodes = [NodeId(hop.node_id) for hop in chain]
            timing.chain_names = {node: self.journal.state.name_of(node) for node in nodes}
            self.journal.append(RequestStarted(request_id, tokens_of_prompt, chain))
            self._running.add(request_id)
            if not answer.queued_ms:
                answer.queued_ms = (perf_counter() - answer.arrived_s) * 1e3

        def waits(reason: str) -> None:
            self.journal.append(RequestWaiting(request_id, tokens_of_prompt, reason[:500]))
            self._running.add(request_id)

        generation = self._generation(index, ask, prompt, serving)
        since_s = trio.current_time() - (perf_counter() - answer.arrived_s)
        try:
            async with self._dispatcher.generate(generation, request_id, started, waits, since_s) as tokens:
                events = self._events(request_id, tokens, ask, prompt, serving.chat_model, timing)
                async with aclosing(events):
                    yield events
        except RequestError as error:
            self._running.discard(request_id)
            self.journal.append(RequestFailed(request_id, str(error)))
            raise
        finally:
            if request_id in self._running:
                self._finished(request_id, "cancelled", timing)

    def _generation(self, index: int, ask: Ask, prompt: Prompted, serving: Serving) -> Generation:
        chat_model = serving.chat_model
        room = chat_model.context_tokens - len(prompt.ids)
        max_new = min(ask.max_tokens or room, room)
        recommended = chat_model.recommended
        sampling = ask.sampling(recommended.temperature, recommended.top_p, recommended.top_k, index)
        return Generation(tuple(prompt.ids), max_new, chat_model.stop_tokens, sampling, serving.plan.weights)

    async def _events(
        self,
        request_id: RequestId,
        tokens: AsyncIterator[TokenStep],
        ask: Ask,
        prompt: Prompted,
        chat_model: ChatModel,
        timing: AnswerTiming,
    ) -> AsyncGenerator[Said | Ended, None]:
        told_s = trio.current_time()

        def progress() -> None:
            nonlocal told_s
            if trio.current_time() - told_s >= PROGRESS_EVERY_S:
                told_s = trio.current_time()
                self.journal.append(RequestProgress(request_id, timing.tokens, timing.hops(), timing.return_ms))

        reading = prompt.reader(chat_model)
        text = chat_model.marked_stream() if isinstance(prompt.prompt, Chat) else chat_model.stream()
        answer = read_answer(tokens, text, ask.stop, chat_model.stop_tokens, timing, progress, _loop_guard(chat_model))
        async with aclosing(answer):
            async for piece in answer:
                for said in _said(reading, piece.text, last=piece.finish is not None):
                    yield said
                    if isinstance(said, CallEnded) and not ask.parallel_calls:
                        self._finished(request_id, "stop", timing)
                        yield Ended("tool_calls")
                        return
                if piece.finish is not None:
                    self._finished(request_id, piece.finish, timing)
                    called = reading.calls > 0 and piece.finish == "stop"
                    yield Ended("tool_calls" if called else piece.finish, piece.stop)

    def _finished(self, request_id: RequestId, reason: str, timing: AnswerTiming) -> None:
        self._running.discard(request_id)
        self.journal.append(
            RequestFinished(
                request_id,
                timing.tokens,
                reason,  # type: ignore[arg-type]
                timing.ttft_ms,
                timing.tpot_ms,
                timing.hops(),
                timing.return_ms,
            )
        )


def _said(reading: Reading, text: str, *, last: bool) -> list[Said]:
    said = reading.push(text)
    return said + reading.finish() if last else said


async def _none() -> AsyncGenerator[tuple[int, Said | Ended], None]:
    return
    yield


def _loop_guard(chat_model: ChatModel) -> LoopGuard | None:
    return LoopGuard() if chat_model.goes_round else None
