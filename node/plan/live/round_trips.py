"""Round trips and rates between all live members as matrices: what `pool_of_records` has pair by pair, for many.

A pair's round trip is the smaller of what both ends say; inside a machine it is short whatever a busy heartbeat says;
one that nobody has measured is the usual one inside a region that has a name, and pessimistic elsewhere. A rate is what
the receiver has seen, or the other direction's, or a prior.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from node.plan.live.from_records import LEAST_MBPS, SAME_MACHINE_MS, UNKNOWN_MS
from node.plan.machines.distances import Distances
from node.plan.machines.pool import PRIOR_FAR_MBPS, PRIOR_NEAR_MBPS, PRIOR_NEAR_MS, Links, Located
from node.wire.records import NodeRecord

TRIPS = Links().trips


class RoundTrips:
    """Among the nodes of these records. Every node is a place of its own."""

    def __init__(self, records: Iterable[NodeRecord]) -> None:
        known = list(records)
        self._index = {record.node_id: i for i, record in enumerate(known)}
        self._rtt_ms = _told([r.rtt_ms for r in known], self._index)
        self._rtt_ms = np.fmin(self._rtt_ms, self._rtt_ms.T)
        machine, region = _codes([r.machine_id for r in known]), _codes([r.region for r in known])
        self._near = region[:, None] == region[None, :]
        named = self._near & np.array([bool(r.region) for r in known], dtype=bool)[:, None]
        unknown = np.isnan(self._rtt_ms)
        self._rtt_ms[unknown] = np.where(named, PRIOR_NEAR_MS, UNKNOWN_MS)[unknown]
        same = machine[:, None] == machine[None, :]
        self._rtt_ms[same] = np.minimum(self._rtt_ms[same], SAME_MACHINE_MS)
        np.fill_diagonal(self._rtt_ms, 0.0)
        seen = _told([r.mbps for r in known], self._index).T  # by the receiver: (from, to) as it is sent
        seen = np.where(np.isnan(seen), seen.T, seen)
        prior = np.where(self._near, PRIOR_NEAR_MBPS, PRIOR_FAR_MBPS)
        self._mbps = np.where(np.isnan(seen), prior, np.maximum(seen, LEAST_MBPS))

    @property
    def named(self) -> Collection[str]:
        """Nodes with figures of their own: all of the records."""
        return self._index.keys()

    def distances(self, places: Sequence[Located]) -> Distances:
        """Between every two of `places`, all of them nodes of the records."""
        at = np.array([self._index[place.node_id] for place in places], dtype=np.int64)
        pairs = np.ix_(at, at)
        return Distances(self._rtt_ms[pairs], self._mbps[pairs], TRIPS)

    def way_ms(self, a: Located, b: Located) -> float:
        """Time of an empty message from `a` to `b`."""
        if a.node_id not in self._index or b.node_id not in self._index:
            return UNKNOWN_MS * TRIPS
        return float(self._rtt_ms[self._index[a.node_id], self._index[b.node_id]]) * TRIPS


def _told(figures: Sequence[Mapping[str, float]], index: dict[str, int]) -> NDArray[np.float64]:
    """(who says it, of whom): what each says of its peers; NaN where it says nothing."""
    told = np.full((len(figures), len(figures) + 1), np.nan)  # the last column takes peers without a record
    for row, known in zip(told, figures, strict=True):
        if known:
            columns = [index.get(peer, -1) for peer in known]
            row[columns] = list(known.values())
    return told[:, :-1].copy()


def _codes(names: Sequence[str]) -> NDArray[np.int64]:
    """Equal numbers for equal names."""
    codes: dict[str, int] = {}
    return np.array([codes.setdefault(name, len(codes)) for name in names], dtype=np.int64)
