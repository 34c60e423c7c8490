"""A stage on mlx-lm's models: a batch in, hidden states or tokens out.

Prompt chunks, drafts and rows to replay run one sequence after another. Decode steps of sequences of about one length
share each product where `batched`: MLX's kernels for one row and for several end in different last bits, so that what
a sequence gets then depends, within rounding, on who steps beside it.
"""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from node.engine.backend import BackendLost
from node.engine.base import Batch, BatchResult, Slot, SlotResult, StageInfo
from node.engine.batches import (
    SUSPECT_FAILURES,
    check_batch,
    layers_of,
    refuse_foreign_ids,
    refuse_many_tokens,
    refuse_rows_of_another_kind,
    refuse_want,
)
from node.engine.kv_cache import Sequence, Sequences
from node.engine.made_slices import MadeSlices
from node.engine.memory import WorkerMemory
from node.engine.mlx.caches import Held, copied, group_of, rung, settle
from node.engine.mlx.slicing import MlxSlice
from node.engine.sampler import sample
from node.errors import EngineError
from node.wire.frames import Sampling
from node.wire.models import Dtype

WIRE_FORM: dict[Dtype, str] = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
"""numpy has no bfloat16: its bits go as whole numbers."""


class MlxStage:
    """A `backend.LoadedStage`. Usable once `serve` has told it how much its KV cache may hold."""

    info: StageInfo

    def __init__(self, whole: MlxSlice, held: list[Any], cut: Callable[[int, int], MlxSlice], *, batched: bool) -> None:
        self.whole, self.batched = whole, batched
        self._held = held
        """Keeps the modules alive that other stages may share."""
        self._slices = MadeSlices(whole, whole.start, whole.end, cut)
        self._sequences: Sequences[Held] = Sequences(whole.start, (1,) * (whole.end - whole.start), 0, 0)
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
        self._sequences.open(
            sequence, start, end, sampling, rung(kv_tokens), lambda: Held(self.part(start, end).new_caches())
        )

    def rewind(self, sequence: str, position: int) -> None:
        """See `base.Stage.rewind`."""
        held = self._sequences.get(sequence)
        if not 0 <= position <= held.cached:
            raise EngineError(f"sequence {sequence} back to {position}, but the KV cache holds {held.cached} tokens")
        if position == held.cached and not held.broken:
            return
        if position == 0:
            held.cache.forget()
            held.cache = Held(self.part(held.start, held.end).new_caches())
        elif not self.info.can_rewind:
            raise EngineError(
                f"sequence {sequence} back to {position}: the model has layers that keep a window, not all their keys "
                "and values; such a sequence begins anew"
            )
        else:
            for cache in held.cache.alone():
                cache.trim(max(0, cache.offset - position))
        held.cached, held.broken = position, ""

    def take_up(self, sequence: str, prefix: tuple[bytes, ...]) -> int:
        """See `backend.KeepsPrefixes`."""
        return self._sequences.take_up(sequence, prefix, copied) if self.info.keeps_prefixes else 0

    def keep(self, sequence: str, prefix: tuple[bytes, ...]) -> None:
        """See `backend.KeepsPrefixes`."""
        if self.info.keeps_prefixes:
            self._sequences.keep(sequence, prefix, copied)

    def close(self, sequence: str) -> None:
        """See `base.Stage.close`."""
        if held := self._sequences.find(sequence):
            held.cache.forget()
        self._sequences.close(sequence)

    def drop(self) -> None:
        """See `base.Stage.drop`."""
        self._sequences.clear()
        self._held.clear()
        self._slices.clear()
        del self.whole
        gc.collect()  # modules are full of cycles
        mx.clear_cache()
        if self._memory is not None:
            self._memory.leave(self)

    def part(self, start: int, end: int) -> MlxSlice:
        """Layers [start, end) of the stage, made where they are asked for the first time."""
        return self._slices.part(start, end, self._sequences.ranges())

    # --- batches ----------------------------------------------------------------------------------------------------

    def run(self, batch: Batch) -> BatchResult:
        """See `base.Stage.run`."""
        started_s = time.perf_counter()
        check_batch(batch, self.info)
        work = BatchWork(self, batch)
        for slots in work.parts():
            try:
                work.run(slots)
                self._failures = 0
            except Exception as error:  # whatever the library raises ends these sequences, not their neighbours
                traceback.print_exception(error)
                self._failures += 1
                work.fail(slots, f"{type(error).__name__}: {error}")
        if self._failures >= SUSPECT_FAILURES:
            self._try_device()
        return BatchResult(
            work.data(),
            tuple(work.results),
            1e3 * (time.perf_counter() - started_s),
            1e3 * work.head_s,
            free_kv_tokens=self._sequences.free_tokens,
        )

    @property
    def sequences(self) -> Sequences[Held]:
        """That are open."""
        return self._sequences

    def _try_device(self) -> None:
        """A step of nobody's sequence, which only a broken device fails on."""
        try:
            caches = self.whole.new_caches()
            settle(self.whole.states(self.whole.blank_rows(1, getattr(mx, self.info.dtype)), caches), caches)
        except Exception as error:
            raise BackendLost(f"{type(error).__name__}: {error}") from error
        self._failures = 0


