"""Where unproven announcements of the local network live until somebody answers there: few of them, for a minute.

Whoever hears the announcements of this swarm can say them again, also when what they say is long untrue. So they are
tried, and neither written down nor kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from node.swarm.addresses import Address
from node.wire.ids import NodeId

POOL_LIMIT = 16
KEPT_S = 60.0
ADDRESSES_EACH = 4


@dataclass(slots=True)
class _Suggestion:
    addresses: tuple[Address, ...]
    told_s: float


class Suggestions:
    """At most `POOL_LIMIT` peers; the oldest of those that are not members makes room."""

    def __init__(self) -> None:
        self._pool: dict[NodeId, _Suggestion] = {}

    def add(self, address: Address, now: float, is_member: Callable[[NodeId], bool]) -> NodeId | None:
        """A place where a peer is said to be; the peer, where there is room for it."""
        peer = address.peer
        if peer is None:
            return None
        self._expire(now)
        known = self._pool.pop(peer, None)
        if known is None and len(self._pool) >= POOL_LIMIT:
            strangers = [other for other in self._pool if not is_member(other)]
            del self._pool[(strangers or list(self._pool))[0]]
        place = address.at(None)
        others = tuple(other for other in (known.addresses if known else ()) if other != place)
        self._pool[peer] = _Suggestion((place, *others)[:ADDRESSES_EACH], now)
        return peer

    def addresses(self, peer: NodeId, now: float) -> tuple[Address, ...]:
        """Where it was last said to be; empty once that is old."""
        self._expire(now)
        known = self._pool.get(peer)
        return known.addresses if known else ()

    def __len__(self) -> int:
        return len(self._pool)

    def _expire(self, now: float) -> None:
        for peer in [peer for peer, known in self._pool.items() if now - known.told_s > KEPT_S]:
            del self._pool[peer]
