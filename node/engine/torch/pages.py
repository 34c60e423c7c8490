"""Keys and values of many sequences in pages: a page holds some tokens of one sequence, in every layer of a range.

A sequence's pages lie anywhere. One layer's keys are one tensor, so that rows of several sequences are written by one
operation, and those of several are read by another. It grows with what is in it, and goes when the last sequence does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

PAGE_TOKENS = 64
GROW = 1.5
"""Times the pages that there were: growing copies them, once and a half in all."""


@dataclass(slots=True, eq=False)
class PageTable:
    """One sequence's pages, in order."""

    pages: list[int] = field(default_factory=list)

    @property
    def room(self) -> int:
        """Tokens."""
        return len(self.pages) * PAGE_TOKENS


class Pages:
    """The pages of all sequences that run through one range of layers."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.count = 0
        """Pages that there are."""
        self._free: list[int] = []
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        """Keys (tokens, heads, width) and values of each layer, counted in the range."""

    @property
    def taken(self) -> int:
        """Pages that sequences have."""
        return self.count - len(self._free)

    def reserve(self, table: PageTable, tokens: int) -> bool:
        """Have pages for so many tokens; False, and nothing is taken, where the device has no memory for them."""
        more = -(-tokens // PAGE_TOKENS) - len(table.pages)
        if more > len(self._free) and not self._grow(self.count + more - len(self._free)):
            return False
        for _ in range(max(0, more)):
            table.pages.append(self._free.pop())
        return True

    def keep(self, table: PageTable, tokens: int) -> None:
        """Give back the pages after so many tokens."""
        kept = -(-tokens // PAGE_TOKENS)
        self._free += reversed(table.pages[kept:])
        del table.pages[kept:]
        if not self.taken:
            self.count, self._free, self._layers = 0, [], {}

    def places(self, table: PageTable, start: int, end: int) -> torch.Tensor:
        """Where tokens [start, end) of a sequence lie in a layer's tensors, int64 (end - start,), on the processor."""
        tokens = torch.arange(start, end)
        pages = torch.tensor(table.pages, dtype=torch.int64)
        return pages[tokens // PAGE_TOKENS] * PAGE_TOKENS + tokens % PAGE_TOKENS

    def write(self, layer: int, places: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put rows' keys (rows, heads, width) and values to their places in a layer."""
        held = self._layers.get(layer)
        if held is None:
            held = self._layers[layer] = self._blank(keys, self.count), self._blank(values, self.count)
        held[0][places], held[1][places] = keys, values

    def read(self, layer: int, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys (…, heads, width) and values at places (…)."""
        keys, values = self._layers[layer]
        return keys[places], values[places]

    def _blank(self, like: torch.Tensor, pages: int) -> torch.Tensor:
        # zeros: what is read beside a sequence's end is masked, and NaN times nothing would still be NaN
        return torch.zeros(pages * PAGE_TOKENS, *like.shape[1:], dtype=like.dtype, device=self.device)

    def _grow(self, needed: int) -> bool:
        count = max(needed, int(self.count * GROW))
        try:
            wider = {layer: self._wider(held, count) for layer, held in self._layers.items()}
        except (torch.OutOfMemoryError, MemoryError):
            return False
        self._layers = wider
        self._free += range(count - 1, self.count - 1, -1)
        self.count = count
        return True

    def _wider(self, held: Iterable[torch.Tensor], pages: int) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = ((old, self._blank(old, pages)) for old in held)
        for old, new in (keys, values):
            new[: old.shape[0]] = old
        return keys[1], values[1]
