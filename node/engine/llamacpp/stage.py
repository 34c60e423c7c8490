"""A stage on llama.cpp: a batch in, hidden rows or tokens out.

Decode steps of all sequences share one call, where each row has the same bits as alone: streams, no flash attention, no
repacked weights. Rows are always float32 inside; they travel in the plan's dtype.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

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
from node.engine.llamacpp.calls import Rows, SlotRows, calls_for
from node.engine.llamacpp.context import CallFailed, Context, Piece, Way, after_layer
from node.engine.llamacpp.model import Model
from node.engine.llamacpp.reading import Embedding
from node.engine.llamacpp.sequences import Held, Sequences
from node.engine.llamacpp.streams import Shape
from node.engine.memory import WorkerMemory
from node.engine.row_bytes import bytes_of, rows_from
from node.engine.sampler import sample
from node.errors import EngineError, OutOfKV
from node.wire.frames import Sampling
from node.wire.layer_range import layer_range


@dataclass(slots=True)
class _Ran:
    """A slot on its way through a batch."""

    slot: Slot
    held: Held
    first: int
    """Its first row in the batch."""
    sampling: Sampling | None
    wanted: int
    """Tokens."""
    tokens: list[int] = field(default_factory=list)
    problem: str = ""


class LlamaStage:
    """A `backend.LoadedStage`."""

    info: StageInfo

    def __init__(
        self,
        start: int,
        end: int,
        model: Model,
        embedding: Embedding | None,
        make: Callable[[Shape, bool], Context],
        *,
        layers: int,
        enter: str,
        can_narrow: bool,
        vocabulary: int,
        longest_tokens: int,
    ) -> None:
        self._start, self._end, self._layers = start, end, layers
        self._enter, self._can_narrow, self._watched = enter, can_narrow, False
        self._model: Model | None = model
        self._embedding = embedding
        """Looked up by us; None where the library does so itself, or rows come in."""
        self._vocabulary = vocabulary
        self._make, self._longest = make, longest_tokens
        self._failures = 0

    def serve(self, info: StageInfo, memory: WorkerMemory) -> None:
        """Begin to serve."""
        self.info, self._memory = info, memory
        self._sequences = Sequences(
            lambda shape: self._make(shape, self._watched),
            info.kv_tokens,
            self._longest,
            info.kv_bytes_per_token,
            memory,
        )
        memory.enter(self, info.weight_bytes + info.kv_tokens * info.kv_bytes_per_token)

    @property
    def is_held(self) -> bool:
        """Whether its weights are in memory."""
        return self._model is not None

    def set_threads(self, threads: int) -> None:
        """Use that many processor threads from the next batch on."""
        if self._sequences.shape is not None:
            self._sequences.context.set_threads(threads)

    # --- sequences --------------------------------------------------------------------------------------------------

    def open(self, sequence: str, start: int, end: int, sampling: Sampling | None, kv_tokens: int) -> None:
        """See `base.Stage.open`."""
        narrow = (start, end) != (self._start, self._end)
        if not self._start <= start < end <= self._end or (narrow and not self._can_narrow):
            ours = layer_range(self._start, self._end)
            what = "all of" if self._can_narrow is False else "layers of"
            raise EngineError(f"sequence {sequence} on layers {layer_range(start, end)}; the stage runs {what} {ours}")
        if narrow and self._sequences.shape is not None and not self._sequences.context.watched:
            self._watched = True
            self._sequences.renew()
        self._watched |= narrow
        if kv_tokens > self._longest:
            raise EngineError(f"sequence {sequence} of {kv_tokens} tokens; the model knows {self._longest}")
        if len(self._sequences) >= self.info.max_sequences:
            raise OutOfKV(kv_tokens, 0)
        self._sequences.open(sequence, (start, end), sampling, kv_tokens)
        self._sequences.get(sequence).junk = start > self._start

    def rewind(self, sequence: str, position: int) -> None:
        """See `base.Stage.rewind`."""
        held = self._sequences.get(sequence)
        if not 0 <= position <= held.cached:
            raise EngineError(f"sequence {sequence} back to {position}, but the KV cache holds {held.cached} tokens")
        if position == held.cached and not held.broken:
            return
        if position and not self.info.can_rewind:
            raise EngineError(
                f"sequence {sequence} back to {position}: this model has layers that keep a state, not all their keys "
                "and values; such a sequence begins anew"
            )
        if 0 < position < held.carried or not self._sequences.rewind(held, position):
            raise EngineError(f"sequence {sequence} back to {position}: llama.cpp cannot; begin it anew")

    def close(self, sequence: str) -> None:
        """See `base.Stage.close`."""
        self._sequences.close(sequence)

    def drop(self) -> None:
        """See `base.Stage.drop`."""
        self._sequences.close_all()
        if self._model is not None:
            self._model.free()
            self._model = None
        self._embedding = None
        self._memory.leave(self)

    # --- batches ----------------------------------------------------------------------------------------------------

    def run(self, batch: Batch) -> BatchResult:
        """See `base.Stage.run`."""
        started_s = time.perf_counter()
        check_batch(batch, self.info)
        start, end = layers_of(batch, self._sequences.find) or (self._start, self._end)
        last = end == self._layers
        data = self._data(batch, first=start == 0)
        results: dict[int, SlotResult] = {}
        ran: dict[int, _Ran] = {}
        first = 0
        for index, slot in enumerate(batch.slots):
            try:
                checked = self._checked(slot, first, data, last=last)
            except EngineError as error:
                results[index] = SlotResult(problem=str(error))
            else:
                results |= self._with_room(index, checked, ran)
            first += slot.count
        out = np.zeros((0 if last else batch.rows, self.info.hidden_size), np.float32)
        sampling_s = self._run(data, ran, out, self._way(start, end))
        for index, done in ran.items():
            if done.problem:
                out[done.first : done.first + done.slot.count] = 0.0
                results[index] = SlotResult(problem=done.problem)
            else:
                results[index] = SlotResult(tuple(done.tokens))
        compute_s = time.perf_counter() - started_s
        wants = any(done.wanted for done in ran.values())
        return BatchResult(
            b"" if last else bytes_of(out, self.info.dtype),
            tuple(results[index] for index in range(len(batch.slots))),
            1e3 * compute_s,
            min(1e3 * compute_s, 1e3 * sampling_s + (self.info.head_ms or 0.0)) if wants else 0.0,
            free_kv_tokens=self._sequences.free_tokens,
        )

    def _with_room(self, index: int, checked: _Ran, ran: dict[int, _Ran]) -> dict[int, SlotResult]:
        """Have the slot run, where there is room for its rows; else its result."""
        slot = checked.slot
        try:
            if self._sequences.grow(slot.sequence, slot.position + slot.count):
                ran[index] = checked
                return {}
        except EngineError as error:  # what the sequences held is lost
            ran.clear()
            return {index: SlotResult(problem=str(error))}
        return {index: SlotResult(out_of_kv=True)}

    def _way(self, start: int, end: int) -> Way:
        """Through these layers of ours."""
        leave = "" if end == self._layers else after_layer(end - self._start - 1)
        if start > self._start:
            return Way(after_layer(start - self._start - 1), leave, skips=True)
        return Way(self._enter, leave)

    def _data(self, batch: Batch, *, first: bool) -> NDArray[np.int32] | NDArray[np.float32]:
        """Token ids (T,) or hidden rows (T, hidden_size)."""
        refuse_rows_of_another_kind(batch, first=first)
        if batch.dtype is None:
            return np.frombuffer(batch.data, "<i4")
        return rows_from(batch.data, batch.dtype, self.info.hidden_size)

    def _checked(self, slot: Slot, first: int, data: NDArray[np.int32] | NDArray[np.float32], *, last: bool) -> _Ran:
        held = self._sequences.get(slot.sequence)
        if held.broken:
            raise EngineError(f"sequence {slot.sequence} cannot go on: {held.broken}")
        if slot.position != held.cached:
            raise EngineError(
                f"sequence {slot.sequence}: a step at position {slot.position}, but the KV cache holds {held.cached} "
                "tokens"
            )
        if (longest := slot.position + slot.count) > self._longest:
            raise EngineError(f"sequence {slot.sequence} grows to {longest} tokens; the model knows {self._longest}")
        wanted = {"nothing": 0, "token": 1, "each": slot.count}[slot.want]
        refuse_want(slot, held.sampling, last=last)
        refuse_many_tokens(slot)
        if data.ndim == 2 and not np.isfinite(data[first : first + slot.count]).all():
            raise EngineError(f"sequence {slot.sequence}: its rows at position {slot.position} are no finite numbers")
        if data.ndim == 1:
            ids = data[first : first + slot.count]
            refuse_foreign_ids(int(ids.min()), int(ids.max()), self._vocabulary)
        return _Ran(slot, held, first, held.sampling, wanted)

    def _run(
        self, data: NDArray[np.int32] | NDArray[np.float32], ran: dict[int, _Ran], out: NDArray[np.float32], way: Way
    ) -> float:
        """Compute what the slots ask for; the seconds that their tokens' choice took."""
        slots = [SlotRows(index, done.held.stream, done.slot.count, done.slot.replay) for index, done in ran.items()]
        sampling_s = 0.0
        if not slots:
            return sampling_s
        for call in calls_for(slots, self._sequences.context.most_rows):
            alive = [rows for rows in call if not ran[rows.slot].problem]
            for group in (alive, *([rows] for rows in alive)) if len(alive) > 1 else (alive,):
                try:
                    sampling_s += self._call(data, [(ran[rows.slot], rows) for rows in group], out, way)
                except CallFailed as error:
                    self._failed(error)
                    if len(group) == 1:
                        self._break(ran[group[0].slot], str(error))
                else:
                    self._failures = 0
                    if group is alive:
                        break
        return sampling_s

    def _call(
        self,
        data: NDArray[np.int32] | NDArray[np.float32],
        parts: list[tuple[_Ran, Rows]],
        out: NDArray[np.float32],
        way: Way,
    ) -> float:
        if not parts:
            return 0.0
        places = [slice(done.first + rows.begin, done.first + rows.begin + rows.count) for done, rows in parts]
        given = data[places[0]] if len(places) == 1 else np.concatenate([data[place] for place in places])
        if self._embedding is not None and given.ndim == 1:
            given = self._embedding.rows(given.astype(np.int32, copy=False))
        pieces = [_piece(done, rows) for done, rows in parts]
        found = self._sequences.context.run(given, pieces, way)
        begin, begun_s = 0, time.perf_counter()
        for (done, rows), place, piece in zip(parts, places, pieces, strict=True):
            done.held.cached += rows.count
            if not way.leave:
                self._choose(done, piece, found[begin : begin + piece.logits])
                begin += piece.logits
            else:
                out[place] = own = found[begin : begin + rows.count]
                if not np.isfinite(own).all():
                    done.held.poisoned = True
                    self._break(done, "its rows are no finite numbers any more")
                begin += rows.count
        return time.perf_counter() - begun_s

    def _choose(self, done: _Ran, piece: Piece, logits: NDArray[np.float32]) -> None:
        first = piece.position + piece.count - piece.logits + 1
        try:
            for index, row in enumerate(logits):
                assert done.sampling is not None
                done.tokens.append(sample(row, done.sampling, first + index))
        except EngineError as error:
            done.problem = str(error)
            done.held.poisoned = True
            done.held.broken = f"its step at position {done.slot.position} failed: {error}"

    def _break(self, done: _Ran, why: str) -> None:
        """A slot failed; what its earlier calls left is not what the pipeline thinks is there."""
        done.problem = f"the backend failed: {why}"
        done.held.broken = f"its step at position {done.slot.position} failed: {why}"

    def _failed(self, error: CallFailed) -> None:
        self._failures += 1
        if self._failures < SUSPECT_FAILURES:
            return
        context = None
        try:
            context = self._make(Shape(1, 256), False)
            context.run(self.blank_row(), [Piece(0, 0, 1, 0)])
        except (CallFailed, EngineError) as again:
            raise BackendLost(str(again)) from error
        finally:
            if context is not None:
                context.free()
        self._failures = 0

    def blank_row(self) -> NDArray[np.int32] | NDArray[np.float32]:
        """One position's input: id 0 or a row of zeros."""
        if self._start == 0 and self._embedding is None:
            return np.zeros(1, np.int32)
        assert self._model is not None
        return np.zeros((1, self._model.width), np.float32)


def _piece(done: _Ran, rows: Rows) -> Piece:
    """A slot's rows as the context takes them, with as many of its tokens as are among them."""
    after = done.slot.count - rows.begin - rows.count
    logits = max(0, min(rows.count, done.wanted - after))
    return Piece(done.held.stream, done.slot.position + rows.begin, rows.count, logits)
