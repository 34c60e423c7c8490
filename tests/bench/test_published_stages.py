"""The fewest nodes for k pipelines: known answers, and equality with exhaustive search."""

from __future__ import annotations

import time
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import BadLayers
from tests.bench.published_stages import best_pipeline_count, minimal_stages

TABLE: list[tuple[list[int], int, list[int | None], int]] = [
    ([40, 40, 20, 20, 10, 10], 70, [2, 6], 2),
    ([13, 13, 6, 6, 4, 4], 22, [2, 6], 2),
    ([12] * 6, 36, [3, 6], 2),
    ([6] * 5, 10, [2, 4, None], 2),
    ([22, 22, 22], 28, [2, None], 1),
    ([14, 13, 11], 24, [2], 1),
    ([16, 15, 13, 6, 5, 5], 9, [1, 2, 3, 5, None, None], 4),
    ([14, 14, 8, 7, 5, 5, 4], 27, [2, 7], 2),
    ([16, 15, 15, 12, 10, 7], 28, [2, 4], 2),
    ([16, 16, 16, 14, 11], 25, [2, 4], 2),
    ([15, 9, 3], 22, [2], 1),
    ([14, 13, 9, 8, 7, 2], 13, [1, 2, 4, None], 3),
    ([12, 12, 10, 7, 3], 24, [2], 1),
    ([9, 8, 7, 7, 6, 5, 5, 4], 29, [4], 1),
    ([16, 12, 9, 8, 5, 4], 29, [3], 1),
]


@pytest.mark.parametrize(("capacities", "layers", "stages", "pipelines"), TABLE)
def test_known_counts(capacities: list[int], layers: int, stages: list[int | None], pipelines: int) -> None:
    assert minimal_stages(capacities, layers) == stages
    assert best_pipeline_count(stages, 2, 0, 1) == pipelines
    assert best_pipeline_count(stages, 1, 10, 20) == pipelines
    assert best_pipeline_count(stages, 2, 50, 10) == pipelines


def exhaustive(capacities: list[int], layers: int) -> list[int | None]:
    """By trying every set of nodes for every pipeline."""
    n = len(capacities)
    total = [sum(capacities[i] for i in range(n) if mask >> i & 1) for mask in range(1 << n)]

    @lru_cache(None)
    def fewest(free: int, k: int) -> int:
        if k == 0:
            return 0
        best, chosen = 1000, free
        while chosen:
            if total[chosen] >= layers:
                best = min(best, chosen.bit_count() + fewest(free ^ chosen, k - 1))
            chosen = (chosen - 1) & free
        return best

    most = min(n, sum(capacities) // layers)
    return [s if (s := fewest((1 << n) - 1, k)) < 1000 else None for k in range(1, most + 1)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 16), max_size=7), st.integers(1, 30), st.randoms())
def test_equal_to_exhaustive_search_in_any_order(capacities: list[int], layers: int, random: object) -> None:
    expected = exhaustive(capacities, layers)
    assert minimal_stages(capacities, layers) == expected
    assert minimal_stages(capacities[::-1], layers) == expected


@given(st.lists(st.integers(0, 10**9), max_size=30), st.integers(1, 10**6))
@settings(max_examples=50, deadline=None)
def test_any_pool_gives_an_answer(capacities: list[int], layers: int) -> None:
    found = [s for s in minimal_stages(capacities, layers) if s is not None]
    assert found == sorted(set(found))


def test_many_nodes_are_no_matter() -> None:
    started = time.perf_counter()
    stages = minimal_stages([13, 6, 5, 4] * 64, 36)
    assert stages[0] == 3
    assert time.perf_counter() - started < 5
    assert minimal_stages([6] * 10_000, 12)[-1] == 10_000


@pytest.mark.parametrize(("capacities", "layers"), [([3], 0), ([3, -1], 2)])
def test_what_cannot_be_is_refused(capacities: list[int], layers: int) -> None:
    with pytest.raises(BadLayers):
        minimal_stages(capacities, layers)
