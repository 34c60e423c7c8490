"""A loaded model's first steps: what a token's keys and values take, and how long a decode step is."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from statistics import median
from typing import Any

from numpy.typing import NDArray

from node.engine.base import PROBE_BUDGET_S, PROBE_MOST_STEPS, PROBE_SLOW_STEP_S
from node.engine.llamacpp.context import CallFailed, Context, Piece

SHORT_STREAM_TOKENS = 256
"""More than the probe's steps."""


@dataclass(frozen=True, slots=True)
class Probed:
    """What the steps told."""

    kv_bytes_per_token: int
    layer_ms: float
    """One layer's part of a decode step, the LM head left out."""
    head_ms: float | None
    """LM head and choice of the token; None where the stage is not the last."""


def probe(
    make: Callable[[bool], Context], row: NDArray[Any], layers: int, *, last: bool
) -> Generator[None, None, Probed]:
    """Run a few tokens; yields after each, so that another stage of the worker can serve in between. `make` gives a
    context of one short stream, for hidden rows or for logits.

    Raises:
        CallFailed: it computes nothing.
        EngineError: it has no memory.
    """
    context = make(not last)
    try:
        sizes: list[int] = []
        whole_s = yield from _steps(context, row, sizes, logits=int(last))
    finally:
        context.free()
    layers_s = whole_s
    if last:
        # the same steps, stopped at the last layer's result; some families do not name it
        context = make(True)
        try:
            layers_s = min(whole_s, (yield from _steps(context, row, [], logits=0)))
        except CallFailed:
            layers_s = whole_s
        finally:
            context.free()
    head_ms = 1e3 * (whole_s - layers_s) if last else None
    return Probed(max(1, sizes[1] - sizes[0]), 1e3 * layers_s / layers, head_ms)


def _steps(context: Context, row: NDArray[Any], sizes: list[int], *, logits: int) -> Generator[None, None, float]:
    """The median of some steps in seconds; the first warms up. `sizes` gets what the keys and values of one and of two
    tokens take."""

    def step(position: int) -> float:
        started_s = time.perf_counter()
        given = context.run(row, [Piece(0, position, 1, logits)])
        if logits:
            given[-1].argmax()
        return time.perf_counter() - started_s

    first_s = step(0)
    sizes.append(context.state_bytes(0))
    yield
    timed: list[float] = []
    until_s = time.perf_counter() + PROBE_BUDGET_S
    while not timed or (len(timed) < PROBE_MOST_STEPS and time.perf_counter() < until_s):
        timed.append(step(len(timed) + 1))
        if len(timed) == 1:
            sizes.append(context.state_bytes(0))
        yield
        if first_s > PROBE_SLOW_STEP_S:
            break
    return median(timed)
