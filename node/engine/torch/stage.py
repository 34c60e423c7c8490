"""A stage on transformers' own modelling code: a batch in, hidden states or tokens out.

On a processor slots run one after another, each through the library's own kernels with its own shape. Matrix products
of 1, 2 to 3 and more rows end in different last bits (measured with MKL in float32), so rows that shared a product
would make a sequence's tokens depend on its neighbours. On other devices the rows of a batch share each product, which
is what makes several users cheap there (`packing`): what a sequence gets then depends, within rounding, on its
neighbours.
"""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable

import torch

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
from node.engine.torch.packing import PackedSequence, Packing, rounded
from node.engine.torch.slice import TorchSlice, copied, forget
from node.engine.torch.slot_rows import Cache, SlotRows
from node.engine.torch.slot_rows import computed as _computed
from node.errors import EngineError, TooLong
from node.wire.frames import Buffer, Sampling


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
        self._slices = MadeSlices(whole, whole.start, whole.end, cut)
        self._most_tokens = most_tokens
        """Of one sequence, where the model's rotary table is another beyond them."""
        self._packing: Packing | None = None
        """Where the rows of a batch are computed together; None where each sequence is by itself."""
        self._sequences: Sequences[Cache] = Sequences(whole.start, (1,) * whole.layers, 0, 0)
        self._memory: WorkerMemory | None = None
        self._failures = 0
        """Of the library, since it computed something."""

    def serve(self, info: StageInfo, layer_kv_bytes: tuple[int, ...], memory: WorkerMemory) -> None:
        """Begin to serve."""
        self.info, self._memory = info, memory
        self._sequences = Sequences(self.whole.start, layer_kv_bytes, info.kv_tokens, info.max_sequences)
        self._sequences.share(memory)
        memory.enter(self, info.weight_bytes + info.kv_tokens * info.kv_bytes_per_token)

    def pack(self, packing: Packing) -> None:
        """Compute the rows of a batch together from now on. Before any sequence is opened."""
        self._packing = packing

    # --- sequences --------------------------------------------------------------------------------------------------

    def open(self, sequence: str, start: int, end: int, sampling: Sampling | None, kv_tokens: int) -> None:
        """See `base.Stage.open`."""
        if self._most_tokens is not None and kv_tokens > self._most_tokens:
            raise TooLong(kv_tokens, self._most_tokens)
        room = kv_tokens if self._packing is None else rounded(kv_tokens)
        self._sequences.open(sequence, start, end, sampling, room, lambda: self._new_cache(start, end))

    def _new_cache(self, start: int, end: int) -> Cache:
        part = self.part(start, end)
        return part.new_cache() if self._packing is None else self._packing.new(part)

    def rewind(self, sequence: str, position: int) -> None:
        """See `base.Stage.rewind`."""
        held = self._sequences.get(sequence)
        if not 0 <= position <= held.cached:
            raise EngineError(f"sequence {sequence} back to {position}, but the KV cache holds {held.cached} tokens")
        if position == held.cached and not held.broken:
            return
        if isinstance(held.cache, PackedSequence):
            held.cache.keep(position)
        elif position == 0:
            held.cache = self._new_cache(held.start, held.end)
        elif not self.info.can_rewind:
            raise EngineError(
                f"sequence {sequence} back to {position}: {type(self.whole.model).__name__} has layers that keep a "
                "window or a state, not all their keys and values; such a sequence begins anew"
            )
        else:
            forget(held.cache, position)
        held.cached, held.broken = position, ""

    def take_up(self, sequence: str, prefix: tuple[bytes, ...]) -> int:
        """See `backend.KeepsPrefixes`."""
        return self._sequences.take_up(sequence, prefix, _copied) if self.info.keeps_prefixes else 0

    def keep(self, sequence: str, prefix: tuple[bytes, ...]) -> None:
        """See `backend.KeepsPrefixes`."""
        if self.info.keeps_prefixes:
            self._sequences.keep(sequence, prefix, _copied)

    def close(self, sequence: str) -> None:
        """See `base.Stage.close`."""
        if (held := self._sequences.find(sequence)) is not None and isinstance(held.cache, PackedSequence):
            held.cache.keep(0)
        self._sequences.close(sequence)

    def drop(self) -> None:
        """See `base.Stage.drop`."""
        self._sequences.clear()
        self._held.clear()
        self._slices.clear()
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
        return self._slices.part(start, end, self._sequences.ranges())

    # --- batches ----------------------------------------------------------------------------------------------------

    def run(self, batch: Batch) -> BatchResult:
        """See `base.Stage.run`."""
        started = time.perf_counter()
        check_batch(batch, self.info)
        layers = layers_of(batch, self._sequences.find)
        part = self.part(*layers) if layers is not None else self.whole
        rows = self._rows(batch, part)
        out = None if part.last else torch.zeros(batch.rows, part.width, dtype=part.dtype, device=part.device)
        results = [SlotResult()] * len(batch.slots)
        head_s = 0.0
        for group in self._groups(batch, part, rows, results):
            head_s += self._run_group(part, group, rows, out, results)
        if self._failures >= SUSPECT_FAILURES:
            self._try_device()
        data = b"" if out is None else _bytes(out)
        ended = time.perf_counter()
        return BatchResult(
            data, tuple(results), 1e3 * (ended - started), 1e3 * head_s, free_kv_tokens=self._sequences.free_tokens
        )

    def _groups(
        self, batch: Batch, part: TorchSlice, rows: torch.Tensor, results: list[SlotResult]
    ) -> list[list[SlotRows]]:
        """The slots that can run, those together that share each product. Of the others `results` says why not."""
        ready: list[SlotRows] = []
        begin = 0
        for index, slot in enumerate(batch.slots):
            within = slice(begin, begin + slot.count)
            begin += slot.count
            try:
                sequence = self._sequences.at(slot.sequence, slot.position, slot.count)
                if not self._has_room(sequence, slot):
                    results[index] = SlotResult(out_of_kv=True)
                    continue
                _refuse_slot(part, sequence, slot, rows[within])
            except EngineError as error:
                results[index] = SlotResult(problem=str(error))
            else:
                ready.append(SlotRows(index, slot, sequence, within))
        if self._packing is None:
            return [[one] for one in ready]
        together = [one for one in ready if not one.one_by_one]
        return [*([together] if together else []), *([one] for one in ready if one.one_by_one)]

    def _has_room(self, sequence: Sequence[Cache], slot: Slot) -> bool:
        """Whether its rows have room in the cache, and in the model's rotary table as it was chosen for its prompt."""
        end = slot.position + slot.count
        if self._most_tokens is not None and end > self._most_tokens:
            return False
        if not isinstance(sequence.cache, PackedSequence):
            return self._sequences.grow(sequence, end)
        return self._sequences.grow(sequence, rounded(end)) and sequence.cache.reserve(end)

    def _run_group(
        self,
        part: TorchSlice,
        group: list[SlotRows],
        rows: torch.Tensor,
        out: torch.Tensor | None,
        results: list[SlotResult],
    ) -> float:
        """Run these slots; gives the seconds that LM head and sampling took. Their rows go to their place in `out`,
        their tokens into `results`."""
        try:
            given = _computed(part, group, rows)
            head_s = 0.0
            if out is not None:
                out[torch.cat([torch.arange(one.within.start, one.within.stop) for one in group])] = given
            elif any(one.wanted for one in group):
                logits = given.float().cpu().numpy()
                begin = 0
                for one in group:
                    results[one.index] = one.sampled(logits[begin : begin + one.wanted])
                    begin += one.wanted
                head_s = time.perf_counter() - part.head_begun_s
            part.synchronise()
        except Exception as error:  # whatever the library raises is these sequences' end, not their neighbours'
            if len(group) > 1:  # nobody has moved: let each show whether it is the one
                return sum(self._run_group(part, [one], rows, out, results) for one in group)
            (one,) = group
            one.sequence.broken = f"its step at position {one.slot.position} failed: {error}"
            traceback.print_exception(error)
            self._failures += 1
            results[one.index] = SlotResult(problem=f"the backend failed: {type(error).__name__}: {error}")
            return 0.0
        self._failures = 0
        for one in group:
            one.sequence.cached += one.slot.count
        return head_s

    def _try_device(self) -> None:
        """A step of nobody's sequence, which only a broken device fails on."""
        try:
            self.whole.forward(self.whole.blank_row(), self.whole.new_cache(), 0)
            self.whole.synchronise()
        except Exception as error:
            raise BackendLost(f"{type(error).__name__}: {error}") from error
        self._failures = 0

    def _rows(self, batch: Batch, part: TorchSlice) -> torch.Tensor:
        """The batch's tensor on our device: int64 ids (T,) or hidden states (T, hidden_size) in our dtype."""
        refuse_rows_of_another_kind(batch, first=part.first)
        dtype = torch.int32 if batch.dtype is None else getattr(torch, batch.dtype)
        rows = torch.frombuffer(_writable(batch.data), dtype=dtype)
        if part.first:
            return rows.to(part.device, torch.int64)
        return rows.view(batch.rows, part.width).to(part.device, part.dtype)


def _refuse_slot(part: TorchSlice, sequence: Sequence[Cache], slot: Slot, rows: torch.Tensor) -> None:
    """Raises EngineError: the slot wants what its sequence cannot give, or has ids that the model does not know."""
    refuse_want(slot, sequence.sampling, last=part.last)
    refuse_many_tokens(slot)
    if part.first:
        refuse_foreign_ids(int(rows.min()), int(rows.max()), part.vocabulary)


def _copied(cache: Cache, tokens: int) -> Cache:
    """Of a sequence by itself; pages are not kept."""
    assert not isinstance(cache, PackedSequence)
    return copied(cache, tokens)


def _writable(data: Buffer) -> Buffer:
    """torch takes only writable memory; what came through the pipe is, and is not copied."""
    return bytearray(data) if memoryview(data).readonly else data


def _bytes(states: torch.Tensor) -> Buffer:
    """A tensor's memory; numpy knows no bfloat16, so it is seen as bytes."""
    return states.contiguous().cpu().view(torch.uint8).numpy().data.cast("B")
