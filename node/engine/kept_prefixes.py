"""Keys and values of sequences that have ended, by the tokens that they begin with: the next turn of a chat goes on.

A name stands for a block of `base.BLOCK_TOKENS` tokens and all that lie before it; whoever gives it out sees to that
equal names mean equal keys and values. Who was used longest ago goes first. What a cache holds is its maker's affair.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

CacheT = TypeVar("CacheT")
Key = tuple[int, int, bytes]
"""Layers [start, end), and the name of the last block."""


@dataclass(frozen=True, slots=True)
class Kept(Generic[CacheT]):
    """One of them."""

    cache: CacheT
    start: int
    end: int
    names: tuple[bytes, ...]
    size_bytes: int

    def blocks(self) -> list[Key]:
        """All of them."""
        return [(self.start, self.end, name) for name in self.names]


class KeptPrefixes(Generic[CacheT]):
    """Those of one stage."""

    def __init__(self, gone: Callable[[CacheT], object] = lambda cache: None) -> None:
        """`gone` is told of each cache that is not kept any more, or not at all."""
        self._gone = gone
        self._entries: OrderedDict[Key, Kept[CacheT]] = OrderedDict()
        """By their last block; who was used last comes last."""
        self._blocks: dict[Key, Key] = {}
        """For every block the entry that has it; the newest where several do."""
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, start: int, end: int, names: tuple[bytes, ...]) -> tuple[CacheT, int] | None:
        """The cache that begins with most of these blocks, and how many; None where none begins with the first."""
        for count in range(len(names), 0, -1):
            entry = self._blocks.get((start, end, names[count - 1]))
            if entry is not None and self._entries[entry].names[:count] == names[:count]:
                self._entries.move_to_end(entry)
                return self._entries[entry].cache, count
        return None

    def add(self, kept: Kept[CacheT]) -> None:
        """Keep one more, in place of those that it goes on from; one that goes on from it stands for it."""
        *before, last = kept.blocks()
        if (longer := self._blocks.get(last)) is not None and longer != last:
            self._entries.move_to_end(longer)
            self._gone(kept.cache)
            return
        for key in [*before, last]:
            if key in self._entries:
                self._drop(key)
        self._entries[last] = kept
        self._blocks |= dict.fromkeys(kept.blocks(), last)
        self.size_bytes += kept.size_bytes

    def drop_oldest(self) -> None:
        """Give up the one that was used longest ago."""
        self._drop(next(iter(self._entries)))

    def clear(self) -> None:
        """Give up all."""
        while self._entries:
            self.drop_oldest()

    def _drop(self, key: Key) -> None:
        gone = self._entries.pop(key)
        self.size_bytes -= gone.size_bytes
        for block in gone.blocks():
            if self._blocks.get(block) == key:
                del self._blocks[block]
        self._gone(gone.cache)
