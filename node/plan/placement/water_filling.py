"""Shares out a chain's layers by speed: stages fill like vessels of width F_i under one water level λ, to the brim.

Σ min(c_i, λ·F_i) = L,   n_i = ⌊min(c_i, λ·F_i)⌋, the rest to the largest remainders (ties: the lower index)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from node.errors import BadLayers

TINY = 1e-9
"""Relative: products like λ·F that miss a whole number by rounding alone are taken as it."""
SLOWEST = 1e-200
"""Of the fastest stage's speed: whoever is slower than that counts as this slow, so that no quotient overflows."""
MOST_LAYERS = 1_000_000


def water_level(capacities: Sequence[int], speeds: Sequence[float], layers: int) -> float:
    """The λ at which the vessels hold `layers` (their capacities must). Exact: vessels are passed as they brim over."""
    order = sorted(range(len(capacities)), key=lambda i: capacities[i] / speeds[i])
    # From the back: what is left of a sum after most of it was taken away again would be rounding errors alone.
    widths = list(accumulate(speeds[i] for i in reversed(order)))[::-1]
    full = 0
    for i, width in zip(order, widths, strict=True):
        level = (layers - full) / width
        if level <= capacities[i] / speeds[i]:
            return level
        full += capacities[i]
    return max((capacities[i] / speeds[i] for i in order), default=0.0)


def water_fill(capacities: Sequence[int], speeds: Sequence[float], layers: int) -> list[int]:
    """Layers for each stage of a chain, within its capacity and in proportion to its speed.

    Equal stages differ by one layer at most; the slowest stage's time is within one layer of the best possible.

    Raises:
        BadLayers: the capacities hold too few layers, or a figure is negative, absent, not finite, or no number.
    """
    _check(capacities, speeds, layers)
    counts = [0] * len(capacities)
    if layers == 0:
        return counts
    usable = [i for i, capacity in enumerate(capacities) if capacity > 0]
    room = [min(capacity, layers) for capacity in capacities]
    fastest = max(speeds[i] for i in usable)
    relative = [max(speed / fastest, SLOWEST) for speed in speeds]
    level = water_level([room[i] for i in usable], [relative[i] for i in usable], layers)
    remainders: list[tuple[float, int]] = []
    for i in usable:
        target = min(float(room[i]), level * relative[i])
        counts[i] = min(room[i], math.floor(target + TINY * max(1.0, target)))
        remainders.append((-round(target - counts[i], 7), i))
    missing = layers - sum(counts)
    remainders.sort()
    while missing > 0:
        for _, i in remainders:
            if missing and counts[i] < room[i]:
                counts[i] += 1
                missing -= 1
    while missing < 0:  # rounding put one too many into a stage: take it from the one that is done last
        slowest = max((i for i in usable if counts[i]), key=lambda i: (counts[i] / relative[i], i))
        counts[slowest] -= 1
        missing += 1
    return counts


def _check(capacities: Sequence[int], speeds: Sequence[float], layers: int) -> None:
    asked = f"0:{str(layers)[:20]}"
    if not whole(layers) or layers < 0:
        raise BadLayers(asked, "the number of layers is not a whole number from zero")
    if layers > MOST_LAYERS:
        raise BadLayers(asked, f"more than {MOST_LAYERS} layers are beyond any model")
    if len(capacities) != len(speeds):
        raise BadLayers(
            asked, f"{len(capacities)} capacities and {len(speeds)} speeds; one of each per stage is needed"
        )
    check_capacities(asked, capacities)
    for speed in speeds:
        number = isinstance(speed, int | float) and not isinstance(speed, bool)
        if not number or not 0 < speed <= 1e300:  # NaN is not above zero either
            raise BadLayers(asked, f"speed {str(speed)[:20]} is not a finite number above zero")
    held = sum(capacities)
    if held < layers:
        raise BadLayers(asked, f"the capacities hold {held} layers, {layers - held} too few")


def check_capacities(asked: str, capacities: Sequence[int]) -> None:
    """Raises BadLayers for one that is no whole number from zero."""
    for capacity in capacities:
        if not whole(capacity):
            raise BadLayers(asked, f"capacity {str(capacity)[:20]} is not a whole number")
        if capacity < 0:
            raise BadLayers(asked, f"capacity {str(capacity)[:20]} is negative")


def whole(value: object) -> bool:
    """Whether it is a whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)
