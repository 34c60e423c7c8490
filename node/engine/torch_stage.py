"""Layers [start, end) on transformers' own modelling code: one step in, hidden states or a token out."""

from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from node.engine.base import Buffer, StageInfo, StageSpec, Step, StepResult
from node.engine.kv_cache import Sequences
from node.engine.memory import WorkerMemory
from node.engine.sampler import sample
from node.errors import EngineError

if TYPE_CHECKING:
    from transformers import DynamicCache


class TorchStage:
    """A `backend.LoadedStage`. Usable once `open` has told it how much its KV cache may hold."""

    info: StageInfo

    def __init__(self, model: Any, spec: StageSpec, device: torch.device, held: list[torch.Tensor]) -> None:
        self.model = model
        self.first = model.model.embed_tokens is not None
        self.last = model.lm_head is not None
        self.layers = spec.end - spec.start
        self._held = held
        """Keeps the tensors alive that other stages may share by name; parameters are other objects over them."""
        self._device = device
        self._dtype: torch.dtype = getattr(torch, spec.dtype)
        self._width = int(model.config.hidden_size)
        self._sequences: Sequences[DynamicCache] = Sequences(0, self.new_cache)
        self._memory: WorkerMemory | None = None
        self.head_begun_s = 0.0
        """When the LM head's last run began, by `time.perf_counter`."""
        if self.last:
            model.lm_head.register_forward_pre_hook(self._begin_head)

    def open(self, info: StageInfo, memory: WorkerMemory) -> None:
        """Begin to serve."""
        self.info, self._memory = info, memory
        self._sequences = Sequences(info.kv_tokens, self.new_cache, memory, info.kv_bytes_per_token)
        memory.enter(self, info.weight_bytes + info.kv_tokens * info.kv_bytes_per_token)

    def new_cache(self) -> DynamicCache:
        """Empty keys and values for this stage's layers, sliding ones with their window."""
        from transformers import DynamicCache

        return DynamicCache(config=self.model.config)

    def blank_row(self) -> torch.Tensor:
        """One position's input: id 0 or a hidden state of zeros."""
        if self.first:
            return torch.zeros(1, dtype=torch.int64, device=self._device)
        return torch.zeros(1, self._width, dtype=self._dtype, device=self._device)

    @torch.inference_mode()
    def forward(self, rows: torch.Tensor, cache: DynamicCache, position: int, *, want_logits: bool) -> torch.Tensor:
        """Ids (T,) or hidden states (T, hidden_size) to hidden states (T, hidden_size), or logits (vocab_size,)."""
        count = rows.shape[0]
        inputs: dict[str, Any] = {
            "input_ids" if self.first else "inputs_embeds": rows[None],
            "position_ids": torch.arange(position, position + count, device=self._device)[None],
            "past_key_values": cache,
            "use_cache": True,
        }
        if want_logits:
            logits: torch.Tensor = self.model(**inputs, logits_to_keep=1).logits
            return logits[0, -1]
        states: torch.Tensor = self.model.model(**inputs).last_hidden_state
        return states[0]

    def synchronise(self) -> None:
        """Wait for the device, so that a time is that of the work, not of queueing it."""
        if self._device.type != "cpu":
            torch.accelerator.synchronize()

    def _begin_head(self, *_: object) -> None:
        self.synchronise()
        self.head_begun_s = time.perf_counter()

    def reserve(self, session: str, tokens: int) -> None:
        """See `base.Stage.reserve`."""
        self._sequences.reserve(session, tokens)

    def free(self, session: str) -> None:
        """See `base.Stage.free`."""
        self._sequences.free(session)

    def close(self) -> None:
        """See `base.Stage.close`."""
        self._sequences.clear()
        self._held.clear()
        self.model = None
        gc.collect()  # modules are full of cycles
        if self._memory is not None:
            self._memory.leave(self)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def run(self, step: Step) -> StepResult:
        """See `base.Stage.run`."""
        started = time.perf_counter()
        sequence = self._sequences.at(step.session, step.position, step.count)
        if step.sampling is not None and not self.last:
            raise EngineError("a token was asked of a stage that does not hold the model's last layer")
        rows = self._rows(step)
        try:
            out = self.forward(rows, sequence.cache, step.position, want_logits=step.sampling is not None)
            token, data = None, b""  # type: tuple[int | None, Buffer]
            if step.sampling is not None:
                token = sample(_array(out), step.sampling, step.position + step.count)
            elif not self.last:
                data = _bytes(out)
            else:
                self.synchronise()
        except Exception as error:
            sequence.broken = f"its step at position {step.position} failed: {error}"
            raise
        sequence.cached += step.count
        ended = time.perf_counter()
        head_ms = 0.0 if step.sampling is None else 1e3 * (ended - self.head_begun_s)
        return StepResult(data, token, 1e3 * (ended - started), head_ms)

    def _rows(self, step: Step) -> torch.Tensor:
        """The step's tensor on our device: int64 ids (T,) or hidden states (T, hidden_size) in our dtype."""
        if (step.dtype is None) != self.first:
            given = "token ids" if step.dtype is None else "hidden states"
            raise EngineError(f"{given} for a stage that {'is' if self.first else 'is not'} the first")
        dtype = torch.int32 if step.dtype is None else getattr(torch, step.dtype)
        expected = step.count * (1 if self.first else self._width) * dtype.itemsize
        if memoryview(step.data).nbytes != expected:
            raise EngineError(f"{memoryview(step.data).nbytes} bytes for {step.count} positions, {expected} expected")
        rows = torch.frombuffer(_writable(step.data), dtype=dtype)
        if not self.first:
            return rows.view(step.count, self._width).to(self._device, self._dtype)
        vocabulary = self.model.model.embed_tokens.weight.shape[0]
        if int(rows.min()) < 0 or int(rows.max()) >= vocabulary:
            raise EngineError(f"token ids from {int(rows.min())} to {int(rows.max())}; the vocabulary has {vocabulary}")
        return rows.to(self._device, torch.int64)


def _writable(data: Buffer) -> Buffer:
    """torch takes only writable memory; what came through the pipe is, and is not copied."""
    return bytearray(data) if memoryview(data).readonly else data


def _bytes(states: torch.Tensor) -> Buffer:
    """A tensor's memory; numpy knows no bfloat16, so it is seen as bytes."""
    return states.contiguous().cpu().view(torch.uint8).numpy().data.cast("B")


def _array(logits: torch.Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    return logits.float().cpu().numpy()
