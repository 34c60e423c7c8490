"""A stage on transformers' own modelling code: a batch in, hidden states or tokens out.

Slots run one after another, each through the library's own kernels with its own shape. Matrix products of 1, 2 to 3
and more rows end in different last bits (measured with MKL in float32), so rows that shared a product would make a
sequence's tokens depend on its neighbours. A backend with kernels that do not care may join them.
"""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from node.engine.backend import BackendLost
from node.engine.base import Batch, BatchResult, Slot, SlotResult, StageInfo
from node.engine.batches import check_batch
from node.engine.kv_cache import Sequence, Sequences
from node.engine.memory import WorkerMemory
from node.engine.sampler import sample
from node.engine.torch.slice import TorchSlice, forget
from node.errors import EngineError, TooLong
from node.wire.frames import Buffer, Sampling

if TYPE_CHECKING:
    from transformers import DynamicCache

EACH_MOST_ROWS = 128
"""Of one slot that wants a token per row: logits of 128 rows and a vocabulary of 150,000 are 77 MB."""

SUSPECT_FAILURES = 3
"""Of the library in a row, before it is tried whether it computes anything at all: a device that has failed once may do
so for ever, while a sequence that it fails on ends alone."""

SLICES_KEPT = 8
"""Unused ranges within the stage that are kept for the next sequence. They hold no weights of their own."""


