"""The parts of a stage one after another: rows in, rows or logits out. Knows slots of the cache, no sequences."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np

from node.engine.batches import refuse_foreign_ids
from node.engine.ort.frames import Frame, Frames, clusters
from node.engine.ort.kernels import least_rows
from node.engine.ort.kv_memory import KvMemory
from node.engine.ort.part_store import PartStore
from node.engine.ort.parts import Part, Source
from node.engine.ort.rows import embedded
from node.engine.ort.tables import Tables
from node.weights.blocks import Floats

MOST_CHUNK_ROWS = 512
"""Of one run: what lies between two layers stays small. Longer chunks are run in several, which changes no bit."""
MOST_HEAD_ROWS = 32
"""Rows whose logits are computed at a time."""


class Chain:
    """Layers [start, end) of a model, and its head where they end with the last one."""

    def __init__(
        self, source: Source, parts: list[Part], head: Part | None, kv: KvMemory, tables: Tables, store: PartStore
    ) -> None:
        self.start, self.end = parts[0].start, parts[-1].end
        self.model_layers = len(source.model.layers)
        self.width = source.model.hidden
        self._source, self._parts, self._head = source, parts, head
        self._kv, self._tables, self._store = kv, tables, store
        self._frames = Frames(self.width)
        self._narrow: dict[tuple[int, int], list[Part]] = {}
        self._weight_bytes = sum(part.weight_bytes for part in parts)
        forms = {form for part in self._all_parts() for form in part.forms}
        self._least_rows = max(least_rows(form) for form in forms)

    def clear(self) -> None:
        """Let all go."""
        self._frames.clear()
        self._narrow.clear()
        self._parts, self._head = [], None

    @property
    def threads(self) -> set[int]:
        """That its parts compute with."""
        return {part.threads for part in self._all_parts()}

    def embedded(self, ids: np.ndarray) -> Floats:
        """The embedding's rows."""
        model = self._source.model
        return embedded(self._source.weights, ids, model.vocabulary, model.embedding_scale)

    def refuse_foreign(self, ids: np.ndarray) -> None:
        """Raises EngineError where the vocabulary lacks an id."""
        refuse_foreign_ids(int(ids.min()), int(ids.max()), self._source.model.vocabulary)

    def steps(
        self, slots: list[int], lengths: dict[int, int], rows: Floats, start: int, end: int, token_bytes: int
    ) -> Floats:
        """One row (slots, width) of each of these rising slots, through layers [start, end)."""
        parts = self._within(start, end)
        out = np.empty_like(rows)
        done = 0
        for group in clusters(slots, lengths, token_bytes, self._weight_bytes):
            count = len(group)
            frame = self._frames.of(group[0], group[-1] + 1, max(count, self._least_rows))
            frame.place(group, lengths, 1)
            within = slice(done, done + count)
            frame.hidden[0][:count, 0] = rows[within]
            frame.hidden[0][count:, 0] = rows[done]
            out[within] = self._run(frame, parts)[:count, 0]
            done += count
        return out

    def chunk(self, slot: int, position: int, rows: Floats, start: int, end: int) -> Floats:
        """Two or more rows (rows, width) of one slot that holds `position` tokens, through layers [start, end).

        Attention takes queries in tiles of an even number of rows. A last tile of one row would be computed by the
        kernel for one row, so an odd number gets one row more, which is written past the sequence's end.
        """
        parts = self._within(start, end)
        out = np.empty_like(rows)
        pieces = -(-len(rows) // MOST_CHUNK_ROWS)
        cuts = [len(rows) * piece // pieces for piece in range(pieces + 1)]
        for first, last in pairwise(cuts):
            count = last - first
            padded = count + count % 2
            frame = self._frames.chunk(slot, padded)
            frame.place([slot], {slot: position + first}, padded)
            frame.hidden[0][0, :count] = rows[first:last]
            frame.hidden[0][0, count:] = 0
            out[first:last] = self._run(frame, parts)[0, :count]
        return out

    def logits(self, rows: Floats) -> Floats:
        """Logits (rows, vocabulary) of hidden rows (rows, width) after the last layer."""
        assert self._head is not None
        session = self._head.session
        given = len(rows)
        if self._least_rows > 1 and given % MOST_HEAD_ROWS == 1:
            rows = np.concatenate([rows, rows[:1]])
        pieces = [
            session.run(None, {"hidden": rows[first : first + MOST_HEAD_ROWS, None]})[0][:, 0]
            for first in range(0, len(rows), MOST_HEAD_ROWS)
        ]
        known = self._source.model.vocabulary
        return (pieces[0] if len(pieces) == 1 else np.concatenate(pieces))[:given, :known]

    def try_out(self, position: int = 0) -> tuple[Floats, float, float]:
        """A step of nobody's: what it gives (1, width or vocabulary), and the seconds of layers and head."""
        rows = np.random.default_rng(position).standard_normal((1, 1, self.width)).astype(np.float32)
        frame = self._frames.of(self._kv.spare, self._kv.spare + 1, self._least_rows)
        frame.place([self._kv.spare], {self._kv.spare: position}, 1)
        frame.hidden[0][...] = rows
        started_s = time.perf_counter()
        out = self._run(frame, self._parts)[:1, 0]
        ended_s = time.perf_counter()
        if self._head is None:
            return out, ended_s - started_s, 0.0
        logits = self.logits(out)
        logits.argmax()
        return logits, ended_s - started_s, time.perf_counter() - ended_s

    def renew_some(self) -> None:
        """Where the number of threads has changed, take over a part that was made for the new one."""
        self._store.renew_some(self._all_parts(), self._source)

    def _all_parts(self) -> list[Part]:
        narrow = [part for parts in self._narrow.values() for part in parts]
        return [*self._parts, *([] if self._head is None else [self._head]), *narrow]

    def _run(self, frame: Frame, parts: list[Part]) -> Floats:
        return frame.run(parts, self._kv, self._tables, self.start)

    def _within(self, start: int, end: int) -> list[Part]:
        """The parts of layers [start, end); those that begin or end inside one are made when they are asked for."""
        if (start, end) == (self.start, self.end):
            return self._parts
        if (found := self._narrow.get((start, end))) is None:
            spans = [(max(part.start, start), min(part.end, end)) for part in self._parts]
            found = [self._store.part(self._source, first, last) for first, last in spans if first < last]
            self._narrow[start, end] = found
            while len(self._narrow) > NARROW_KEPT:
                del self._narrow[next(iter(self._narrow))]
        return found


NARROW_KEPT = 8
"""Ranges within the stage that are kept for further sequences. Only their first and last parts can take memory."""
