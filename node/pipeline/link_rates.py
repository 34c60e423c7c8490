"""How fast prompts come in from each neighbour: what its link carries, seen on frames that are sent anyway.

Only large frames tell: a decode step's few kilobytes take as long as the way, whatever the link.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from statistics import median

from node.wire.ids import NodeId

LEAST_BYTES = 64 * 1024
"""Half a millisecond of a gigabit link; smaller frames are lost in the error of the clocks."""
LEAST_MS = 0.5
"""A frame that seems to have taken less was faster than the clocks can tell."""
KEPT_FRAMES = 9
"""The median of so many outlasts a few that met others on their way."""
MOST_PEERS = 64
"""The last ones to send: a record must stay small, and a node has few neighbours in its chains."""
MOST_MBPS = 1e6


class LinkRates:
    """The last large frames by neighbour."""

    def __init__(self) -> None:
        self._seen: dict[NodeId, deque[float]] = {}

    def add(self, peer: NodeId, sent_bytes: int, wire_ms: float, rtt_ms: float) -> None:
        """A frame came: `wire_ms` from the first byte sent to the last one read, half of `rtt_ms` of it on the way."""
        if sent_bytes >= LEAST_BYTES and 0 < wire_ms < 1e6:
            took_ms = max(LEAST_MS, wire_ms - rtt_ms / 2)
            seen = self._seen.pop(peer, None) or deque(maxlen=KEPT_FRAMES)
            seen.append(sent_bytes * 8 / 1000 / took_ms)
            self._seen[peer] = seen
            if len(self._seen) > MOST_PEERS:
                del self._seen[next(iter(self._seen))]

    def told(self, members: Mapping[NodeId, object]) -> dict[str, float]:
        """Megabits per second from each of `members` that has sent enough; the others are forgotten."""
        self._seen = {peer: seen for peer, seen in self._seen.items() if peer in members}
        return {peer: round(min(MOST_MBPS, median(seen)), 1) for peer, seen in self._seen.items()}
