"""Which parts of a stage stay made."""

from __future__ import annotations

import pytest

from node.engine.made_slices import SLICES_KEPT, MadeSlices
from node.errors import EngineError


def test_the_whole_and_what_is_in_use_stay_and_of_the_rest_the_last_few() -> None:
    made: list[tuple[int, int]] = []

    def make(start: int, end: int) -> str:
        made.append((start, end))
        return f"{start}-{end}"

    slices = MadeSlices("whole", 0, 99, make)
    in_use = {(1, 2)}
    for start in range(1, 2 * SLICES_KEPT + 1):
        assert slices.part(start, start + 1, in_use) == f"{start}-{start + 1}"
    assert len(slices) == SLICES_KEPT + 3, "the whole one, the one in use, the one just asked for, and the last few"
    made.clear()
    assert slices.part(0, 99, in_use) == "whole"
    assert slices.part(1, 2, in_use) == "1-2"
    assert not made
    assert slices.part(2, 3, in_use) == "2-3"
    assert made == [(2, 3)], "it had been let go of"


def test_a_stage_that_is_dropped_makes_no_more() -> None:
    slices = MadeSlices("whole", 0, 9, lambda start, end: "part")
    slices.clear()
    assert len(slices) == 0
    with pytest.raises(EngineError, match="the stage is dropped"):
        slices.part(0, 9, ())
