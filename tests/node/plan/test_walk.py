"""The walk over held ranges."""

from __future__ import annotations

import pytest

from node.errors import NoRoute
from node.plan.walk import walk
from node.wire.records import HeldRange
from tests.node.plan.test_decide import record


def holding(node_id: str, *ranges: tuple[int, int, str], **changes: object) -> object:
    held = tuple(HeldRange(start, end, state, 1) for start, end, state in ranges)  # type: ignore[arg-type]
    return record(node_id, held=held, **changes)


def walked(layers: int, *records: object) -> list[tuple[str, int, int]]:
    return [(hop.node_id, hop.start, hop.end) for hop in walk(layers, records)]  # type: ignore[arg-type]


def test_ranges_that_tile_are_walked_in_order() -> None:
    assert walked(6, holding("b", (2, 6, "ready")), holding("a", (0, 2, "ready"))) == [("a", 0, 2), ("b", 2, 6)]


def test_overlapping_ranges_are_used_in_part() -> None:
    assert walked(6, holding("a", (0, 4, "ready")), holding("b", (2, 6, "ready"))) == [("a", 0, 4), ("b", 4, 6)]


def test_fewest_stages_win_and_then_the_idle_node() -> None:
    whole, busy = holding("z", (0, 6, "ready")), holding("a", (0, 6, "ready"), sessions=3)
    assert walked(6, holding("a", (0, 3, "ready")), holding("b", (3, 6, "ready")), whole) == [("z", 0, 6)]
    assert walked(6, busy, whole) == [("z", 0, 6)]


@pytest.mark.parametrize("state", ["loading"])
def test_a_range_that_is_not_there_yet_is_not_used(state: str) -> None:
    with pytest.raises(NoRoute, match="layers 2–5 of 6"):
        walked(6, holding("a", (0, 2, "ready")), holding("b", (2, 6, state)))


def test_an_outdated_range_serves_until_the_new_ones_are_ready() -> None:
    old_and_new = holding("a", (0, 6, "draining"), (0, 3, "ready"))
    assert walked(6, old_and_new, holding("b", (3, 6, "loading"))) == [("a", 0, 6)]
    assert walked(6, old_and_new, holding("b", (3, 6, "ready"))) == [("a", 0, 3), ("b", 3, 6)]


def test_the_first_gap_is_named() -> None:
    with pytest.raises(NoRoute, match="layers 0–5 of 6"):
        walked(6)
    with pytest.raises(NoRoute, match="layers 1–2 of 6"):
        walked(6, holding("a", (0, 1, "ready")), holding("b", (3, 6, "ready")))


def test_ranges_beyond_the_model_are_ignored() -> None:
    with pytest.raises(NoRoute):
        walked(6, holding("a", (0, 8, "ready")))
