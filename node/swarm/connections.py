"""Which connections there are to whom, and which of them to use.

Two nodes that dial each other at the same moment get two connections. Both work and none is closed in a hurry: each
side uses the one that the smaller id dialed, and only the smaller id closes the other, later, when nothing uses it and
the better one is in good health. So there is never a moment without one, and no two sides that close each other's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

from node.wire.ids import NodeId

REDUNDANT_AFTER_S = 5.0
HEALTHY_S = 1.5
"""Three heartbeats: a better connection that is silent for longer is no reason to close the other."""

PER_PEER_LIMIT = 4
"""Two suffice; a peer that keeps connecting loses its oldest."""


class HasPeer(Protocol):
    """What is to be known of a connection here."""

    peer: NodeId
    dialed: bool
    life: bytes
    admitted_s: float

    @property
    def links(self) -> int:
        """How many link streams it carries."""

    @property
    def heard_s(self) -> float:
        """When the last byte came."""


C = TypeVar("C", bound=HasPeer)


class Connections(Generic[C]):
    """Admitted connections by peer."""

    def __init__(self, own_id: NodeId) -> None:
        self._own_id = own_id
        self._by_peer: dict[NodeId, list[C]] = {}

    def peers(self) -> list[NodeId]:
        """Everyone we are connected to."""
        return list(self._by_peer)

    def __contains__(self, peer: NodeId) -> bool:
        return peer in self._by_peer

    def best_of_each(self) -> Iterable[C]:
        """One connection per peer."""
        return [self._best(held) for held in self._by_peer.values()]

    def all(self) -> list[C]:
        """Every one of them."""
        return [connection for held in self._by_peer.values() for connection in held]

    def to(self, peer: NodeId) -> list[C]:
        """Every one to that peer."""
        return list(self._by_peer.get(peer, ()))

    def best(self, peer: NodeId) -> C | None:
        """The one to use for what is new."""
        held = self._by_peer.get(peer)
        return self._best(held) if held else None

    def add(self, connection: C) -> tuple[bool, list[C]]:
        """Take it in: whether it is the first to its peer, and those that it makes obsolete.

        Obsolete are those of an earlier life of the peer's process, and the oldest beyond `PER_PEER_LIMIT`. They are
        not held any more, so each is named once.
        """
        held = self._by_peer.setdefault(connection.peer, [])
        first = not held
        obsolete = [other for other in held if other.life != connection.life]
        same_life = [other for other in held if other.life == connection.life]
        obsolete += same_life[: max(0, len(same_life) + 1 - PER_PEER_LIMIT)]
        held[:] = [*(other for other in held if other not in obsolete), connection]
        return first, obsolete

    def remove(self, connection: C) -> bool:
        """Let it go; whether it was the last to its peer."""
        held = self._by_peer.get(connection.peer, [])
        if connection in held:
            held.remove(connection)
        if not held:
            return self._by_peer.pop(connection.peer, None) is not None
        return False

    def redundant(self, now: float) -> list[C]:
        """Those that can be closed without anybody noticing."""
        found = []
        for peer, held in self._by_peer.items():
            if len(held) < 2 or peer < self._own_id:
                continue
            best = self._best(held)
            if now - best.heard_s > HEALTHY_S or now - best.admitted_s < REDUNDANT_AFTER_S:
                continue
            found += [
                other
                for other in held
                if other is not best and not other.links and now - other.admitted_s >= REDUNDANT_AFTER_S
            ]
        return found

    def _best(self, held: list[C]) -> C:
        newest_life = held[-1].life
        return min(
            (connection for connection in held if connection.life == newest_life),
            key=lambda connection: (connection.dialed != (self._own_id < connection.peer), connection.admitted_s),
        )
