"""Tokens to text: detokenises, stops at stop strings, sums up where the time went. Knows no HTTP."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal, Protocol

from node.pipeline.generation import TokenStep
from node.pipeline.loops import LoopGuard
from node.wire.events import HopLatency
from node.wire.frames import Hop
from node.wire.ids import NodeId

FinishReason = Literal["stop", "length"]


class Detokeniser(Protocol):
    """Turns token ids into text piece by piece; holds back what is not a whole character yet."""

    def push(self, token_id: int) -> str: ...
    def finish(self) -> str: ...


class StopFilter:
    """Passes text on until one of `stops` appears; holds back a tail that may be the start of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.hit = False
        self.matched: str | None = None
        """Which of them it was."""

    def push(self, text: str) -> str:
        """What may be shown now; nothing after a hit."""
        if self.hit:
            return ""
        self._held += text
        found = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.hit = True
            at, self.matched = min(found)
            shown, self._held = self._held[:at], ""
            return shown
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def finish(self) -> str:
        """The held-back rest, once no more text can come."""
        shown, self._held = self._held, ""
        return "" if self.hit else shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


@dataclass(slots=True)
class AnswerTiming:
    """Where an answer's time went so far."""

    chain_names: dict[NodeId, str]
    started_s: float = field(default_factory=perf_counter)
    """When the request arrived, by `perf_counter`: reading it, its template and its waiting for room count."""
    first_s: float | None = None
    last_s: float = 0.0
    tokens: int = 0
    _steps: list[TokenStep] = field(default_factory=list)

    def add(self, step: TokenStep) -> None:
        """Count one token. The first one's hops are prefill and stay out of the per-step means."""
        now = perf_counter()
        self.tokens += 1
        self.last_s = now
        if self.first_s is None:
            self.first_s = now
            self._steps = [step]
        else:
            if self.tokens == 2:
                self._steps = []
            self._steps.append(step)
            del self._steps[:-_KEPT_STEPS]

    @property
    def ttft_ms(self) -> float:
        """From the request's arrival to its first token."""
        return 0.0 if self.first_s is None else (self.first_s - self.started_s) * 1e3

    @property
    def tpot_ms(self) -> float:
        """Mean time per token after the first."""
        if self.first_s is None or self.tokens < 2:
            return 0.0
        return (self.last_s - self.first_s) * 1e3 / (self.tokens - 1)

    @property
    def return_ms(self) -> float:
        return sum(step.return_ms for step in self._steps) / max(1, len(self._steps))

    def hops(self) -> tuple[HopLatency, ...]:
        """Mean times per hop of the present route over the last decode steps; over the prompt's last chunk while there
        are none. Steps that went another way tell of a hop where it held the same layers."""
        return tuple(self._mean(hop) for hop in self._steps[-1].chain) if self._steps else ()

    def _mean(self, hop: Hop) -> HopLatency:
        same = [times for step in self._steps for at, times in zip(step.chain, step.hops, strict=True) if at == hop]
        count = len(same)
        return HopLatency(
            hop.node_id,
            self.chain_names.get(NodeId(hop.node_id), hop.node_id[-8:]),
            hop.start,
            hop.end,
            sum(each.wire_ms for each in same) / count,
            sum(each.queue_ms for each in same) / count,
            sum(each.compute_ms for each in same) / count,
            sum(each.serialise_ms for each in same) / count,
        )


_KEPT_STEPS = 256


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text, and at the end the reason for ending."""

    text: str
    finish: FinishReason | None = None
    stop: str | None = None
    """The stop string that ended it."""


async def read_answer(
    tokens: AsyncIterator[TokenStep],
    detokeniser: Detokeniser,
    stops: Sequence[str],
    stop_tokens: Sequence[int],
    timing: AnswerTiming,
    progress: Callable[[], None] = lambda: None,
    loops: LoopGuard | None = None,
) -> AsyncGenerator[Piece, None]:
    """Pieces of text as tokens come; the last one carries the finish reason. With `loops`, an answer that goes round is
    at its end.

    Raises:
        RequestError: the chain cannot go on.
    """
    stop_filter = StopFilter(stops)
    async for step in tokens:
        timing.add(step)
        progress()
        ended = step.finish
        if loops is not None and loops.goes_round(step.token):
            ended = ended or "stop"
        text = "" if step.token in stop_tokens else detokeniser.push(step.token)
        shown = stop_filter.push(text)
        if ended is not None and not stop_filter.hit:
            shown += stop_filter.push(detokeniser.finish())
        if stop_filter.hit:
            yield Piece(shown, "stop", stop_filter.matched)
            return
        if ended is not None:
            yield Piece(shown + stop_filter.finish(), ended)
            return
        if shown:
            yield Piece(shown)
    # it has become longer than any chain can hold
    yield Piece(stop_filter.push(detokeniser.finish()) + stop_filter.finish(), "length")
