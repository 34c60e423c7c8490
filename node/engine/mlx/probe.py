"""A loaded range's first steps: what the KV cache takes per token, how long a decode step is, whether steps can share
their products."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from statistics import median
from typing import Any

import mlx.core as mx

from node.engine.base import PROBE_BUDGET_S, PROBE_MOST_STEPS, PROBE_SLOW_STEP_S
from node.engine.mlx.caches import joined, settle
from node.engine.mlx.slicing import MlxSlice


@dataclass(frozen=True, slots=True)
class Probed:
    """What the steps told."""

    layer_kv_bytes: tuple[int, ...]
    """Of one token's keys and values, layer by layer."""
    layer_ms: float
    """One layer's part of a decode step, the LM head left out."""
    head_ms: float | None
    """LM head and choice of the token; None where the stage is not the last."""
    can_batch: bool
    """Whether the family's code takes several sequences at once, each at a place of its own."""


def probe(stage: MlxSlice, dtype: Any, *, batched: bool) -> Generator[None, None, Probed]:
    """Run a few tokens; yields after each. The first step warms up and is not counted, of the others the median is."""
    caches = stage.new_caches()
    first = _step(stage, caches, dtype)
    kv_bytes = tuple(int(cache.keys[..., :1, :].nbytes + cache.values[..., :1, :].nbytes) for cache in caches)
    yield
    timed: list[tuple[float, float]] = []
    until_s = time.perf_counter() + PROBE_BUDGET_S
    if sum(first) > PROBE_SLOW_STEP_S:
        timed, until_s = [first], 0.0
    while not timed or (len(timed) < PROBE_MOST_STEPS and time.perf_counter() < until_s):
        timed.append(_step(stage, caches, dtype))
        yield
    can_batch = batched and _can_batch(stage, caches, dtype)
    layers_s, head_s = median([step[0] for step in timed]), median([step[1] for step in timed])
    return Probed(kv_bytes, 1e3 * layers_s / (stage.end - stage.start), 1e3 * head_s if stage.last else None, can_batch)


def _step(stage: MlxSlice, caches: list[Any], dtype: Any) -> tuple[float, float]:
    """Seconds of layers and head."""
    started_s = time.perf_counter()
    states = stage.states(stage.blank_rows(1, dtype), caches)
    settle(states, caches)
    layers_s = time.perf_counter() - started_s
    if not stage.last:
        return layers_s, 0.0
    mx.argmax(stage.logits(states)[0, -1]).item()
    return layers_s, time.perf_counter() - started_s - layers_s


def _can_batch(stage: MlxSlice, caches: list[Any], dtype: Any) -> bool:
    """A step of two sequences of unlike lengths."""
    short = stage.new_caches()
    try:
        settle(stage.states(stage.blank_rows(1, dtype), short), short)
        both = joined([caches, short])
        settle(stage.states(stage.blank_rows(2, dtype), both), both)
    except Exception:  # families whose code counts on one place for all
        return False
    return True
