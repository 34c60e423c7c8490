"""SGLang on one device: CUDA, or a processor where its environment was put together by hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor, wait
from importlib.metadata import version
from pathlib import Path

import torch

from node.engine.backend import Device
from node.engine.base import StageInfo, StageSpec
from node.engine.batches import MAX_BATCH_ROWS
from node.engine.memory import WorkerMemory
from node.engine.sglang.forward import Part, Room, forward
from node.engine.sglang.range_runner import MAX_SEQUENCES, RangeRunner, build
from node.engine.sglang.stage import SglangStage
from node.errors import LoadFailed, ModelError
from node.weights.gguf_split import gguf_in
from node.wire.layer_range import layer_range

TIMED_STEPS = 5
PIECE_S = 0.1


class SglangBackend:
    """A `backend.Backend`."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._weight_bytes = 0
        self._memory = WorkerMemory(lambda: self._weight_bytes)

    def load(self, spec: StageSpec) -> Generator[None, None, SglangStage]:
        """See `backend.Backend.load`. The library builds and reads all at once, in a thread of its own meanwhile."""
        started_s = time.perf_counter()
        asked = layer_range(spec.start, spec.end)
        yield
        try:
            if gguf_in(Path(spec.model_folder)) is not None:
                raise LoadFailed(asked, "SGLang reads safetensors, and the model is a GGUF file")
            layer_bytes = bytes_per_token(spec)
            tokens = max(1, spec.kv_bytes // max(1, sum(layer_bytes)))
            range_runner = yield from meanwhile(lambda: build(spec, self._device, tokens))
        except ModelError as error:
            raise LoadFailed(asked, str(error)) from error
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise LoadFailed(asked, f"too little memory on {self._device}; assign fewer layers") from error
        yield
        layers_ms = timed_ms(range_runner, getattr(torch, spec.dtype)) / (spec.end - spec.start)
        self._weight_bytes = sum(parameter.nbytes for parameter in range_runner.runner.model.parameters())
        info = StageInfo(
            weight_bytes=self._weight_bytes,
            kv_bytes_per_token=sum(layer_bytes),
            kv_tokens=min(tokens, int(range_runner.runner.max_total_num_tokens)),
            load_s=time.perf_counter() - started_s,
            hidden_size=range_runner.width,
            dtype=spec.dtype,
            layer_ms=layers_ms,
            max_batch_rows=MAX_BATCH_ROWS,
            max_sequences=MAX_SEQUENCES,
            can_narrow=False,
            backend="sglang",
            quantisation=spec.dtype,
            drift_class=f"sglang {version('sglang')} {self._device} {spec.dtype}",
        )
        return SglangStage(range_runner, info, spec.start, layer_bytes, self._memory)

    def set_threads(self, threads: int) -> None:
        """See `backend.Backend.set_threads`."""
        torch.set_num_threads(threads)


def meanwhile(build: Callable[[], RangeRunner]) -> Generator[None, None, RangeRunner]:
    """What `build` gives; yields while it goes on, so that its worker is seen to live."""
    with ThreadPoolExecutor(1, "load") as pool:
        future = pool.submit(build)
        while not wait([future], PIECE_S).done:
            yield
        return future.result()


def bytes_per_token(spec: StageSpec) -> tuple[int, ...]:
    """Of one token's keys and values in each layer, as the model's config says: SGLang wants to know how many tokens
    it may keep before it says how large they are."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(spec.model_folder, local_files_only=True, trust_remote_code=False)
    item_bytes = getattr(torch, spec.dtype).itemsize
    if getattr(config, "kv_lora_rank", None):
        numbers = config.kv_lora_rank + config.qk_rope_head_dim
    else:
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        numbers = 2 * heads * width
    return (int(numbers) * item_bytes,) * (spec.end - spec.start)


def timed_ms(range_runner: RangeRunner, dtype: torch.dtype) -> float:
    """A decode step, the median of some; the first is not counted. LM head included at the model's end."""
    room = Room(range_runner)
    held = room.new()
    if held is None:
        return 0.0
    blank = torch.zeros(1, dtype=torch.int64)
    if not range_runner.first:
        blank = torch.zeros(1, range_runner.width, dtype=dtype, device=range_runner.device)
    times_s = []
    for step in range(1 + TIMED_STEPS):
        room.grow(held, step + 1)
        started_s = time.perf_counter()
        forward(range_runner, [Part(held, step, 1)], blank, decode=step > 0).float().cpu()
        times_s.append(time.perf_counter() - started_s)
    room.end(held)
    return 1e3 * sorted(times_s[1:])[TIMED_STEPS // 2]
