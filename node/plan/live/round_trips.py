"""Round trips and rates between all live members as matrices: what `pool_of_records` has pair by pair, for many.

A pair's round trip is the smaller of what both ends say; inside a machine it is short whatever a busy heartbeat says;
one that nobody has measured is the usual one inside a region that has a name, and pessimistic elsewhere. A rate is what
the receiver has seen, or the other direction's, or a prior.

Two members are **apart** when either says that it has tried to reach the other and could not, whatever the other says:
what it says may be older, and a way around is slower at worst, where a dead link loses requests. Inside a machine
nobody is. Who has not been tried yet is not apart, but far. Members that are apart have no hop between them; where no
chain does without one, their frames go through a third member who reaches both, at the price of both legs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from node.plan.machines.distances import Distances
from node.plan.machines.pool import PRIOR_FAR_MBPS, PRIOR_NEAR_MBPS, PRIOR_NEAR_MS, Links, Located
from node.wire.records import NodeRecord

TRIPS = Links().trips
UNKNOWN_MS = 100.0
"""Round trip between members that have not measured it yet: pessimistic, never infinite."""
SAME_MACHINE_MS = 1.0
"""Round trip inside a machine is no more than this, whatever a busy heartbeat says."""
LEAST_MBPS = 0.01
"""A slower link carries nothing that anybody waits for."""


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
        away = apart(known, self._index) & ~same
        self._rtt_ms[away] = np.inf
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

    def relayed(self) -> RoundTrips:
        """The same where members that are apart send through the third one that is nearest to both."""
        if not np.isinf(self._rtt_ms).any():
            return self
        found = RoundTrips(())
        found._index = self._index
        found._rtt_ms, found._mbps = through_third(self._rtt_ms, self._mbps)
        return found

    def way_ms(self, a: Located, b: Located) -> float:
        """Time of an empty message from `a` to `b`."""
        if a.node_id not in self._index or b.node_id not in self._index:
            return UNKNOWN_MS * TRIPS
        return float(self._rtt_ms[self._index[a.node_id], self._index[b.node_id]]) * TRIPS


def apart(records: Sequence[NodeRecord], index: Mapping[str, int]) -> NDArray[np.bool_]:
    """(nodes, nodes): whether either has tried to reach the other and could not."""
    away = np.zeros((len(records), len(records)), dtype=bool)
    for i, record in enumerate(records):
        columns = [index[peer] for peer in record.unreachable if peer in index]
        away[i, columns] = True
    away |= away.T
    np.fill_diagonal(away, False)
    return away


def through_third(
    rtt_ms: NDArray[np.float64], mbps: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both, with two legs where a round trip is infinite; it stays so where nobody reaches both ends.

    The third reads a message whole before it sends it on: the legs' times add up.
    """
    rtt, rates = rtt_ms.copy(), mbps.copy()
    for i, row in enumerate(rtt_ms):
        for j in np.flatnonzero(np.isinf(row)):
            legs = row + rtt_ms[:, j]
            third = int(legs.argmin())
            rtt[i, j] = legs[third]
            rates[i, j] = 1 / (1 / mbps[i, third] + 1 / mbps[third, j])
    return rtt, rates


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
