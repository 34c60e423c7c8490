"""Shares of a chain's layers: known answers, and properties against exhaustive search."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import BadLayers
from node.plan import water_fill
from node.plan.placement.water_filling import water_level

TABLE = [
    ([13, 5, 3], [312, 165, 82.6], 21, [13, 5, 3], 0.041667),
    ([13, 4], [312, 165], 15, [11, 4], 0.035256),
    ([13, 5, 3], [312, 165, 82.6], 20, [12, 5, 3], 0.038462),
    ([13, 5, 4, 3], [312, 165, 82.6, 82.6], 25, [13, 5, 4, 3], 0.048426),
    ([13, 5, 5, 4, 3], [312, 165, 165, 82.6, 82.6], 29, [13, 5, 5, 3, 3], 0.040547),
    ([4, 4], [165, 165], 8, [4, 4], 0.024242),
    ([6, 4], [312, 165], 7, [5, 2], 0.014675),
    ([13, 6], [312, 312], 13, [7, 6], 0.022436),
    ([3, 4, 4, 3], [1, 1, 1, 1], 12, [3, 3, 3, 3], 3.0),
    ([10, 10, 10], [1, 1, 1], 10, [4, 3, 3], 3.333333),
    ([10, 10, 10], [1, 2, 4], 14, [2, 4, 8], 2.0),
    ([2, 20, 20], [10, 1, 1], 20, [2, 9, 9], 9.0),
]


@pytest.mark.parametrize(("capacities", "speeds", "layers", "counts", "level"), TABLE)
def test_known_shares(capacities: list[int], speeds: list[float], layers: int, counts: list[int], level: float) -> None:
    assert water_fill(capacities, speeds, layers) == counts
    assert water_level(capacities, speeds, layers) == pytest.approx(level, abs=1e-6)


stage = st.tuples(st.integers(0, 12), st.sampled_from([0.5, 1.0, 2.0, 3.0, 82.6, 165.0, 312.0]))


@given(st.lists(stage, min_size=1, max_size=6), st.data())
def test_shares_are_whole_fit_and_treat_equals_alike(stages: list[tuple[int, float]], data: st.DataObject) -> None:
    capacities, speeds = [c for c, _ in stages], [f for _, f in stages]
    layers = data.draw(st.integers(0, sum(capacities)))
    counts = water_fill(capacities, speeds, layers)
    assert sum(counts) == layers
    assert all(0 <= n <= c for n, c in zip(counts, capacities, strict=True))
    for i, a in enumerate(stages):
        for j, b in enumerate(stages):
            if a == b:
                assert abs(counts[i] - counts[j]) <= 1


@given(st.lists(st.tuples(st.integers(1, 6), st.floats(0.1, 10)), min_size=1, max_size=4), st.data())
def test_the_slowest_stage_is_within_a_layer_of_the_optimum(
    stages: list[tuple[int, float]], data: st.DataObject
) -> None:
    capacities, speeds = [c for c, _ in stages], [f for _, f in stages]
    layers = data.draw(st.integers(1, sum(capacities)))
    counts = water_fill(capacities, speeds, layers)
    every = (split for split in product(*(range(c + 1) for c in capacities)) if sum(split) == layers)
    best = min(max(n / f for n, f in zip(split, speeds, strict=True)) for split in every)
    for n, f in zip(counts, speeds, strict=True):
        assert n / f <= best + 1 / f + 1e-9


@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(1e-12, 1e15)), min_size=1, max_size=40), st.data())
def test_extreme_speeds_do_no_harm(stages: list[tuple[int, float]], data: st.DataObject) -> None:
    capacities = [c for c, _ in stages]
    layers = data.draw(st.integers(0, min(sum(capacities), 10_000)))
    counts = water_fill(capacities, [f for _, f in stages], layers)
    assert sum(counts) == layers
    assert all(0 <= n <= c for n, c in zip(counts, capacities, strict=True))


@pytest.mark.parametrize(
    ("capacities", "speeds", "layers"),
    [([3, 3], [1, 1], 7), ([], [], 1), ([3], [0.0], 1), ([3], [math.nan], 1), ([3], [math.inf], 1),
     ([-1, 5], [1, 1], 2), ([3], [1, 1], 1), ([3], [1], -1)],
)  # fmt: skip
def test_what_cannot_be_is_refused(capacities: list[int], speeds: list[float], layers: int) -> None:
    with pytest.raises(BadLayers):
        water_fill(capacities, speeds, layers)


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.floats(1e-12, 1e12)), min_size=1, max_size=7),
    st.data(),
)
def test_however_unequal_the_speeds_the_level_stays_right(stages: list[tuple[int, float]], data: st.DataObject) -> None:
    capacities, speeds = [c for c, _ in stages], [f for _, f in stages]
    layers = data.draw(st.integers(0, sum(capacities)))
    counts = water_fill(capacities, speeds, layers)
    assert sum(counts) == layers
    assert all(0 <= n <= c for n, c in zip(counts, capacities, strict=True))
    slowest = max((n / f for n, f in zip(counts, speeds, strict=True)), default=0.0)
    one_layer = max(1 / f for f in speeds)
    best = min(level for level in levels(capacities, speeds, layers))
    assert slowest <= best + one_layer * (1 + 1e-9)


def levels(capacities: list[int], speeds: list[float], layers: int) -> list[float]:
    """Times within which the stages can do that many layers."""
    times = sorted({n / f for c, f in zip(capacities, speeds, strict=True) for n in range(c + 1)})
    return [
        t
        for t in times
        if sum(min(c, int(t * f * (1 + 1e-12))) for c, f in zip(capacities, speeds, strict=True)) >= layers
    ]


@pytest.mark.parametrize(
    ("capacities", "speeds", "layers"),
    [
        ([float("nan")], [1.0], 1),
        ([5], [1.0], float("nan")),
        ([True], [1.0], 1),
        ([5], [True], 1),
        ([5], ["fast"], 1),
        (["many"], [1.0], 1),
        ([None], [1.0], 1),
        ([10**30] * 2, [1.0, 2.0], 10**25),
        ([5], [float("inf")], 1),
        ([5], [1.0], 1.5),
    ],
)
def test_figures_that_are_none_are_refused_in_a_sentence(capacities: Any, speeds: Any, layers: Any) -> None:
    with pytest.raises(BadLayers):
        water_fill(capacities, speeds, layers)


def test_capacities_beyond_all_layers_and_speeds_at_the_edge_are_taken() -> None:
    assert water_fill([10**400, 10**400], [1.0, 3.0], 8) == [2, 6]
    assert water_fill([4, 4], [1e300, 1e300], 8) == [4, 4]
    assert water_fill([4, 4], [1e-300, 1e300], 5) == [1, 4]
