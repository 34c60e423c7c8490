"""How the tests of the onnxruntime stage load ranges in this process and run sequences through chains of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from node.engine.base import Batch, BatchResult, Quantise, Slot, StageSpec
from node.engine.ort.loading import load_stage
from node.engine.ort.part_store import PartStore
from node.engine.ort.stage import OrtStage
from node.wire.frames import Sampling, Want
from node.wire.models import Dtype
from tests.node.engine.driving import KV_BYTES, batch_of


def load_ort(
    folder: Path,
    start: int,
    end: int,
    *,
    quantise: Quantise = "auto",
    dtype: Dtype = "float32",
    kv_bytes: int = KV_BYTES,
    store: PartStore | None = None,
) -> OrtStage:
    """Layers [start, end), loaded in this process."""
    spec = StageSpec(str(folder), start, end, dtype, kv_bytes, "ort", quantise)
    progress = load_stage(spec, PartStore() if store is None else store)
    while True:
        try:
            next(progress)
        except StopIteration as finished:
            stage: OrtStage = finished.value
            return stage


def cut(folder: Path, cuts: Sequence[int], **how: object) -> list[OrtStage]:
    """Stages for each pair of neighbouring cuts."""
    return [load_ort(folder, first, last, **how) for first, last in pairwise(cuts)]  # type: ignore[arg-type]


def open_all(stages: Sequence[OrtStage], sequence: str, tokens: int = 1, sampling: Sampling | None = None) -> None:
    """Begin a sequence on each stage of a chain, for all of its layers."""
    for stage in stages:
        chosen = (sampling or Sampling()) if stage is stages[-1] else None
        stage.open(sequence, *stage.layers, chosen, tokens)


def run_all(stages: Sequence[OrtStage], batch: Batch) -> BatchResult:
    """A batch through a chain; what its slots want, they want of the last stage."""
    result: BatchResult | None = None
    for stage in stages:
        last = stage is stages[-1]
        slots = batch.slots if last else tuple(replace(slot, want="nothing") for slot in batch.slots)
        data, dtype = (batch.data, batch.dtype) if result is None else (result.data, stage.info.dtype)
        result = stage.run(Batch(slots, data, dtype))
        assert [slot.problem for slot in result.slots] == [""] * len(batch.slots)
    assert result is not None
    return result


def step(
    stages: Sequence[OrtStage], sequence: str, position: int, ids: Sequence[int], want: Want = "token"
) -> tuple[int, ...]:
    """One sequence's step through a chain; the last stage's tokens."""
    return run_all(stages, batch_of((sequence, position, ids, want))).slots[0].tokens


def rows(result: BatchResult, width: int) -> np.ndarray:
    """Hidden states (rows, width) of a stage in float32."""
    return np.frombuffer(result.data, np.float32).reshape(-1, width)


def ids_at(*slots: Slot, ids: Sequence[int]) -> Batch:
    """A batch of token ids with slots as they are given."""
    return Batch(slots, np.asarray(ids, np.int32).tobytes(), None)


def logits_of(stages: Sequence[OrtStage], ids: Sequence[int], position: int = 0, sequence: str = "s") -> np.ndarray:
    """Logits (vocabulary,) after the last of these ids, from the last stage's own head. Opens the sequence at 0."""
    if position == 0:
        for stage in stages:
            stage.close(sequence)
        open_all(stages, sequence)
    seen: list[np.ndarray] = []
    chain = stages[-1]._chain
    original = chain.logits

    def spy(states: np.ndarray) -> np.ndarray:
        seen.append(original(states))
        return seen[-1]

    chain.logits = spy  # type: ignore[method-assign]
    run_all(stages, batch_of((sequence, position, ids, "token")))
    chain.logits = original  # type: ignore[method-assign]
    return seen[-1][-1]
