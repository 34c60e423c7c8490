"""Round trips and rates between many places at once, as matrices: the figures that `Links` gives pair by pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from node.plan.pool import PRIOR_FAR_MBPS, PRIOR_NEAR_MBPS, Links, Located, Pair

Floats = NDArray[np.float64]


class Distances:
    """Between every two of `places`; two nodes of one place are taken as two different nodes of it."""

    def __init__(self, places: Sequence[Located], links: Links) -> None:
        regions: dict[str, int] = {}
        region_of = np.array([regions.setdefault(place.region, len(regions)) for place in places], dtype=np.int64)
        index: dict[str, list[int]] = {}
        for i, place in enumerate(places):
            index.setdefault(place.node_id, []).append(i)
        same = np.eye(max(1, len(regions)), dtype=bool)
        rtt = np.where(same, links.near_ms, links.far_ms)
        rate = np.where(same, PRIOR_NEAR_MBPS, PRIOR_FAR_MBPS)
        rtt, rate = _known(rtt, regions, links.rtt_ms), _known(rate, regions, links.mbps)
        spread = np.ix_(region_of, region_of)
        self._trips = links.trips
        self.rtt_ms: Floats = _named(rtt[spread], index, links.rtt_ms)
        self.mbps: Floats = _named(rate[spread], index, links.mbps)

    def hop_ms(self, sent_bytes: float) -> Floats:
        """(from, to): trips · RTT + bytes / bandwidth."""
        hops: Floats = self.rtt_ms * self._trips + sent_bytes * 8 / (self.mbps * 1000)
        return hops


def _known(matrix: Floats, regions: Mapping[str, int], figures: Mapping[Pair, float]) -> Floats:
    """Region pairs; a direction without a figure of its own takes the other's."""
    given = {(regions[a], regions[b]): v for (a, b), v in figures.items() if a in regions and b in regions and (a or b)}
    for (a, b), value in given.items():
        matrix[a, b] = value
        if (b, a) not in given:
            matrix[b, a] = value
    return matrix


def _named(matrix: Floats, index: Mapping[str, Sequence[int]], figures: Mapping[Pair, float]) -> Floats:
    """Node pairs outdo the pairs of their regions."""
    given = [(a, b, value) for (a, b), value in figures.items() if a in index and b in index]
    for reverse in (True, False):
        for a, b, value in given:
            for i in index[b] if reverse else index[a]:
                for j in index[a] if reverse else index[b]:
                    matrix[i, j] = value
    return matrix
