"""How the tests of llama.cpp's stages load them in this process and drive chains of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from node.engine.base import Batch, BatchResult, Slot, StageSpec
from node.engine.llamacpp.llamacpp_backend import LlamaBackend
from node.engine.llamacpp.stage import LlamaStage
from node.wire.frames import Buffer, Sampling, Want
from node.wire.models import Dtype

KV_BYTES = 64 * 1024 * 1024


class Chain:
    """Stages for each pair of neighbouring cuts, each in a backend of its own as on nodes of their own."""

    def __init__(
        self,
        folder: Path,
        cuts: Sequence[int],
        *,
        dtype: Dtype = "float32",
        kv_bytes: int = KV_BYTES,
        threads: int = 1,
    ) -> None:
        self.ranges = list(pairwise(cuts))
        self.stages = [
            load_here(folder, *layers, dtype=dtype, kv_bytes=kv_bytes, threads=threads) for layers in self.ranges
        ]

    def open(self, name: str, tokens: int, sampling: Sampling | None = None) -> None:
        """Begin a sequence on all of them."""
        for stage, (start, end) in zip(self.stages, self.ranges, strict=True):
            last = stage is self.stages[-1]
            stage.open(name, start, end, (sampling or Sampling()) if last else None, tokens)

    def close(self, name: str) -> None:
        """End it."""
        for stage in self.stages:
            stage.close(name)

    def rewind(self, name: str, position: int) -> None:
        """Go back in it."""
        for stage in self.stages:
            stage.rewind(name, position)

    def run(self, *slots: tuple[str, int, Sequence[int], Want], replay: bool = False) -> BatchResult:
        """Token ids of several sequences: name, position, ids, want."""
        data: Buffer = np.concatenate([np.asarray(ids, np.int32) for _, _, ids, _ in slots]).tobytes()
        dtype: Dtype | None = None
        result: BatchResult | None = None
        for stage in self.stages:
            wants = [want if stage is self.stages[-1] else "nothing" for _, _, _, want in slots]
            given = tuple(
                Slot(name, position, len(ids), want, replay)  # type: ignore[arg-type]
                for (name, position, ids, _), want in zip(slots, wants, strict=True)
            )
            result = stage.run(Batch(given, data, dtype))
            data, dtype = result.data, stage.info.dtype
        assert result is not None
        return result

    def step(self, name: str, position: int, ids: Sequence[int]) -> int:
        """The token after these."""
        (slot,) = self.run((name, position, ids, "token")).slots
        assert (slot.problem, slot.out_of_kv) == ("", False)
        return slot.tokens[0]

    def generate(self, name: str, prompt: Sequence[int], count: int, sampling: Sampling | None = None) -> list[int]:
        """`count` tokens after a prompt, of a sequence of its own."""
        self.open(name, len(prompt), sampling)
        answer = [self.step(name, 0, prompt)]
        while len(answer) < count:
            answer.append(self.step(name, len(prompt) + len(answer) - 1, answer[-1:]))
        self.close(name)
        return answer

    def drop(self) -> None:
        """Give all memory back."""
        for stage in self.stages:
            stage.drop()


def load_here(
    folder: Path,
    start: int,
    end: int,
    *,
    dtype: Dtype = "float32",
    kv_bytes: int = KV_BYTES,
    threads: int = 1,
) -> LlamaStage:
    """Layers [start, end), loaded in this process."""
    backend = LlamaBackend("cpu")
    backend.set_threads(threads)
    progress = backend.load(StageSpec(str(folder), start, end, dtype, kv_bytes, backend="llamacpp"))
    while True:
        try:
            next(progress)
        except StopIteration as finished:
            stage: LlamaStage = finished.value
            return stage
