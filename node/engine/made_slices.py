"""The ranges of layers within a stage for which a model has been made: the whole one, and parts that sequences use."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Generic, TypeVar

from node.errors import EngineError

SliceT = TypeVar("SliceT")

SLICES_KEPT = 8
"""Unused ranges within the stage that are kept for the next sequence. They hold no weights of their own."""


class MadeSlices(Generic[SliceT]):
    """Those of one stage, by layers [start, end)."""

    def __init__(self, whole: SliceT, start: int, end: int, make: Callable[[int, int], SliceT]) -> None:
        """`make` gives the slice of the stage's tensors for a range; it is let go of by `clear`, with what it holds."""
        self._whole = (start, end)
        self._make: Callable[[int, int], SliceT] | None = make
        self._made: dict[tuple[int, int], SliceT] = {self._whole: whole}
        """Whoever was used last comes last."""

    def __len__(self) -> int:
        return len(self._made)

    def part(self, start: int, end: int, in_use: Collection[tuple[int, int]]) -> SliceT:
        """Layers [start, end), made where they are asked for the first time. Of ranges that are neither this one nor in
        use the last few stay.

        Raises:
            EngineError: the stage is dropped.
        """
        wanted = (start, end)
        if (found := self._made.pop(wanted, None)) is None:
            if self._make is None:
                raise EngineError("the stage is dropped")
            found = self._make(start, end)
        self._made[wanted] = found
        idle = [key for key in self._made if key not in in_use and key not in (wanted, self._whole)]
        for key in idle[:-SLICES_KEPT]:
            del self._made[key]
        return found

    def clear(self) -> None:
        """Let all go, and make no more."""
        self._made.clear()
        self._make = None
