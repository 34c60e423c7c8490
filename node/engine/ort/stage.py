"""A stage on onnxruntime: a batch in, hidden states or tokens out.

Sequences that take one row each, decode steps, run together; a chunk of several rows runs alone. What a sequence gets
is the same bits in both cases, whoever runs with it, since each kernel computes a row from that row alone. Kernels for
one row and for several differ in the last bits: a row alone is always a decode step, and is never a chunk's rest.
"""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from node.engine.backend import BackendLost
from node.engine.base import Batch, BatchResult, Slot, SlotResult, StageInfo
from node.engine.batches import (
    SUSPECT_FAILURES,
    check_batch,
    layers_of,
    refuse_many_tokens,
    refuse_rows_of_another_kind,
    refuse_want,
)
from node.engine.memory import WorkerMemory
from node.engine.ort.chain import Chain
from node.engine.ort.rows import bytes_of, hidden_of, ids_of
from node.engine.ort.slots import Sequence, Slots
from node.engine.sampler import sample_rows
from node.errors import EngineError
from node.weights.blocks import Floats
from node.wire.frames import Sampling


@dataclass(slots=True)
class _Work:
    """One slot of a batch that can run."""

    slot: Slot
    sequence: Sequence
    begin: int
    """Its first row in the batch."""
    result: SlotResult = field(default_factory=SlotResult)
    done: int = 0
    """Rows that ran."""

    @property
    def in_steps(self) -> bool:
        """Whether its rows are decode steps."""
        return self.slot.count == 1 or self.slot.replay


