"""The ranges that this node has loaded: which its record tells, which serve a route, which are on their way out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from node.engine.base import Stage
from node.wire.records import HeldRange

MOST_TOLD = 8
"""Ranges that a record has room for."""


@dataclass(slots=True, eq=False)
class ServedRange:
    """A loaded range."""

    stage: Stage
    folder: str
    """Holds at least this range's weights."""
    start: int
    end: int
    weights: str
    """Which model in which arithmetic; a plan for another one cannot use it."""
    kv_bytes: int
    """What it was told that its sequences may take."""
    epoch: int
    """The plan that asked for it."""
    state: Literal["ready", "draining"] = "ready"
    left_s: float | None = None
    """On its way out since then: told to nobody, but there for those who have not heard yet."""
    close_by_s: float = math.inf
    """Closed then at the latest, even under sequences."""

    @property
    def layers(self) -> frozenset[int]:
        """What it holds."""
        return frozenset(range(self.start, self.end))

    @property
    def stays(self) -> bool:
        """Not on its way out."""
        return self.left_s is None

    def covers(self, start: int, end: int) -> bool:
        """Whether [start, end) is a part of it, or all."""
        return self.start <= start and end <= self.end

    def leave(self, now_s: float, within_s: float = math.inf) -> None:
        """Tell nobody of it any more, and close it once it is not in use; within `within_s` whether it is or not."""
        self.left_s = now_s if self.left_s is None else self.left_s
        self.close_by_s = min(self.close_by_s, now_s + within_s)

    def come_back(self) -> None:
        """Wanted again before it was closed."""
        self.left_s, self.close_by_s = None, math.inf


class ServedRanges:
    """All of them. What is listed here has not been closed."""

    def __init__(self) -> None:
        self._all: list[ServedRange] = []

    def __iter__(self) -> Iterator[ServedRange]:
        """A copy's: ranges may come and go meanwhile."""
        return iter(list(self._all))

    def __contains__(self, held: object) -> bool:
        return any(held is each for each in self._all)

    def add(self, held: ServedRange) -> None:
        self._all.append(held)

    def remove(self, held: ServedRange) -> None:
        self._all.remove(held)

    def clear(self) -> None:
        self._all.clear()

    def whole(self) -> list[ServedRange]:
        """Ranges that stay."""
        return [held for held in self._all if held.stays]

    def serving(self) -> ServedRange | None:
        """The range that routes are made over."""
        return next((held for held in self.whole() if held.state == "ready"), None)

    def exact(self, start: int, end: int, weights: str) -> ServedRange | None:
        """The range [start, end) of these weights, also where it is on its way out."""
        found = (held for held in self._all if (held.start, held.end, held.weights) == (start, end, weights))
        return min(found, key=lambda held: not held.stays, default=None)

    def find(self, start: int, end: int, weights: str) -> ServedRange | None:
        """A range that has [start, end) in it, the smallest of those that stay; where none does, one on its way out: a
        route may have been chosen a moment ago."""
        found = [held for held in self._all if held.covers(start, end) and held.weights == weights]
        return min(found, key=lambda held: (not held.stays, held.end - held.start), default=None)

    def holds(self, start: int, end: int) -> bool:
        """Whether some range has [start, end) in it, of whatever weights."""
        return any(held.covers(start, end) for held in self._all)

    def told(self) -> list[HeldRange]:
        """What the record says."""
        ranges = sorted(self.whole(), key=lambda held: held.state != "ready")
        return [HeldRange(held.start, held.end, held.state, held.epoch, held.weights) for held in ranges[:MOST_TOLD]]
