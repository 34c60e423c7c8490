"""How the engine's tests load stages in this process, drive chains of stages, and make tiny random models."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from node.engine.base import Buffer, Engine, Stage, StageSpec, Step
from node.engine.loading import SharedTensors, load_stage
from node.engine.torch_stage import TorchStage
from node.wire.frames import Sampling
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


def step_here(
    stages: Sequence[TorchStage], session: str, position: int, ids: Sequence[int], sampling: Sampling | None
) -> int | None:
    """One step through a chain in this process; the last stage's token."""
    data: Buffer = pack_ids(ids)
    dtype: Dtype | None = None
    token = None
    for stage in stages:
        result = stage.run(Step(session, position, len(ids), data, dtype, sampling if stage.last else None))
        data, dtype, token = result.data, stage.info.dtype, result.token
    return token


def generate_here(
    stages: Sequence[TorchStage],
    ids: Sequence[int],
    count: int,
    *,
    session: str = "s",
    sampling: Sampling | None = None,
) -> list[int]:
    """`count` tokens from a chain in this process, step by step."""
    for stage in stages:
        stage.reserve(session, len(ids) + count)
    answer: list[int] = []
    position, waiting = 0, list(ids)
    while len(answer) < count:
        token = step_here(stages, session, position, waiting, sampling or Sampling())
        assert token is not None
        position += len(waiting)
        waiting = [token]
        answer.append(token)
    for stage in stages:
        stage.free(session)
    return answer


async def load_chain(engine: Engine, folder: Path, cuts: Sequence[int], *, dtype: Dtype = "float32") -> list[Stage]:
    """Stages for each pair of neighbouring cuts."""
    return [await engine.load(StageSpec(str(folder), start, end, dtype, KV_BYTES)) for start, end in pairwise(cuts)]


async def generate(
    stages: Sequence[Stage],
    ids: Sequence[int],
    count: int,
    *,
    session: str = "s",
    sampling: Sampling | None = None,
    chunk: int = 512,
) -> list[int]:
    """`count` tokens from a chain of stages, wherever they live; the prompt goes in chunks."""
    for stage in stages:
        await stage.reserve(session, len(ids) + count)
    answer: list[int] = []
    position, waiting = 0, list(ids)
    while len(answer) < count:
        part, waiting = waiting[:chunk], waiting[chunk:]
        data: Buffer = pack_ids(part)
        dtype: Dtype | None = None
        token = None
        for stage in stages:
            wanted = (sampling or Sampling()) if stage is stages[-1] and not waiting else None
            result = await stage.run(Step(session, position, len(part), data, dtype, wanted))
            data, dtype, token = result.data, stage.info.dtype, result.token
        position += len(part)
        if not waiting:
            assert token is not None
            answer.append(token)
            waiting = [token]
    for stage in stages:
        await stage.free(session)
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
