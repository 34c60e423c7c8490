"""SGLang's model runner over layers [start, end), in one process. Written against SGLang 0.5.23.

Its models are built for pipelines: a rank makes its own layers and takes and gives rows as proxy tensors. A range is
the middle rank of a pipeline of up to three, of which the others are nowhere: the library is told so after its process
groups, of one process, are made. It can be told once in a process, so a worker holds one range.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from node.engine.base import StageSpec
from node.errors import LoadFailed
from node.weights.hub_files import HubFiles
from node.wire.layer_range import layer_range

PARTITION = "SGLANG_PP_LAYER_PARTITION"
EMBEDDING = "model.embed_tokens.weight"
MAX_SEQUENCES = 256
MEMORY_PART = 0.9
"""Of the device that the library takes for granted; what it really takes is bounded by tokens."""


@dataclass(frozen=True, slots=True)
class RangeRunner:
    """A runner with its weights and its room."""

    runner: Any
    first: bool
    last: bool
    width: int
    vocabulary: int
    device: str


class _Place:
    """In the pipeline group's place: where this range is in the model."""

    def __init__(self, group: Any, rank: int, size: int) -> None:
        self._group = group
        self.rank_in_group, self.world_size = rank, size
        self.is_first_rank, self.is_last_rank = rank == 0, rank == size - 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._group, name)


def place_of(start: int, end: int, layers: int) -> tuple[list[int], int]:
    """How many layers each rank of the pipeline has, and which of them is [start, end)."""
    parts = [start, end - start, layers - end]
    return [count for count in parts if count], int(start > 0)


def build(spec: StageSpec, device: str, kv_tokens: int | None) -> RangeRunner:
    """Load the range. `kv_tokens`: what there is room for; None for as little as possible, to be measured.

    Raises:
        LoadFailed: this process holds one already, there are no such layers, or the family cannot be split.
    """
    from sglang.benchmark.one_batch import _init_process_global_configs
    from sglang.srt import runtime_context
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.distributed import bootstrap
    from sglang.srt.model_executor.model_runner import ModelRunner
    from sglang.srt.server_args import PortArgs, ServerArgs

    asked = layer_range(spec.start, spec.end)
    if bootstrap._PARALLEL_INITIALISED:
        raise LoadFailed(asked, "SGLang holds one range in a process; another one needs another worker")
    arguments = ServerArgs(**settings(spec, device, kv_tokens))
    ports = PortArgs.init_new(arguments)
    runtime_context.publish(arguments, role="scheduler", ranks=runtime_context.SpawnRanks(world_rank=0, gpu_id=0))
    _init_process_global_configs()
    config = ModelConfig.from_server_args(arguments)
    layers = int(config.num_hidden_layers)
    if not 0 <= spec.start < spec.end <= layers:
        raise LoadFailed(asked, f"the model has {layers} layers")
    tied = bool(getattr(config.hf_config, "tie_word_embeddings", False))
    first, last = spec.start == 0, spec.end == layers
    if tied and last and not first:
        config.hf_config.tie_word_embeddings = False  # the embedding is another rank's: the head gets a copy
    bootstrap.init_parallel_runtime(server_args=arguments, device=device, dist_port=ports.nccl_port)
    bootstrap.init_layer_runtime(model_config=config)
    parts, rank = place_of(spec.start, spec.end, layers)
    if len(parts) > 1:
        os.environ[PARTITION] = ",".join(map(str, parts))
        parallel = runtime_context.get_parallel()
        place = _Place(parallel.pp_group, rank, len(parts))
        parallel.override_permanently(pp_rank=rank, pp_size=len(parts), pp_group=place)
    try:
        runner = ModelRunner(
            model_config=config,
            mem_fraction_static=MEMORY_PART,
            gpu_id=0,
            nccl_port=ports.nccl_port,
            server_args=arguments,
        )
    except AssertionError as error:
        raise LoadFailed(asked, f"SGLang cannot split this family: {error}") from error
    if tied and last and not first:
        _copy_head(runner.model, Path(spec.model_folder), asked)
    runner.alloc_memory_pool()
    runner.init_attention_backends()
    runner.init_cuda_graphs()
    return RangeRunner(runner, first, last, int(config.hidden_size), int(config.vocab_size), device)


def settings(spec: StageSpec, device: str, kv_tokens: int | None) -> dict[str, Any]:
    """What the library is started with: no server, no scheduler and no tokenizer of its own."""
    return {
        "model_path": spec.model_folder,
        "device": device,
        "dtype": spec.dtype,
        "max_total_tokens": kv_tokens,
        "max_running_requests": MAX_SEQUENCES,
        "mem_fraction_static": MEMORY_PART,
        "page_size": 1,
        "disable_radix_cache": True,
        "disable_overlap_schedule": True,
        "disable_cuda_graph": True,  # until it is measured that they pay on the rows that we bring
        "skip_server_warmup": True,
        "skip_tokenizer_init": True,
        "trust_remote_code": False,
        **({"attention_backend": "torch_native", "sampling_backend": "pytorch"} if device == "cpu" else {}),
    }


def _copy_head(model: Any, folder: Path, asked: str) -> None:
    """Fill a head that is tied to an embedding which is not here."""
    files = HubFiles(folder)
    if EMBEDDING not in files:
        raise LoadFailed(asked, f"the head is tied to {EMBEDDING}, which the files do not have")
    values = torch.from_numpy(files.floats(EMBEDDING).copy())
    head = model.lm_head.weight
    with torch.no_grad():
        head[: values.shape[0]].copy_(values.to(head.device, head.dtype))