class TorchStage:
    """A `backend.LoadedStage`. Usable once `serve` has told it how much its KV cache may hold."""

    info: StageInfo

    def __init__(
        self,
        whole: TorchSlice,
        held: list[torch.Tensor],
        cut: Callable[[int, int], TorchSlice],
        most_tokens: int | None = None,
    ) -> None:
        self.whole = whole
        self._held = held
        """Keeps the tensors alive that other stages may share by name; parameters are other objects over them."""
        self._cut: Callable[[int, int], TorchSlice] | None = cut
        """Makes a slice of our tensors for layers [start, end)."""
        self._slices: dict[tuple[int, int], TorchSlice] = {(whole.start, whole.end): whole}
        """Whoever was used last comes last."""
        self._most_tokens = most_tokens
        """Of one sequence, where the model's rotary table is another beyond them."""
        self._sequences: Sequences[DynamicCache] = Sequences(whole.start, (1,) * whole.layers, 0, 0)
        self._memory: WorkerMemory | None = None
        self._failures = 0
        """Of the library, since it computed something."""

    def serve(self, info: StageInfo, layer_kv_bytes: tuple[int, ...], memory: WorkerMemory) -> None:
        """Begin to serve."""
        self.info, self._memory = info, memory
        self._sequences = Sequences(self.whole.start, layer_kv_bytes, info.kv_tokens, info.max_sequences)
        self._sequences.share(memory)
        memory.enter(self, info.weight_bytes + info.kv_tokens * info.kv_bytes_per_token)

    # --- sequences --------------------------------------------------------------------------------------------------

    def open(self, sequence: str, start: int, end: int, sampling: Sampling | None, kv_tokens: int) -> None:
        """See `base.Stage.open`."""
        if self._most_tokens is not None and kv_tokens > self._most_tokens:
            raise TooLong(kv_tokens, self._most_tokens)
        self._sequences.open(sequence, start, end, sampling, kv_tokens, lambda: self.part(start, end).new_cache())

    def rewind(self, sequence: str, position: int) -> None:
        """See `base.Stage.rewind`."""
        held = self._sequences.get(sequence)
        if not 0 <= position <= held.cached:
            raise EngineError(f"sequence {sequence} back to {position}, but the KV cache holds {held.cached} tokens")
        if position == held.cached and not held.broken:
            return
        if position == 0:
            held.cache = self.part(held.start, held.end).new_cache()
        elif not self.info.can_rewind:
            raise EngineError(
                f"sequence {sequence} back to {position}: {type(self.whole.model).__name__} has layers that keep a "
                "window or a state, not all their keys and values; such a sequence begins anew"
            )
        else:
            forget(held.cache, position)
        held.cached, held.broken = position, ""

    def close(self, sequence: str) -> None:
        """See `base.Stage.close`."""
        self._sequences.close(sequence)

    def drop(self) -> None:
        """See `base.Stage.drop`."""
        self._sequences.clear()
        self._held.clear()
        self._slices.clear()
        self._cut = None
        self.whole.model = None
        gc.collect()  # modules are full of cycles
        if self._memory is not None:
            self._memory.leave(self)
        if self.whole.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def slices(self) -> int:
        """Ranges that are made at present."""
        return len(self._slices)

    def part(self, start: int, end: int) -> TorchSlice:
        """Layers [start, end) of the stage, made where they are asked for the first time."""
        if (found := self._slices.pop((start, end), None)) is None:
            if self._cut is None:
                raise EngineError("the stage is dropped")
            found = self._cut(start, end)
        self._slices[start, end] = found
        idle = [key for key in self._slices if key not in self._sequences.ranges() | {(start, end)}]
        for key in [key for key in idle if self._slices[key] is not self.whole][:-SLICES_KEPT]:
            del self._slices[key]
        return found

    # --- batches ----------------------------------------------------------------------------------------------------

    def run(self, batch: Batch) -> BatchResult:
        """See `base.Stage.run`."""
        started = time.perf_counter()
        check_batch(batch, self.info)
        ranges = {
            (sequence.start, sequence.end)
            for slot in batch.slots
            if (sequence := self._sequences.find(slot.sequence)) is not None
        }
        if len(ranges) > 1:
            raise EngineError(f"one batch over several ranges of layers {sorted(ranges)}; make a batch of each")
        part = self.part(*ranges.pop()) if ranges else self.whole
        rows = self._rows(batch, part)
        out = None if part.last else torch.zeros(batch.rows, part.width, dtype=part.dtype, device=part.device)
        results: list[SlotResult] = []
        head_s, begin = 0.0, 0
        for slot in batch.slots:
            within = slice(begin, begin + slot.count)
            begin += slot.count
            try:
                sequence = self._sequences.at(slot.sequence, slot.position, slot.count)
                if not self._has_room(sequence, slot):
                    results.append(SlotResult(out_of_kv=True))
                    continue
                tokens, head_slot_s = self._run_slot(part, sequence, slot, rows[within], out, within)
            except EngineError as error:
                results.append(SlotResult(problem=str(error)))
            except Exception as error:  # whatever the library raises is this sequence's end, not its neighbours'
                traceback.print_exception(error)
                self._failures += 1
                results.append(SlotResult(problem=f"the backend failed: {type(error).__name__}: {error}"))
            else:
                self._failures = 0
                results.append(SlotResult(tokens))
                head_s += head_slot_s
        if self._failures >= SUSPECT_FAILURES:
            self._try_device()
        data = b"" if out is None else _bytes(out)
        ended = time.perf_counter()
        return BatchResult(
            data, tuple(results), 1e3 * (ended - started), 1e3 * head_s, free_kv_tokens=self._sequences.free_tokens
        )

    def _has_room(self, sequence: Sequence[DynamicCache], slot: Slot) -> bool:
        """Whether its rows have room in the cache, and in the model's rotary table as it was chosen for its prompt."""
        end = slot.position + slot.count
        return (self._most_tokens is None or end <= self._most_tokens) and self._sequences.grow(sequence, end)

    def _try_device(self) -> None:
        """A step of nobody's sequence, which only a broken device fails on."""
        try:
            self.whole.forward(self.whole.blank_row(), self.whole.new_cache(), 0)
            self.whole.synchronise()
        except Exception as error:
            raise BackendLost(f"{type(error).__name__}: {error}") from error
        self._failures = 0

    def _run_slot(
        self,
        part: TorchSlice,
        sequence: Sequence[DynamicCache],
        slot: Slot,
        rows: torch.Tensor,
        out: torch.Tensor | None,
        within: slice,
    ) -> tuple[tuple[int, ...], float]:
        """The slot's tokens and the seconds that they took; its rows go to their place in `out`."""
        wanted = {"nothing": 0, "token": 1, "each": slot.count}[slot.want]
        sampling = sequence.sampling
        if wanted and (out is not None or sampling is None):
            what = "opened without a sampling" if out is None else "that does not reach the model's last layer"
            raise EngineError(f"a token of sequence {slot.sequence}, {what}")
        if wanted > EACH_MOST_ROWS:
            raise EngineError(f"a token for each of {wanted} rows; at most {EACH_MOST_ROWS} at a time")
        if part.first and (wrong := _foreign_ids(rows, part.vocabulary)):
            raise EngineError(f"token ids {wrong}; the vocabulary has {part.vocabulary}")
        try:
            if slot.replay and slot.count > 1:
                given = self._replay(part, sequence, slot, rows, wanted)
            else:
                given = part.forward(rows, sequence.cache, slot.position, logits=wanted)
            if out is not None:
                out[within] = given
            tokens: tuple[int, ...] = ()
            head_s = 0.0
            if wanted and sampling is not None:
                first = slot.position + slot.count - wanted + 1
                logits = given.float().cpu().numpy()
                tokens = tuple(sample(row, sampling, first + index) for index, row in enumerate(logits))
                head_s = time.perf_counter() - part.head_begun_s
            else:
                part.synchronise()
        except Exception as error:
            sequence.broken = f"its step at position {slot.position} failed: {error}"
            raise
        sequence.cached += slot.count
        return tokens, head_s

    def _replay(
        self, part: TorchSlice, sequence: Sequence[DynamicCache], slot: Slot, rows: torch.Tensor, wanted: int
    ) -> torch.Tensor:
        """What `forward` gives, one row after another."""
        first = slot.count - wanted
        given = [
            part.forward(
                rows[at : at + 1], sequence.cache, slot.position + at, logits=1 if wanted and at >= first else 0
            )
            for at in range(slot.count)
        ]
        return torch.cat(given[first:] if wanted else given)

    def _rows(self, batch: Batch, part: TorchSlice) -> torch.Tensor:
        """The batch's tensor on our device: int64 ids (T,) or hidden states (T, hidden_size) in our dtype."""
        if (batch.dtype is None) != part.first:
            given = "token ids" if batch.dtype is None else "hidden states"
            raise EngineError(f"{given} for layers that {'do' if part.first else 'do not'} begin the model")
        dtype = torch.int32 if batch.dtype is None else getattr(torch, batch.dtype)
        rows = torch.frombuffer(_writable(batch.data), dtype=dtype)
        if part.first:
            return rows.to(part.device, torch.int64)
        return rows.view(batch.rows, part.width).to(part.device, part.dtype)


def _foreign_ids(ids: torch.Tensor, vocabulary: int) -> str:
    """Which of the ids the embedding does not know, in words; empty where it knows all."""
    lowest, highest = int(ids.min()), int(ids.max())
    return f"from {lowest} to {highest}" if lowest < 0 or highest >= vocabulary else ""


def _writable(data: Buffer) -> Buffer:
    """torch takes only writable memory; what came through the pipe is, and is not copied."""
    return bytearray(data) if memoryview(data).readonly else data


def _bytes(states: torch.Tensor) -> Buffer:
    """A tensor's memory; numpy knows no bfloat16, so it is seen as bytes."""
    return states.contiguous().cpu().view(torch.uint8).numpy().data.cast("B")
