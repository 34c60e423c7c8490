"""A stage on SGLang: a batch in, hidden states or tokens out.

A step is two passes at most: all decode steps, and all prompt chunks. Rows that want a token each, and rows to replay,
are decode steps one after another: a pass over a chunk gives the logits of its last row alone. What a sequence gets
depends, within rounding, on who is beside it.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence as Many

import torch

from node.engine.backend import BackendLost
from node.engine.base import Batch, BatchResult, Slot, SlotResult, StageInfo
from node.engine.batches import (
    SUSPECT_FAILURES,
    check_batch,
    refuse_foreign_ids,
    refuse_rows_of_another_kind,
    refuse_want,
)
from node.engine.kv_cache import Sequence, Sequences
from node.engine.memory import WorkerMemory
from node.engine.sampler import sample
from node.engine.sglang.forward import Held, Part, Room, forward
from node.engine.sglang.range_runner import RangeRunner
from node.errors import EngineError
from node.wire.frames import Buffer, Sampling


class SglangStage:
    """A `backend.LoadedStage`."""

    def __init__(
        self, range_runner: RangeRunner, info: StageInfo, start: int, layer_bytes: tuple[int, ...], memory: WorkerMemory
    ) -> None:
        self.info = info
        self._range, self._start, self._end = range_runner, start, start + len(layer_bytes)
        self._room = Room(range_runner)
        self._sequences: Sequences[Held] = Sequences(start, layer_bytes, info.kv_tokens, info.max_sequences)
        self._sequences.share(memory)
        self._memory = memory
        memory.enter(self, info.weight_bytes + info.kv_tokens * info.kv_bytes_per_token)
        self._failures = 0

    def open(self, sequence: str, start: int, end: int, sampling: Sampling | None, kv_tokens: int) -> None:
        """See `base.Stage.open`."""
        if (start, end) != (self._start, self._end):
            raise EngineError(f"sequence {sequence}: SGLang runs all of a stage's layers or none")

        def new() -> Held:
            held = self._room.new()
            if held is None:
                raise EngineError("SGLang's table of sequences is full; close some first")
            return held

        self._sequences.open(sequence, start, end, sampling, kv_tokens, new)

    def rewind(self, sequence: str, position: int) -> None:
        """See `base.Stage.rewind`."""
        held = self._sequences.get(sequence)
        if not 0 <= position <= held.cached:
            raise EngineError(f"sequence {sequence} back to {position}, but the KV cache holds {held.cached} tokens")
        self._room.keep(held.cache, position)
        held.cached, held.broken = position, ""

    def close(self, sequence: str) -> None:
        """See `base.Stage.close`."""
        if (held := self._sequences.find(sequence)) is not None:
            self._room.end(held.cache)
        self._sequences.close(sequence)

    def drop(self) -> None:
        """See `base.Stage.drop`. The library lets go of nothing: the worker's end frees its memory."""
        self._sequences.clear()
        self._memory.leave(self)

    def run(self, batch: Batch) -> BatchResult:
        """See `base.Stage.run`."""
        started_s = time.perf_counter()
        check_batch(batch, self.info)
        rows = self._rows(batch)
        results = [SlotResult()] * len(batch.slots)
        out = None if self._range.last else torch.zeros(batch.rows, self._range.width, dtype=self._dtype)
        head_s = 0.0
        begins = [0]
        for slot in batch.slots:
            begins.append(begins[-1] + slot.count)
        for group, decode in self._groups(batch.slots, rows, begins, results):
            try:
                head_s += self._run_group(batch.slots, group, decode, rows, begins, out, results)
                self._failures = 0
            except Exception as error:  # whatever the library raises ends these sequences, not their neighbours
                traceback.print_exception(error)
                self._failures += 1
                for index in group:
                    slot = batch.slots[index]
                    self._sequences.get(slot.sequence).broken = f"its step at position {slot.position} failed: {error}"
                    results[index] = SlotResult(problem=f"the backend failed: {type(error).__name__}: {error}")
        if self._failures >= SUSPECT_FAILURES:
            raise BackendLost(f"SGLang failed {self._failures} times in a row")
        data: Buffer = b"" if out is None else out.contiguous().view(torch.uint8).numpy().data.cast("B")
        spent_ms = 1e3 * (time.perf_counter() - started_s)
        return BatchResult(data, tuple(results), spent_ms, 1e3 * head_s, self._sequences.free_tokens)

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.info.dtype)
        return dtype

    def _groups(
        self, slots: Many[Slot], rows: torch.Tensor, begins: list[int], results: list[SlotResult]
    ) -> list[tuple[list[int], bool]]:
        """The slots that can run, by index, and whether they are decode steps. Of the others `results` says why not."""
        steps: list[int] = []
        chunks: list[int] = []
        singly: list[tuple[list[int], bool]] = []
        for index, slot in enumerate(slots):
            try:
                sequence = self._sequences.at(slot.sequence, slot.position, slot.count)
                self._refuse(slot, sequence, rows[begins[index] : begins[index + 1]])
            except EngineError as error:
                results[index] = SlotResult(problem=str(error))
                continue
            end = slot.position + slot.count
            if not self._sequences.grow(sequence, end) or not self._room.grow(sequence.cache, end):
                results[index] = SlotResult(out_of_kv=True)
            elif slot.count > 1 and (slot.replay or slot.want == "each"):
                singly.append(([index], True))
            elif slot.count == 1 and slot.position > 0:
                steps.append(index)
            else:
                chunks.append(index)
        return [*([(steps, True)] if steps else []), *([(chunks, False)] if chunks else []), *singly]

    def _refuse(self, slot: Slot, sequence: Sequence[Held], rows: torch.Tensor) -> None:
        refuse_want(slot, sequence.sampling, last=self._range.last)
        if self._range.first:
            refuse_foreign_ids(int(rows.min()), int(rows.max()), self._range.vocabulary)

    def _run_group(
        self,
        slots: Many[Slot],
        group: list[int],
        decode: bool,
        rows: torch.Tensor,
        begins: list[int],
        out: torch.Tensor | None,
        results: list[SlotResult],
    ) -> float:
        """Run these slots together; gives the seconds that sampling took."""
        sequences = [self._sequences.get(slots[index].sequence) for index in group]
        passes = slots[group[0]].count if decode else 1
        head_s = 0.0
        tokens: dict[int, list[int]] = {index: [] for index in group}
        for step in range(passes):
            parts, taken = [], []
            for index, sequence in zip(group, sequences, strict=True):
                slot = slots[index]
                count = 1 if decode else slot.count
                parts.append(Part(sequence.cache, slot.position + step, count))
                taken.append(slice(begins[index] + step, begins[index] + step + count))
            given = forward(self._range, parts, torch.cat([rows[within] for within in taken]), decode=decode)
            if out is not None:
                out[torch.cat([torch.arange(within.start, within.stop) for within in taken])] = given.cpu()
                continue
            began_s = time.perf_counter()
            for index, sequence, logits in zip(group, sequences, given, strict=True):
                slot = slots[index]
                wants = slot.want == "each" or (slot.want == "token" and step == passes - 1)
                if wants and sequence.sampling is not None:
                    place = slot.position + (step + 1 if decode else slot.count)
                    tokens[index].append(sample(logits.float().cpu().numpy(), sequence.sampling, place))
            head_s += time.perf_counter() - began_s
        for index, sequence in zip(group, sequences, strict=True):
            sequence.cached += slots[index].count
            results[index] = SlotResult(tuple(tokens[index]))
        return head_s

    def _rows(self, batch: Batch) -> torch.Tensor:
        """int64 ids (T,) on the processor, or hidden states (T, hidden_size) on the device."""
        refuse_rows_of_another_kind(batch, first=self._range.first)
        dtype = torch.int32 if batch.dtype is None else getattr(torch, batch.dtype)
        rows = torch.frombuffer(bytearray(batch.data), dtype=dtype)
        if self._range.first:
            return rows.to(torch.int64)
        return rows.view(batch.rows, self._range.width).to(self._range.device, self._dtype)
