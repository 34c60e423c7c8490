"""What the routes call: this node's answers to requests, told as events. Knows no HTTP."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import trio

from node.api.chat_request import ChatRequest, shown
from node.errors import BadRequest, NoRoute, RequestError
from node.journal.log import Journal
from node.models import ChatModel
from node.pipeline.answer import AnswerTiming, Piece, read_answer
from node.pipeline.dispatch import WAIT_LIMIT_S, Dispatcher
from node.pipeline.generation import Generation, TokenStep
from node.plan.live.propose import Proposal
from node.wire.events import RequestFailed, RequestFinished, RequestProgress, RequestStarted, RequestWaiting
from node.wire.frames import Hop
from node.wire.ids import NodeId, RequestId
from node.wire.plans import Plan, PlanSettings
from node.wire.records import NodeRecord

PROGRESS_EVERY_S = 0.25

MOST_CHARACTERS_PER_TOKEN = 32
"""Prose has four; beyond this a text is not worth counting exactly."""

PROMPTS_AT_ONCE = 4
"""Rendered and made into tokens at a time, each within the limits of its template: they share one processor."""


class NodeControl(Protocol):
    """What the service must know of the node around it."""

    def plan(self) -> Plan | None: ...
    def chat_model(self) -> ChatModel | None: ...
    def records(self) -> Iterable[NodeRecord]: ...
    def invitation(self) -> str: ...
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
    timing: AnswerTiming
    pieces: AsyncIterator[Piece]


class Service:
    """One node's service to its clients."""

    def __init__(
        self, here: NodeControl, dispatcher: Dispatcher, journal: Journal, clock: Callable[[], float] = time.time
    ) -> None:
        self.here, self.journal = here, journal
        self._dispatcher, self._clock = dispatcher, clock
        self.started_s = clock()
        self._running: set[RequestId] = set()
        """Those of which the journal has a start and no end."""
        self._renderers = trio.CapacityLimiter(PROMPTS_AT_ONCE)

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

    @asynccontextmanager
    async def answer(self, request: ChatRequest, arrived_s: float | None = None) -> AsyncIterator[Answer]:
        """Run a chat request. Leaving the block, however it is left, frees it on every hop.

        Args:
            request: a checked one.
            arrived_s: when it reached this node, by `perf_counter`: its time to first token begins there; None: now.

        Raises:
            RequestError: it cannot be served, or a hop was lost; also out of `pieces`.
        """
        arrived_s = perf_counter() if arrived_s is None else arrived_s
        since_s = trio.current_time() - (perf_counter() - arrived_s)
        if (known := await self._known(since_s + WAIT_LIMIT_S)) is None:
            raise NoRoute(self.here.waiting_for())
        plan, chat_model = known
        if request.model and request.model != plan.model.name:
            raise BadRequest("model", f"this swarm serves {plan.model.name!r}, not {shown(request.model)}")
        characters = sum(len(text) for message in request.messages for text in message.values())
        if characters > chat_model.context_tokens * MOST_CHARACTERS_PER_TOKEN:
            raise BadRequest(
                "messages",
                f"{characters} characters do not fit the model's context of {chat_model.context_tokens} tokens",
            )
        prompt = await trio.to_thread.run_sync(chat_model.render, request.messages, limiter=self._renderers)
        generation = self._generation(request, prompt, chat_model, plan.weights)
        request_id = RequestId(f"chatcmpl-{secrets.token_hex(12)}")
        timing = AnswerTiming({}, arrived_s)

        def started(chain: tuple[Hop, ...]) -> None:
            nodes = [NodeId(hop.node_id) for hop in chain]
            timing.chain_names = {node: self.journal.state.name_of(node) for node in nodes}
            self.journal.append(RequestStarted(request_id, len(prompt), chain))
            self._running.add(request_id)

        def waits(reason: str) -> None:
            self.journal.append(RequestWaiting(request_id, len(prompt), reason[:500]))
            self._running.add(request_id)

        try:
            async with self._dispatcher.generate(generation, request_id, started, waits, since_s) as tokens:
                pieces = self._pieces(request_id, tokens, chat_model, request, timing)
                async with aclosing(pieces):
                    yield Answer(request_id, plan.model.name, len(prompt), timing, pieces)
        except RequestError as error:
            self._running.discard(request_id)
            self.journal.append(RequestFailed(request_id, str(error)))
            raise
        finally:
            if request_id in self._running:
                self._finished(request_id, "cancelled", timing)

    def _generation(self, request: ChatRequest, prompt: list[int], chat_model: ChatModel, weights: str) -> Generation:
        room = chat_model.context_tokens - len(prompt)
        if room < 1:
            raise BadRequest(
                "messages", f"{len(prompt)} tokens leave no room in the model's context of {chat_model.context_tokens}"
            )
        max_new = min(request.max_tokens or room, room)
        recommended = chat_model.recommended
        sampling = request.sampling(recommended.temperature, recommended.top_p, recommended.top_k)
        return Generation(tuple(prompt), max_new, chat_model.stop_tokens, sampling, weights)

    async def _pieces(
        self,
        request_id: RequestId,
        tokens: AsyncIterator[TokenStep],
        chat_model: ChatModel,
        request: ChatRequest,
        timing: AnswerTiming,
    ) -> AsyncGenerator[Piece, None]:
        told_s = trio.current_time()

        def progress() -> None:
            nonlocal told_s
            if trio.current_time() - told_s >= PROGRESS_EVERY_S:
                told_s = trio.current_time()
                self.journal.append(RequestProgress(request_id, timing.tokens, timing.hops(), timing.return_ms))

        answer = read_answer(tokens, chat_model.stream(), request.stop, chat_model.stop_tokens, timing, progress)
        async with aclosing(answer):
            async for piece in answer:
                if piece.finish is not None:
                    self._finished(request_id, piece.finish, timing)
                yield piece

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
