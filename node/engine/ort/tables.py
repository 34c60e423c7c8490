"""A model's rotary tables in memory, as far as positions have come. All parts of its stages read the same ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from node.engine.ort.kv_memory import set_aside
from node.engine.ort.rope import Rope
from node.weights.blocks import Floats

STEP_POSITIONS = 1024
"""Rows that are computed at a time."""


class Tables:
    """Cosines and sines by name, (positions, pairs) each. Rows beyond those reached are zeros that take no memory."""

    def __init__(self, ropes: Mapping[str, Rope], positions: int) -> None:
        self._ropes = ropes
        self._reached = 0
        self._tables: dict[str, tuple[Floats, Floats]] = {}
        for name, rope in ropes.items():
            shape = (positions, len(rope.frequencies))
            cosines, sines = (np.frombuffer(set_aside(4 * shape[0] * shape[1]), np.float32) for _ in range(2))
            self._tables[name] = (cosines.reshape(shape), sines.reshape(shape))
        self._positions = positions

    def of(self, name: str) -> tuple[Floats, Floats]:
        """Cosines and sines."""
        return self._tables[name]

    def reach(self, positions: int) -> None:
        """Have rows for that many positions."""
        while self._reached < min(positions, self._positions):
            end = min(self._reached + STEP_POSITIONS, self._positions)
            for name, rope in self._ropes.items():
                cosines, sines = self._tables[name]
                cosines[self._reached : end], sines[self._reached : end] = rope.rows(self._reached, end)
            self._reached = end
