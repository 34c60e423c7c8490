"""Memory for keys and values: room for the longest sequence in every slot, of which only what is written takes memory.

The operating system gives a page when it is touched for the first time, so a sequence's room grows without a copy and
without a table. What a closed sequence had is given back. Where memory cannot be set aside without being counted
(Windows), the slots share out what there may be.
"""

from __future__ import annotations

import mmap
import sys

import numpy as np
from numpy.typing import NDArray

from node.engine.base import BLOCK_TOKENS

MOST_SLOTS = 256
MAP_NORESERVE = {"linux": 0x4000, "darwin": 0x0040}
"""The value of the flag, which Python names from 3.13 on."""
MOST_ADDRESSES = 1 << 44
"""Bytes of addresses that one stage sets aside: an eighth of what a process has."""

Cache = NDArray[np.float32]
"""(slots, heads, room, head size)"""


class KvMemory:
    """Keys and values of a stage's layers: two arrays (slots, heads, room, head size) for each.

    Raises:
        MemoryError: not even one slot's room can be set aside.
    """

    def __init__(self, shapes: list[tuple[int, int]], room_tokens: int, most_tokens: int) -> None:
        """`shapes`: heads and head size of each layer. `room_tokens`: of one slot. `most_tokens`: of all together."""
        self.room = in_blocks(room_tokens + 1)
        """Tokens of one slot. One more than a sequence may have: who sits a step out has a row written past its end."""
        per_token = sum(2 * 4 * heads * size for heads, size in shapes)
        can_overlap = sys.platform in MAP_NORESERVE
        if not can_overlap:
            self.room = min(self.room, in_blocks(max(1, most_tokens // 8)))
        self.slots = MOST_SLOTS if can_overlap else max(1, most_tokens // self.room)
        self.slots = max(1, min(self.slots, MOST_SLOTS, MOST_ADDRESSES // max(1, per_token * self.room)))
        self._shapes = shapes
        while True:  # one slot more than sequences may have: the spare one
            try:
                self._maps = [set_aside(self._bytes(index)) for index in range(2 * len(shapes))]
            except (OSError, ValueError, OverflowError) as error:
                if self.slots == 1:
                    raise MemoryError(f"no {per_token * self.room} bytes of addresses for one sequence") from error
                self.slots //= 2
            else:
                break
        self.layers: list[tuple[Cache, Cache]] = []
        for index, (heads, size) in enumerate(shapes):
            whole = (self.slots + 1, heads, self.room, size)
            keys, values = (np.frombuffer(self._maps[2 * index + part], np.float32) for part in (0, 1))
            used = int(np.prod(whole))
            self.layers.append((keys[:used].reshape(whole), values[:used].reshape(whole)))

    @property
    def spare(self) -> int:
        """A slot that is never a sequence's, for trying things out."""
        return self.slots

    def copy(self, source: int, target: int, tokens: int, layers: range) -> None:
        """Have one slot begin with the first tokens of another one, in some of the layers (0: the stage's first)."""
        for layer in layers:
            for whole in self.layers[layer]:
                whole[target, :, :tokens] = whole[source, :, :tokens]

    def give_back(self, slot: int) -> None:
        """Nothing in a slot is wanted any more."""
        if _FORGET is None:
            return  # the next sequence writes over it
        for index, part in enumerate(self._maps):
            size = self._bytes(index) // (self.slots + 1)
            first = -(-slot * size // mmap.PAGESIZE) * mmap.PAGESIZE
            length = ((slot + 1) * size - first) // mmap.PAGESIZE * mmap.PAGESIZE
            if length > 0:
                part.madvise(_FORGET, first, length)

    def _bytes(self, index: int) -> int:
        heads, size = self._shapes[index // 2]
        return (self.slots + 1) * heads * self.room * size * 4


_FORGET: int | None = getattr(mmap, "MADV_FREE" if sys.platform == "darwin" else "MADV_DONTNEED", None)


def set_aside(size: int) -> mmap.mmap:
    """Zeros that take memory as they are written to. Raises OSError, ValueError or OverflowError."""
    if sys.platform == "win32":
        return mmap.mmap(-1, size)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE.get(sys.platform, 0)
    memory = mmap.mmap(-1, size, flags=flags)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)  # a page of 2 MiB for each head of each slot would be most of the memory
    return memory


def in_blocks(tokens: int) -> int:
    """So many tokens in whole blocks, in which room is counted: for heads of 64 numbers and more these are whole
    pages."""
    return -(-tokens // BLOCK_TOKENS) * BLOCK_TOKENS
