"""The buffers of one run through a chain of parts, and what of them each part is bound to.

A run takes R rows of S tokens each: R sequences a step (S = 1), or a chunk of one (R = 1). It binds neighbouring slots
of the cache by pointer. A slot between those of the run, a *hole*, rides along with somebody's row, which writes one
token past its end, where its own next token will be written over it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from node.engine.ort.kv_memory import KvMemory
from node.engine.ort.library import ort
from node.engine.ort.parts import Part
from node.engine.ort.tables import Tables
from node.weights.blocks import Floats

FRAMES_KEPT = 32
"""Of decode batches: each join or leave makes another one, and binding takes a millisecond."""


class Frame:
    """Buffers for R rows of S tokens on slots [first, end)."""

    def __init__(self, first: int, end: int, rows: int, tokens: int, width: int) -> None:
        self.first, self.end = first, end
        self.hidden: tuple[Floats, Floats] = (
            np.empty((rows, tokens, width), np.float32),
            np.empty((rows, tokens, width), np.float32),
        )
        """Each part reads one and writes the other."""
        self.row_of = np.zeros(end - first, np.int64)
        self.slot_of = np.zeros(rows, np.int64)
        self.lengths = np.zeros(end - first, np.int32)
        self.longest = np.zeros((), np.int32)
        self._bindings: dict[tuple[int, int, int], ort.IOBinding] = {}

    def place(self, slots: Sequence[int], lengths: dict[int, int], tokens: int) -> None:
        """Say which slots the rows are of; `lengths` are those of all slots in use, without the run's tokens."""
        self.row_of[:] = 0
        self.slot_of[:] = slots[0] - self.first  # a twin's, where there is one
        for row, slot in enumerate(slots):
            self.slot_of[row] = slot - self.first
            self.row_of[slot - self.first] = row
        for index in range(self.end - self.first):
            self.lengths[index] = lengths.get(self.first + index, 0) + tokens - 1
        self.longest[...] = int(self.lengths.max()) + 1

    def run(self, chain: Sequence[Part], kv: KvMemory, tables: Tables, start: int) -> Floats:
        """Run what is in `hidden[0]` through parts; the buffer that then holds the result. `start`: the stage's first
        layer."""
        tables.reach(int(self.longest))
        for step, part in enumerate(chain):
            side = step % 2
            key = (id(part), part.made, side)
            if (binding := self._bindings.get(key)) is None:
                binding = self._bindings[key] = self._bind(part, side, kv, tables, start)
            part.session.run_with_iobinding(binding)
        return self.hidden[len(chain) % 2]

    def _bind(self, part: Part, side: int, kv: KvMemory, tables: Tables, start: int) -> ort.IOBinding:
        binding = part.session.io_binding()

        def give(name: str, numbers: np.ndarray) -> None:
            binding.bind_input(name, "cpu", 0, numbers.dtype.type, list(numbers.shape), numbers.ctypes.data)

        def take(name: str, numbers: np.ndarray) -> None:
            binding.bind_output(name, "cpu", 0, numbers.dtype.type, list(numbers.shape), numbers.ctypes.data)

        give("hidden", self.hidden[side])
        take("hidden_out", self.hidden[1 - side])
        for name in ("row_of", "slot_of", "lengths", "longest"):
            give(name, getattr(self, name))
        for rope in part.ropes:
            cosines, sines = tables.of(rope)
            give(f"cosines_{rope}", cosines)
            give(f"sines_{rope}", sines)
        for layer in range(part.start, part.end):
            for name, whole in zip(("key", "value"), kv.layers[layer - start], strict=True):
                used = whole[self.first : self.end]
                give(f"past_{name}_{layer}", used)
                take(f"present_{name}_{layer}", used)
        return binding


class Frames:
    """Those of decode batches, kept for the next batch of the same slots."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._kept: OrderedDict[tuple[int, int, int], Frame] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def of(self, first: int, end: int, rows: int) -> Frame:
        """A frame for one token of `rows` sequences on slots [first, end)."""
        key = (first, end, rows)
        frame = self._kept.pop(key, None) or Frame(first, end, rows, 1, self._width)
        self._kept[key] = frame
        if len(self._kept) > FRAMES_KEPT:
            self._kept.popitem(last=False)
        return frame

    def chunk(self, slot: int, tokens: int) -> Frame:
        """A frame for a chunk of one sequence. Chunks differ in length and slot, and binding is little beside them."""
        return Frame(slot, slot + 1, 1, tokens, self._width)

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()


def clusters(slots: Sequence[int], lengths: dict[int, int], token_bytes: int, weight_bytes: int) -> list[list[int]]:
    """Rising slots in groups that are run one after another: apart where the holes between two would have more keys and
    values read for nothing than running the layers' weights once more costs."""
    groups = [[slots[0]]]
    for before, slot in pairwise(slots):
        idle_tokens = sum(lengths.get(hole, 0) for hole in range(before + 1, slot))
        if idle_tokens * token_bytes > weight_bytes:
            groups.append([])
        groups[-1].append(slot)
    return groups
