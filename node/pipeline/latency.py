"""How long this node's decode steps take: what its record tells the planner and the router."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from statistics import fmean, median, quantiles

from node.engine.base import BatchResult, StageInfo
from node.pipeline.schedule import Rates
from node.wire.records import LayerLatency

KEPT_STEPS = 128
"""A few seconds of one busy sequence: follows a machine that slows down, and forgets a single bad step."""
KEPT_BATCHES = 16
"""Less than a second of a busy node: how many answers stream changes all the time."""
LEAST_ROWS = 32
"""Of a prompt's chunk that is timed: what shorter ones take is mostly reading the weights."""
LONGEST_MS = 1e6
"""No part of a step takes a quarter of an hour."""


class StepTimes:
    """The last `KEPT_STEPS` batches of decode steps. A figure that cannot be is not taken in."""

    def __init__(self) -> None:
        self._layer_ms: deque[float] = deque(maxlen=KEPT_STEPS)
        self._head_ms: deque[float] = deque(maxlen=KEPT_STEPS)
        self._overhead_ms: deque[float] = deque(maxlen=KEPT_STEPS)
        self._sequences: deque[int] = deque(maxlen=KEPT_STEPS)
        self._row_ms: deque[float] = deque(maxlen=KEPT_BATCHES)
        self._weights = ""
        self.in_service = 0
        """Batches of decode steps of sequences so far."""

    def loaded(self, info: StageInfo, weights: str) -> None:
        """Begin anew with what a stage measured when it was loaded; the head's time stays while the model does."""
        self._layer_ms.clear()
        self._row_ms.clear()
        self._sequences.clear()
        if weights != self._weights:
            self._head_ms.clear()
        self._weights = weights
        _take(self._layer_ms, info.layer_ms)
        if info.head_ms is not None:
            self._head_ms.clear()
            _take(self._head_ms, info.head_ms)

    def add(self, layers: int, result: BatchResult, overhead_ms: float, sequences: int = 1) -> None:
        """One batch of decode steps, one of each of `sequences`, through `layers` layers; `overhead_ms` is its time
        here outside compute and queue."""
        self.in_service += 1
        self._sequences.append(sequences)
        self._take_step(layers, result, overhead_ms)

    def add_prompt(self, layers: int, rows: int, result: BatchResult) -> None:
        """One batch of nothing but `rows` rows of prompts through `layers` layers."""
        if rows >= LEAST_ROWS and 0 <= result.head_ms < result.compute_ms:
            _take(self._row_ms, (result.compute_ms - result.head_ms) / layers / rows)

    def renew(self, layers: int, steps: Sequence[tuple[BatchResult, float]]) -> None:
        """Begin anew with the median of steps timed while nobody used the stage, each with its overhead in ms.

        One figure only: steps in service soon outweigh it.
        """
        self._sequences.clear()
        now = StepTimes()
        for result, overhead_ms in steps:
            now._take_step(layers, result, overhead_ms)
        for told, seen in zip(self._windows(), now._windows(), strict=True):
            if seen:
                told.clear()
                told.append(median(seen))

    def _windows(self) -> tuple[deque[float], ...]:
        return self._layer_ms, self._head_ms, self._overhead_ms

    def _take_step(self, layers: int, result: BatchResult, overhead_ms: float) -> None:
        if 0 <= result.head_ms <= result.compute_ms:
            _take(self._layer_ms, (result.compute_ms - result.head_ms) / layers)
            if result.head_ms:
                _take(self._head_ms, result.head_ms)
        _take(self._overhead_ms, overhead_ms)

    def layer(self) -> LayerLatency | None:
        """Per layer, the head left out; None until something was measured."""
        seen = list(self._layer_ms)
        if not seen:
            return None
        sequences = round(fmean(self._sequences)) if self._sequences else 1
        if len(seen) == 1:
            return LayerLatency(seen[0], seen[0], seen[0], sequences)
        cuts = quantiles(seen, n=20, method="inclusive")
        return LayerLatency(fmean(seen), cuts[9], cuts[18], sequences)

    @property
    def head_ms(self) -> float | None:
        """LM head and sampling; None while this node has not ended a model."""
        return median(self._head_ms) if self._head_ms else None

    @property
    def overhead_ms(self) -> float | None:
        """A step's time here outside compute and queue; None until one was run."""
        return median(self._overhead_ms) if self._overhead_ms else None

    @property
    def prompt_row_ms(self) -> float | None:
        """A row of a prompt in one layer; None until a long enough chunk was run."""
        return median(self._row_ms) if self._row_ms else None


class BatchRates:
    """What batches take at present, with all that streams now: what decides how much of a prompt goes beside them."""

    def __init__(self) -> None:
        self._decode_ms: deque[float] = deque(maxlen=KEPT_BATCHES)
        self._row_ms: deque[float] = deque(maxlen=KEPT_BATCHES)

    def add(self, compute_ms: float, decodes: int, prompt_rows: int) -> None:
        """One batch of so many decode steps and rows of prompts."""
        if not prompt_rows:
            _take(self._decode_ms, compute_ms)
        elif not decodes:
            _take(self._row_ms, compute_ms / prompt_rows)
        elif self._decode_ms:
            _take(self._row_ms, max(0.0, compute_ms - median(self._decode_ms)) / prompt_rows)

    @property
    def rates(self) -> Rates:
        """Medians."""
        return Rates(
            median(self._decode_ms) if self._decode_ms else None, median(self._row_ms) if self._row_ms else None
        )


def _take(window: deque[float], milliseconds: float | None) -> None:
    if milliseconds is not None and math.isfinite(milliseconds) and 0 <= milliseconds <= LONGEST_MS:
        window.append(milliseconds)
