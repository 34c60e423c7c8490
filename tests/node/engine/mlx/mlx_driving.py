"""How the tests load MLX stages in this process and drive chains of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from node.engine.base import Batch, Slot, StageSpec
from node.engine.mlx.backend import MlxBackend
from node.engine.mlx.stage import MlxStage
from node.wire.frames import Sampling, Want
from tests.node.engine.driving import KV_BYTES, pack_ids


def load_mlx(
    folder: Path, start: int, end: int, *, backend: MlxBackend | None = None, batched: bool = False, **more: object
) -> MlxStage:
    """Layers [start, end), loaded in this process."""
    backend = backend or MlxBackend("cpu")
    backend.batched = batched
    spec = replace(StageSpec(str(folder), start, end, "float32", KV_BYTES, "mlx"), **more)  # type: ignore[arg-type]
    progress = backend.load(spec)
    while True:
        try:
            next(progress)
        except StopIteration as finished:
            stage: MlxStage = finished.value
            return stage


def open_mlx(stages: Sequence[MlxStage], sequence: str, tokens: int) -> None:
    """Begin a sequence on a chain."""
    for stage in stages:
        sampling = Sampling() if stage.whole.last else None
        stage.open(sequence, stage.whole.start, stage.whole.end, sampling, tokens)


def run_mlx(
    stages: Sequence[MlxStage], *slots: tuple[str, int, Sequence[int], Want], replay: bool = False
) -> list[tuple[int, ...]]:
    """A batch of ids through a chain; each slot's tokens."""
    made = tuple(Slot(name, position, len(ids), want, replay) for name, position, ids, want in slots)
    data, dtype = pack_ids([token for _, _, ids, _ in slots for token in ids]), None
    for stage in stages:
        now = made if stage.whole.last else tuple(replace(slot, want="nothing") for slot in made)
        result = stage.run(Batch(now, data, dtype))
        assert [slot.problem for slot in result.slots] == [""] * len(slots)
        data, dtype = result.data, stage.info.dtype  # type: ignore[assignment]
    return [slot.tokens for slot in result.slots]


def generate_mlx(stages: Sequence[MlxStage], name: str, ids: Sequence[int], count: int) -> list[int]:
    """`count` tokens, step by step."""
    open_mlx(stages, name, len(ids) + count)
    answer: list[int] = []
    position, waiting = 0, list(ids)
    while len(answer) < count:
        ((token,),) = run_mlx(stages, (name, position, waiting, "token"))
        position, waiting = position + len(waiting), [token]
        answer.append(token)
    for stage in stages:
        stage.close(name)
    return answer


def logits_of(stages: Sequence[MlxStage], ids: Sequence[int], steps: Sequence[int]) -> NDArray[np.float32]:
    """The logits after the prompt `ids` and after each of `steps`, (1 + steps, vocabulary)."""
    import mlx.core as mx

    caches = [stage.whole.new_caches() for stage in stages]
    found = []
    for given in [list(ids), *([token] for token in steps)]:
        rows = mx.array(given)[None]
        for stage, cache in zip(stages, caches, strict=True):
            rows = stage.whole.states(rows, cache)
        found.append(np.array(stages[-1].whole.logits(rows[:, -1:])[0, 0].astype(mx.float32)))
    return np.stack(found)