class BatchWork:
    """One batch on its way through a stage."""

    def __init__(self, stage: MlxStage, batch: Batch) -> None:
        """Raises EngineError: sequences of several ranges, or rows of the wrong kind."""
        self._stage, self._batch = stage, batch
        layers = layers_of(batch, stage.sequences.find)
        self._part = stage.part(*layers) if layers is not None else stage.whole
        self._rows = self._given()
        """Ids (rows,) or hidden states' bits (rows, hidden_size)."""
        self.results: list[SlotResult] = [SlotResult(problem="the slot was not run")] * len(batch.slots)
        self.head_s = 0.0
        self._begins: list[int] = []
        begin = 0
        for slot in batch.slots:
            self._begins.append(begin)
            begin += slot.count
        form = WIRE_FORM[stage.info.dtype]
        self._out = None if self._part.last else np.zeros((batch.rows, stage.info.hidden_size), form)

    def parts(self) -> list[list[int]]:
        """The slots that can run, by index: those of one list together. Of the others the result says why not."""
        together: dict[int, list[int]] = {}
        apart: list[list[int]] = []
        for index, slot in enumerate(self._batch.slots):
            try:
                sequence = self._checked(index, slot)
            except EngineError as error:
                self.results[index] = SlotResult(problem=str(error))
                continue
            room = rung(slot.position + slot.count)
            if not self._stage.sequences.grow(sequence, room):
                self.results[index] = SlotResult(out_of_kv=True)
            elif self._stage.batched and slot.count == 1 and not slot.replay and slot.position > 0:
                together.setdefault(room, []).append(index)
            else:
                apart.append([index])
        return [*together.values(), *apart]

    def run(self, slots: list[int]) -> None:
        """Run these slots: several of one row each, or one of any number of rows."""
        sequences = [self._sequence(index) for index in slots]
        slot = self._batch.slots[slots[0]]
        rows = np.stack([self._rows[self._begins[index] : self._begins[index] + slot.count] for index in slots])
        caches = (
            sequences[0].cache.alone()
            if len(slots) == 1
            else group_of([sequence.cache for sequence in sequences]).caches
        )
        steps = [rows[:, at : at + 1] for at in range(slot.count)] if slot.replay else [rows]
        states = []
        for step in steps:
            states.append(self._part.states(self._brought(step), caches))
            settle(states[-1], caches)
        given = states[0] if len(states) == 1 else mx.concatenate(states, axis=1)
        if self._out is not None:
            for place, index in enumerate(slots):
                self._out[self._begins[index] : self._begins[index] + slot.count] = self._bits(given[place])
        self._sample(slots, sequences, given)
        for index, sequence in zip(slots, sequences, strict=True):
            sequence.cached += self._batch.slots[index].count

    def _sample(self, slots: list[int], sequences: list[Sequence[Held]], states: mx.array) -> None:
        """Choose the tokens that these slots want; their logits are computed together."""
        wanted = [_wanted(self._batch.slots[index]) for index in slots]
        for index in slots:
            self.results[index] = SlotResult()
        most = max(wanted)
        if not most:
            return
        started_s = time.perf_counter()
        logits = np.array(self._part.logits(states[:, states.shape[1] - most :]).astype(mx.float32))
        for place, (index, sequence, count) in enumerate(zip(slots, sequences, wanted, strict=True)):
            slot = self._batch.slots[index]
            if count and sequence.sampling is not None:
                first = slot.position + slot.count - count + 1
                try:
                    tokens = tuple(
                        sample(row, sequence.sampling, first + step)
                        for step, row in enumerate(logits[place, most - count :])
                    )
                except EngineError as error:
                    sequence.broken = str(error)
                    self.results[index] = SlotResult(problem=str(error))
                else:
                    self.results[index] = SlotResult(tokens)
        self.head_s += time.perf_counter() - started_s

    def fail(self, slots: list[int], why: str) -> None:
        """These slots' step ended half way."""
        for index in slots:
            self._sequence(index).broken = f"its step at position {self._batch.slots[index].position} failed: {why}"
            self.results[index] = SlotResult(problem=f"the backend failed: {why}")

    def data(self) -> memoryview | bytes:
        """The rows that came out."""
        return b"" if self._out is None else self._out.data.cast("B")

    def _sequence(self, index: int) -> Sequence[Held]:
        return self._stage.sequences.get(self._batch.slots[index].sequence)

    def _checked(self, index: int, slot: Slot) -> Sequence[Held]:
        """The slot's sequence. Raises EngineError where the slot cannot run."""
        sequence = self._stage.sequences.at(slot.sequence, slot.position, slot.count)
        refuse_want(slot, sequence.sampling, last=self._part.last)
        refuse_many_tokens(slot)
        if self._part.first:
            ids = self._rows[self._begins[index] : self._begins[index] + slot.count]
            refuse_foreign_ids(int(ids.min()), int(ids.max()), self._part.vocabulary)
        return sequence

    def _given(self) -> NDArray[Any]:
        batch = self._batch
        refuse_rows_of_another_kind(batch, first=self._part.first)
        if batch.dtype is None:
            return np.frombuffer(batch.data, "<i4")
        return np.frombuffer(batch.data, WIRE_FORM[batch.dtype]).reshape(batch.rows, -1)

    def _brought(self, rows: NDArray[Any]) -> mx.array:
        """Rows (B, T) or (B, T, hidden_size) on the device, hidden states in the stage's dtype."""
        array = mx.array(rows)
        if self._batch.dtype is None:
            return array
        if self._batch.dtype == "bfloat16":
            array = array.view(mx.bfloat16)
        return array.astype(getattr(mx, self._stage.info.dtype))

    def _bits(self, states: mx.array) -> NDArray[Any]:
        states = states.astype(getattr(mx, self._stage.info.dtype))
        return np.array(states.view(mx.uint16) if self._stage.info.dtype == "bfloat16" else states)


def _wanted(slot: Slot) -> int:
    """Tokens."""
    return {"nothing": 0, "token": 1, "each": slot.count}[slot.want]
