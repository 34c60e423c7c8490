"""What a swarm asks of whoever dials: names whom it wants to be connected with, and when."""

from __future__ import annotations

from typing import Protocol

from node.wire.ids import NodeId


class Reach(Protocol):
    """Implemented by `dialer`."""

    def pursue(self, peer: NodeId, *, polite: bool, source: NodeId | None = None) -> None:
        """Be connected to this peer from now on. A repeated call changes nothing.

        `polite`: the peer has just heard of us too, so only one of the two needs to dial. `source` is who told us of
        it; None for what we know ourselves.
        """

    def forget(self, peer: NodeId) -> None:
        """It said goodbye: when it comes back, it remembers us and dials."""

    def hurry(self, peer: NodeId) -> None:
        """There is reason to believe that it can be reached now, or it is needed now."""

    def lost(self, peer: NodeId) -> None:
        """We are not connected to it any more."""

    def is_hopeless(self, peer: NodeId) -> bool:
        """Whether the last tries to reach it have all failed."""
