"""Shares out a chain's layers by speed: stages fill like vessels of width F_i under one water level λ, to the brim.

Σ min(c_i, λ·F_i) = L,   n_i = ⌊min(c_i, λ·F_i)⌋, the rest to the largest remainders (ties: the lower index)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from node.errors import BadLayers

TINY = 1e-9
"""Relative: products like λ·F that miss a whole number by rounding alone are taken as it."""


def water_level(capacities: Sequence[int], speeds: Sequence[float], layers: int) -> float:
    """The λ at which the vessels hold `layers` (their capacities must). Exact: vessels are passed as they brim over."""
    order = sorted(range(len(capacities)), key=lambda i: capacities[i] / speeds[i])
    full, width, level = 0, math.fsum(speeds), 0.0
    for i in order:
        level = (layers - full) / width
        if level <= capacities[i] / speeds[i]:
            return level
        full, width = full + capacities[i], max(width - speeds[i], TINY * speeds[i])
    return max((capacities[i] / speeds[i] for i in order), default=0.0)


def water_fill(capacities: Sequence[int], speeds: Sequence[float], layers: int) -> list[int]:
    """Layers for each stage of a chain, within its capacity and in proportion to its speed.

    Equal stages differ by one layer at most; the slowest stage's time is within one layer of the best possible.

    Raises:
        BadLayers: the capacities hold too few layers, or a figure is negative, absent or not finite.
    """
    _check(capacities, speeds, layers)
    usable = [i for i, capacity in enumerate(capacities) if capacity > 0]
    counts = [0] * len(capacities)
    if layers == 0:
        return counts
    level = water_level([capacities[i] for i in usable], [speeds[i] for i in usable], layers)
    remainders: list[tuple[float, int]] = []
    for i in usable:
        target = min(float(capacities[i]), level * speeds[i])
        counts[i] = min(capacities[i], math.floor(target + TINY * max(1.0, target)))
        remainders.append((-round(target - counts[i], 7), i))
    missing = layers - sum(counts)
    remainders.sort()
    while missing > 0:
        for _, i in remainders:
            if missing and counts[i] < capacities[i]:
                counts[i] += 1
                missing -= 1
    while missing < 0:  # rounding put one too many into a stage: take it from the one that is done last
        slowest = max((i for i in usable if counts[i]), key=lambda i: (counts[i] / speeds[i], i))
        counts[slowest] -= 1
        missing += 1
    return counts


def _check(capacities: Sequence[int], speeds: Sequence[float], layers: int) -> None:
    asked = f"0:{layers}"
    if layers < 0:
        raise BadLayers(asked, "fewer than none")
    if len(capacities) != len(speeds):
        raise BadLayers(
            asked, f"{len(capacities)} capacities and {len(speeds)} speeds; one of each per stage is needed"
        )
    for capacity, speed in zip(capacities, speeds, strict=True):
        if capacity < 0:
            raise BadLayers(asked, f"capacity {capacity} is negative")
        if not (math.isfinite(speed) and speed > 0):
            raise BadLayers(asked, f"speed {speed} is not a finite number above zero")
    held = sum(capacities)
    if held < layers:
        raise BadLayers(asked, f"the capacities hold {held} layers, {layers - held} too few")
