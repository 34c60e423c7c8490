"""Round trips and rates between many places at once, as matrices: the figures that `Links` gives pair by pair."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat

import numpy as np
from numpy.typing import NDArray

from node.plan.machines.pool import PRIOR_FAR_MBPS, PRIOR_NEAR_MBPS, Links, Located, Pair

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Distances:
    """Between every two of some places; two nodes of one place are taken as two different nodes of it."""

    rtt_ms: Floats
    """(from, to); infinite where they cannot reach one another."""
    mbps: Floats
    """(from, to)"""
    trips: float
    """Round trips that one hop takes."""

    @property
    def way_ms(self) -> Floats:
        """(from, to): of an empty message."""
        ways: Floats = self.rtt_ms * self.trips
        return ways

    @property
    def byte_ms(self) -> Floats:
        """(from, to): per byte."""
        times: Floats = 8 / (self.mbps * 1000)
        return times

    def hop_ms(self, sent_bytes: float) -> Floats:
        """(from, to): trips · RTT + bytes / bandwidth."""
        hops: Floats = self.rtt_ms * self.trips + sent_bytes * 8 / (self.mbps * 1000)
        return hops


class Described:
    """Links as a pool file or a planner describes them. Nodes that no link names are all alike within their region."""

    def __init__(self, links: Links) -> None:
        self._links = links
        self.named: Collection[str] = links.named
        """Nodes and regions with figures of their own."""

    def distances(self, places: Sequence[Located]) -> Distances:
        """Between every two of `places`."""
        links = self._links
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
        named_rtt, named_rate = _named(rtt[spread], index, links.rtt_ms), _named(rate[spread], index, links.mbps)
        return Distances(named_rtt, named_rate, links.trips)

    def relayed(self) -> Described:
        """The same: all can reach one another."""
        return self

    def way_ms(self, a: Located, b: Located) -> float:
        """Time of an empty message from `a` to `b`."""
        return self._links.hop_ms(a, b, 0.0)


def _known(matrix: Floats, regions: Mapping[str, int], figures: Mapping[Pair, float]) -> Floats:
    """Region pairs; a direction without a figure of its own takes the other's. Two nodes of no region
    are as far as the prior says."""
    rows, columns, values = _given(regions, figures)
    told = np.ones(len(rows), dtype=bool) if "" not in regions else (rows != regions[""]) | (columns != regions[""])
    rows, columns, values = rows[told], columns[told], values[told]
    matrix[columns, rows] = values
    matrix[rows, columns] = values
    return matrix


def _given(index: Mapping[str, int], figures: Mapping[Pair, float]) -> tuple[Indices, Indices, Floats]:
    """Rows, columns and values of those pairs that have an index: thousands at once."""
    ends = np.fromiter(
        map(index.get, chain.from_iterable(figures), repeat(-1)), dtype=np.int64, count=2 * len(figures)
    ).reshape(-1, 2)
    values = np.fromiter(figures.values(), dtype=np.float64, count=len(figures))
    known = (ends >= 0).all(axis=1)
    return ends[known, 0], ends[known, 1], values[known]


def _named(matrix: Floats, index: Mapping[str, Sequence[int]], figures: Mapping[Pair, float]) -> Floats:
    """Node pairs outdo the pairs of their regions; a direction without a figure of its own takes the other's."""
    if all(len(places) == 1 for places in index.values()):
        rows, columns, values = _given({node: places[0] for node, places in index.items()}, figures)
    else:
        pairs = ((index.get(a, ()), index.get(b, ()), value) for (a, b), value in figures.items())
        given = [(i, j, value) for ends_a, ends_b, value in pairs for i in ends_a for j in ends_b]
        if not given:
            return matrix
        rows, columns, values = (np.array(column) for column in zip(*given, strict=True))
    matrix[columns, rows] = values
    matrix[rows, columns] = values
    return matrix
