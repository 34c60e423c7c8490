"""What the pipeline must know of the ranges that this node holds. Who loads and drops them is not its business."""

from __future__ import annotations

from typing import Protocol

from node.engine.base import Stage


class LoadedRange(Protocol):
    """A loaded range."""

    @property
    def stage(self) -> Stage: ...
    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int:
        """Layers [start, end)."""


class Stages(Protocol):
    """All of them, as they are now."""

    def find(self, start: int, end: int, weights: str) -> LoadedRange | None:
        """A ready range of these weights that has the layers [start, end), or None."""

    def holds(self, start: int, end: int) -> bool:
        """Whether there is a range that has these layers, of whatever weights."""
