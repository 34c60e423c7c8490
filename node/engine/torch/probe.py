"""A loaded stage's first steps: what the KV cache takes per token, and how long a decode step is."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import torch

from node.engine.base import PROBE_BUDGET_S, PROBE_MOST_STEPS, PROBE_SLOW_STEP_S
from node.engine.torch.slice import TorchSlice, can_forget

if TYPE_CHECKING:
    from transformers import DynamicCache


@dataclass(frozen=True, slots=True)
class Probed:
    """What the steps told."""

    layer_kv_bytes: tuple[int, ...]
    """Of one token's keys and values, layer by layer."""
    can_rewind: bool
    layer_ms: float
    """One layer's part of a decode step, the LM head left out."""
    head_ms: float | None
    """LM head and choice of the token; None where the stage is not the last."""


@dataclass(frozen=True, slots=True)
class _Timed:
    layers_s: float
    head_s: float


def probe(stage: TorchSlice) -> Generator[None, None, Probed]:
    """Run a few tokens through `stage`; yields after each, so that another stage of the worker can serve in between.

    The first step warms up and is not counted. Of the others the median counts: steps in service are no faster.
    """
    cache = stage.new_cache()
    first = _step(stage, cache, 0)
    kv_bytes, can_rewind = _bytes_of(cache), can_forget(cache)
    yield
    timed: list[_Timed] = []
    until_s = time.perf_counter() + PROBE_BUDGET_S
    if first.layers_s + first.head_s > PROBE_SLOW_STEP_S:
        timed, until_s = [first], 0.0
    while not timed or (len(timed) < PROBE_MOST_STEPS and time.perf_counter() < until_s):
        timed.append(_step(stage, cache, len(timed) + 1))
        yield
    layers_s = median([step.layers_s for step in timed])
    head_s = median([step.head_s for step in timed])
    return Probed(kv_bytes, can_rewind, 1e3 * layers_s / stage.layers, 1e3 * head_s if stage.last else None)


@torch.inference_mode()
def _step(stage: TorchSlice, cache: DynamicCache, position: int) -> _Timed:
    started_s = time.perf_counter()
    out = stage.forward(stage.blank_row(), cache, position, logits=int(stage.last))
    if not stage.last:
        stage.synchronise()
        return _Timed(time.perf_counter() - started_s, 0.0)
    out[-1].argmax().item()
    return _Timed(stage.head_begun_s - started_s, time.perf_counter() - stage.head_begun_s)


def _bytes_of(cache: DynamicCache) -> tuple[int, ...]:
    """Of one token's keys and values, layer by layer: true for every kind of attention.

    Layers whose cache does not grow (sliding windows) count as if it did: a safe, simple bound.
    """
    return tuple(
        sum(
            value.nbytes
            for value in vars(layer).values()
            if isinstance(value, torch.Tensor) and value.numel() > 1  # scalars are counters
        )
        for layer in cache.layers
    )
