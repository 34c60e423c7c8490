"""How often we dial, in all, on one source's word, and to one host: what others tell must not make us knock at doors.

A member may name any addresses of any number of nodes that there are not. Each dial takes from three buckets; what
finds one of them empty is tried later.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from node.swarm.addresses import Address
from node.wire.ids import NodeId

KEYS_LIMIT = 1024
"""Sources and hosts that are remembered; who has been quiet for longest goes, with a full bucket."""


class Bucket:
    """So many at once, so many per minute."""

    def __init__(self, burst: float, per_minute: float) -> None:
        self._burst, self._per_s = burst, per_minute / 60
        self._left: dict[Hashable, tuple[float, float]] = {}

    def left(self, key: Hashable, now: float) -> float:
        """How many may be taken now."""
        left, at_s = self._left.get(key, (self._burst, now))
        return min(self._burst, left + (now - at_s) * self._per_s)

    def take(self, key: Hashable, now: float) -> None:
        """Take one; `left` has been asked before."""
        self._left[key] = (self.left(key, now) - 1, now)
        if len(self._left) > KEYS_LIMIT:
            del self._left[min(self._left, key=lambda other: self._left[other][1])]


class DialBudget:
    """Dials to single addresses."""

    def __init__(self) -> None:
        self._all = Bucket(256, 240)
        self._by_source = Bucket(24, 24)
        """Each source, and each peer for what it says of itself."""
        self._by_host = Bucket(32, 60)
        """A house behind one router, or a machine with several nodes, is one host."""
        self._put_off: dict[NodeId, tuple[Address, ...]] = {}

    def choose(self, peer: NodeId, places: Sequence[Address], source: NodeId, now: float) -> list[Address]:
        """Those of a peer's places that may be dialed now; counts them. What has to wait comes first the next time."""
        put_off = self._put_off.pop(peer, ())
        ordered = [*(place for place in put_off if place in places), *(p for p in places if p not in put_off)]
        chosen = [place for place in ordered if self.allows(place, source, now)]
        if len(chosen) < len(ordered):
            self._put_off[peer] = tuple(place for place in ordered if place not in chosen)
            if len(self._put_off) > KEYS_LIMIT:
                del self._put_off[next(iter(self._put_off))]
        return chosen

    def allows(self, address: Address, source: NodeId, now: float) -> bool:
        """Whether this address may be dialed now on the word of `source`; counts it if so."""
        asked: tuple[tuple[Bucket, Hashable], ...] = (
            (self._all, ""),
            (self._by_source, source),
            (self._by_host, address.host),
        )
        if any(bucket.left(key, now) < 1 for bucket, key in asked):
            return False
        for bucket, key in asked:
            bucket.take(key, now)
        return True
