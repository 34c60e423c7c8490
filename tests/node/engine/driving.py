"""How the engine's tests load stages in this process, drive chains of stages, and make tiny random models."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from node.engine.base import BackendName, Batch, BatchResult, Engine, Slot, Stage, StageSpec
from node.engine.torch.loading import SharedTensors, load_stage
from node.engine.torch.stage import TorchStage
from node.wire.frames import Buffer, Sampling, Want
from node.wire.models import Dtype

KV_BYTES = 64 * 1024 * 1024
CPU = torch.device("cpu")


def load_here(
    folder: Path, start: int, end: int, *, dtype: Dtype = "float32", shared: SharedTensors | None = None
) -> TorchStage:
    """Layers [start, end), loaded in this process."""
    return load_spec_here(StageSpec(str(folder), start, end, dtype, KV_BYTES), shared)


def load_spec_here(spec: StageSpec, shared: SharedTensors | None = None) -> TorchStage:
    progress = load_stage(spec, CPU, SharedTensors() if shared is None else shared)
    while True:
        try:
            next(progress)
        except StopIteration as finished:
            stage: TorchStage = finished.value
            return stage


def pack_ids(ids: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(ids)}i", *ids)


def batch_of(*slots: tuple[str, int, Sequence[int], Want]) -> Batch:
    """A batch of token ids: sequence, position, ids, want."""
    return Batch(
        tuple(Slot(sequence, position, len(ids), want) for sequence, position, ids, want in slots),
        pack_ids([token for _, _, ids, _ in slots for token in ids]),
        None,
    )


def rows_of(sequence: str, position: int, data: Buffer, count: int, want: Want = "nothing") -> Batch:
    """A batch of one slot of hidden states in float32."""
    return Batch((Slot(sequence, position, count, want),), data, "float32")


def open_here(stages: Sequence[TorchStage], sequence: str, tokens: int, sampling: Sampling | None = None) -> None:
    """Begin a sequence on each stage of a chain, for all of its layers."""
    for stage in stages:
        chosen = (sampling or Sampling()) if stage.whole.last else None
        stage.open(sequence, stage.whole.start, stage.whole.end, chosen, tokens)


def run_here(stages: Sequence[TorchStage], batch: Batch) -> BatchResult:
    """A batch through a chain in this process; what its slots want, they want of the last stage."""
    result: BatchResult | None = None
    for stage in stages:
        slots = batch.slots if stage.whole.last else tuple(replace(slot, want="nothing") for slot in batch.slots)
        data, dtype = (batch.data, batch.dtype) if result is None else (result.data, stage.info.dtype)
        result = stage.run(Batch(slots, data, dtype))
        assert [slot.problem for slot in result.slots] == [""] * len(batch.slots)
    assert result is not None
    return result


def step_here(
    stages: Sequence[TorchStage], sequence: str, position: int, ids: Sequence[int], want: Want = "token"
) -> tuple[int, ...]:
    """One sequence's step through a chain in this process; the last stage's tokens."""
    return run_here(stages, batch_of((sequence, position, ids, want))).slots[0].tokens


def generate_here(
    stages: Sequence[TorchStage],
    ids: Sequence[int],
    count: int,
    *,
    session: str = "s",
    sampling: Sampling | None = None,
) -> list[int]:
    """`count` tokens from a chain in this process, step by step."""
    open_here(stages, session, len(ids) + count, sampling)
    answer: list[int] = []
    position, waiting = 0, list(ids)
    while len(answer) < count:
        (token,) = step_here(stages, session, position, waiting)
        position += len(waiting)
        waiting = [token]
        answer.append(token)
    for stage in stages:
        stage.close(session)
    return answer


@dataclass(frozen=True)
class Part:
    """A stage of a chain, wherever it lives, and its layers."""

    stage: Stage
    start: int
    end: int

    async def open(self, sequence: str, sampling: Sampling | None, tokens: int) -> None:
        """Begin a sequence on all of them."""
        await self.stage.open(sequence, self.start, self.end, sampling, tokens)


async def load_chain(
    engine: Engine, folder: Path, cuts: Sequence[int], *, dtype: Dtype = "float32", backend: BackendName = "torch"
) -> list[Part]:
    """Stages for each pair of neighbouring cuts."""
    return [
        Part(await engine.load(StageSpec(str(folder), start, end, dtype, KV_BYTES, backend)), start, end)
        for start, end in pairwise(cuts)
    ]


async def generate(
    chain: Sequence[Part],
    ids: Sequence[int],
    count: int,
    *,
    session: str = "s",
    sampling: Sampling | None = None,
    chunk: int = 512,
) -> list[int]:
    """`count` tokens from a chain of stages, wherever they live; the prompt goes in chunks."""
    for part in chain:
        await part.open(session, (sampling or Sampling()) if part is chain[-1] else None, len(ids) + count)
    answer: list[int] = []
    position, waiting = 0, list(ids)
    while len(answer) < count:
        now, waiting = waiting[:chunk], waiting[chunk:]
        data: Buffer = pack_ids(now)
        dtype: Dtype | None = None
        tokens: tuple[int, ...] = ()
        for part in chain:
            want: Want = "token" if part is chain[-1] and not waiting else "nothing"
            result = await part.stage.run(Batch((Slot(session, position, len(now), want),), data, dtype))
            assert result.slots[0].problem == ""
            data, dtype, tokens = result.data, part.stage.info.dtype, result.slots[0].tokens
        position += len(now)
        if not waiting:
            answer += tokens
            waiting = list(tokens)
    for part in chain:
        await part.stage.close(session)
    return answer


def save_tiny(config: Any, folder: Path, *, seed: int = 1, shards: int = 1) -> Any:
    """Write a random model of this config as a checkpoint and return the whole model, straight from the library."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            wide = parameter.ndim > 1
            parameter.copy_(torch.randn_like(parameter) * 0.15 if wide else torch.rand_like(parameter) * 0.5 + 0.75)
    model.tie_weights()
    tied = bool(config.tie_word_embeddings)
    tensors = {n: t.clone() for n, t in model.state_dict().items() if not (tied and n == "lm_head.weight")}
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
    else:
        save_shards(tensors, folder, shards)
    return model


def save_shards(tensors: dict[str, torch.Tensor], folder: Path, shards: int) -> None:
    """The checkpoint in several files: each takes the next names in the model's order."""
    names = list(tensors)
    size = -(-len(names) // shards)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        mine = names[number * size : (number + 1) * size]
        save_file({name: tensors[name] for name in mine}, folder / file)
        weight_map.update(dict.fromkeys(mine, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def tiny_llama(**changes: Any) -> Any:
    """The smallest config that has everything: grouped heads, several layers."""
    from transformers import LlamaConfig

    return LlamaConfig(**{**TINY, **changes})


TINY: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