class OrtStage:
    """A `backend.LoadedStage`."""

    def __init__(self, info: StageInfo, chain: Chain, slots: Slots, memory: WorkerMemory) -> None:
        self.info = info
        self._chain, self._slots, self._memory = chain, slots, memory
        self._dropped = False
        self._failures = 0
        """Of the library, since it computed something."""
        memory.enter(self, info.weight_bytes + info.kv_tokens * info.kv_bytes_per_token)

    def open(self, sequence: str, start: int, end: int, sampling: Sampling | None, kv_tokens: int) -> None:
        """See `base.Stage.open`."""
        self._refuse_dropped()
        self._slots.open(sequence, start, end, sampling, kv_tokens)

    def rewind(self, sequence: str, position: int) -> None:
        """See `base.Stage.rewind`."""
        self._slots.rewind(sequence, position)

    def take_up(self, sequence: str, prefix: tuple[bytes, ...]) -> int:
        """See `backend.KeepsPrefixes`."""
        return self._slots.take_up(sequence, prefix)

    def keep(self, sequence: str, prefix: tuple[bytes, ...]) -> None:
        """See `backend.KeepsPrefixes`."""
        self._slots.keep(sequence, prefix)

    def close(self, sequence: str) -> None:
        """See `base.Stage.close`."""
        self._slots.close(sequence)

    def drop(self) -> None:
        """See `base.Stage.drop`."""
        self._dropped = True
        self._slots.clear()
        self._chain.clear()
        self._memory.leave(self)

    @property
    def layers(self) -> tuple[int, int]:
        """The range that it holds."""
        return self._chain.start, self._chain.end

    @property
    def threads(self) -> set[int]:
        """That its parts compute with; several while they take over another number."""
        return self._chain.threads

    # --- batches ----------------------------------------------------------------------------------------------------

    def run(self, batch: Batch) -> BatchResult:
        """See `base.Stage.run`."""
        started_s = time.perf_counter()
        self._refuse_dropped()
        check_batch(batch, self.info)
        start, end = layers_of(batch, self._slots.find) or self.layers
        results: list[SlotResult | None] = []
        works: list[_Work] = []
        begin = 0
        rows = self._hidden(batch, start)
        for slot in batch.slots:
            try:
                work = self._admitted(batch, slot, begin, start, end)
            except EngineError as error:
                results.append(SlotResult(problem=str(error)))
            else:
                works += [work] if work is not None else []
                results.append(None if work is not None else SlotResult(out_of_kv=True))
            begin += slot.count
        if start == 0:
            self._embed(batch, works, rows)
        out = np.zeros((batch.rows, self._chain.width), np.float32)
        self._run_steps([work for work in works if work.in_steps], rows, out, start, end)
        for work in works:
            if not work.in_steps:
                self._run_chunk(work, rows, out, start, end)
        last = end == self._chain.model_layers
        head_s = self._choose(works, out) if last else 0.0
        if self._failures >= SUSPECT_FAILURES:
            self._try_device()
        waiting = iter(works)
        told = tuple(next(waiting).result if result is None else result for result in results)
        data = b"" if last else bytes_of(out, self.info.dtype)
        self._chain.renew_some()
        compute_ms = 1e3 * (time.perf_counter() - started_s)
        return BatchResult(data, told, compute_ms, 1e3 * head_s, free_kv_tokens=self._slots.free_tokens)

    def _hidden(self, batch: Batch, start: int) -> Floats:
        """The batch's rows (rows, width); room for them where they are token ids still."""
        refuse_rows_of_another_kind(batch, first=start == 0)
        if batch.dtype is None:
            return np.zeros((batch.rows, self._chain.width), np.float32)
        return hidden_of(batch, self._chain.width)

    def _admitted(self, batch: Batch, slot: Slot, begin: int, start: int, end: int) -> _Work | None:
        """A slot that can run; None where there is no room for it.

        Raises:
            EngineError: why it cannot.
        """
        sequence = self._slots.at(slot.sequence, slot.position, slot.count)
        refuse_want(slot, sequence.sampling, last=end == self._chain.model_layers)
        refuse_many_tokens(slot)
        if start == 0:
            self._chain.refuse_foreign(ids_of(batch)[begin : begin + slot.count])
        if not self._slots.grow(sequence, slot.position + slot.count):
            return None
        return _Work(slot, sequence, begin)

    def _embed(self, batch: Batch, works: list[_Work], rows: Floats) -> None:
        ids = ids_of(batch)
        for work in works:
            within = slice(work.begin, work.begin + work.slot.count)
            rows[within] = self._chain.embedded(ids[within])

    def _run_steps(self, works: list[_Work], rows: Floats, out: Floats, start: int, end: int) -> None:
        """Decode steps, all together: the first row of each slot, then the second of those that have one."""
        while works := [work for work in works if work.done < work.slot.count and not work.result.problem]:
            works.sort(key=lambda work: work.sequence.slot)
            taken = [work.begin + work.done for work in works]
            slots = [work.sequence.slot for work in works]
            token_bytes = works[0].sequence.token_bytes
            try:
                out[taken] = self._chain.steps(slots, self._slots.lengths(), rows[taken], start, end, token_bytes)
            except Exception as error:  # whatever the library raises
                self._failed(works, error)
            else:
                self._advance(works, 1)

    def _run_chunk(self, work: _Work, rows: Floats, out: Floats, start: int, end: int) -> None:
        """Several rows of one sequence at once."""
        within = slice(work.begin, work.begin + work.slot.count)
        sequence = work.sequence
        try:
            out[within] = self._chain.chunk(sequence.slot, sequence.cached, rows[within], start, end)
        except Exception as error:  # whatever the library raises
            self._failed([work], error)
        else:
            self._advance([work], work.slot.count)

    def _advance(self, works: list[_Work], count: int) -> None:
        self._failures = 0
        for work in works:
            work.sequence.cached += count
            work.done += count

    def _failed(self, works: list[_Work], error: Exception) -> None:
        """These sequences end; their neighbours go on."""
        traceback.print_exception(error)
        self._failures += 1
        for work in works:
            work.sequence.broken = f"its step at position {work.sequence.cached} failed: {error}"
            work.result = SlotResult(problem=f"the backend failed: {type(error).__name__}: {error}")

    def _choose(self, works: list[_Work], out: Floats) -> float:
        """Give the slots the tokens that they want; the seconds that it took."""
        started_s = time.perf_counter()
        wanted = [work for work in works if work.slot.want != "nothing" and not work.result.problem]
        indices: list[int] = []
        for work in wanted:
            end = work.begin + work.slot.count
            indices += range(work.begin if work.slot.want == "each" else end - 1, end)
        if not indices:
            return 0.0
        try:
            logits = self._chain.logits(out[indices])
        except Exception as error:  # whatever the library raises
            self._failed(wanted, error)
            return time.perf_counter() - started_s
        samplings: list[Sampling] = []
        positions: list[int] = []
        for work in wanted:
            count = work.slot.count if work.slot.want == "each" else 1
            assert work.sequence.sampling is not None
            samplings += [work.sequence.sampling] * count
            after = work.slot.position + work.slot.count
            positions += range(after - count + 1, after + 1)
        tokens = iter(sample_rows(logits, samplings, positions))
        for work in wanted:
            own = list(islice(tokens, work.slot.count if work.slot.want == "each" else 1))
            if errors := [token for token in own if isinstance(token, EngineError)]:
                work.sequence.broken = f"its step at position {work.slot.position} failed: {errors[0]}"
                work.result = SlotResult(problem=str(errors[0]))
            else:
                work.result = SlotResult(tuple(token for token in own if isinstance(token, int)))
        return time.perf_counter() - started_s

    def _try_device(self) -> None:
        """A step of nobody's sequence, which only a library that is broken altogether fails on."""
        try:
            self._chain.try_out()
        except Exception as error:
            raise BackendLost(f"{type(error).__name__}: {error}") from error
        self._failures = 0

    def _refuse_dropped(self) -> None:
        if self._dropped:
            raise EngineError("the stage is dropped")
