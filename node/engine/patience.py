"""How long a worker may take before it counts as hung. Pure: no clock, no process.

A step is measured against the steps that this stage has run itself, for a machine that is slow is not hung. A load is
measured against its own progress, for a slow disk is not hung either.
"""

from __future__ import annotations

from node.engine.base import StageInfo

STEP_LEAST_S = 5.0
"""A step may take so long at least, however fast steps are: others may have the machine for a while."""
STEP_FACTOR = 50.0
"""And so many times as long as steps of as many rows took."""

CALL_S = 30.0
"""For what is not a step: opening a sequence on layers that no sequence used so far builds a model of them."""
BESIDE_A_LOAD_S = 30.0
"""At least for a step while a load is under way: the library's modules for it may have to be read from a slow disk."""

LOAD_PROGRESS_S = 120.0
"""A load that does not go on for so long hangs. Building the modules of a large model counts as one piece of work."""
START_S = 300.0
"""From the process's start until it is measured: imports read hundreds of megabytes, from whatever disk there is."""

PING_EVERY_S = 2.0
"""How often a worker is asked whether it is there, unless it has just said something."""
PING_S = 5.0
"""It is not, when it has not answered for so long."""
PING_BESIDE_A_LOAD_S = 30.0
PING_STARTING_S = 60.0
"""While it loads or starts: the system's loader of libraries lets no other thread of an interpreter run meanwhile."""

SMOOTHING = 0.3
"""Weight of the newest step in what is expected of the next."""


class StepTimes:
    """What steps of one stage take, by their rows: learned from those that it has run.

    Steps are kept apart by the power of two below their rows, for many rows together take less time each.
    """

    def __init__(self, info: StageInfo, layers: int) -> None:
        self._row_ms: dict[int, float] = {}
        """Per row, by the logarithm of the step's rows."""
        if info.layer_ms is not None:
            self._row_ms[0] = layers * info.layer_ms + (info.head_ms or 0.0)

    def note(self, rows: int, compute_ms: float) -> None:
        """A step of so many rows took so long."""
        size, row_ms = rows.bit_length() - 1, compute_ms / rows
        before = self._row_ms.get(size, row_ms)
        self._row_ms[size] = before + SMOOTHING * (row_ms - before)

    def expected_ms(self, rows: int) -> float | None:
        """For a step of so many rows: by steps of as many, or of fewer, whose rows took longer each. None: unknown."""
        known = [size for size in self._row_ms if size <= rows.bit_length() - 1] or list(self._row_ms)
        return rows * self._row_ms[max(known)] if known else None

    def allowance_s(self, rows: int) -> float:
        """How long a step of so many rows may take."""
        if (expected := self.expected_ms(rows)) is None:
            return START_S
        return max(STEP_LEAST_S, STEP_FACTOR * expected / 1e3)
