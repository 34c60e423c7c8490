"""What our own record says of the ways to others, and when a new figure is worth telling to everyone. Pure.

Whom we reach no longer, or cannot reach, is told at once: others must not send anything that way. Whom we reach now is
told soon, together with the next ones. Figures that drift are told seldom: each tells all of them to everyone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from node.wire.records import MOST_PEERS

UNREACHED_S = 6.0
"""A member that is dialed in vain for so long is told to be unreachable: it may be about to dial us."""

NEAR_MS, NEAR_SHARE = 0.5, 0.2
"""A figure that moved by no more than one of these is the old one."""

GAINED_S, GAINED_S_PER_PEER = 0.25, 0.02
DRIFT_S, DRIFT_S_PER_PEER = 10.0, 0.25
"""Between two times that such a change is told: with 255 peers every 5 and every 64 seconds."""

LONGEST_MS = 1e8
"""A process that was stopped for weeks would measure more than a record takes."""

Changes = dict[str, object]


class ToldTrips:
    """What was told last, and when. Every `now` is seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._rtt_ms: dict[str, float] = {}
        self._mbps: dict[str, float] = {}
        self._unreachable: tuple[str, ...] = ()
        self._told_s = float("-inf")
        self._tried_since_s: dict[str, float] = {}

    def due(
        self, now: float, measured: Mapping[str, float | None], rates: Mapping[str, float], tried: Iterable[str]
    ) -> Changes:
        """The fields of our record that are to be told now, as they are or as they were told last.

        `measured`: the peers we are connected to, with their round trip in ms once there is one; `tried`: members that
        were dialed in vain.
        """
        self._tried_since_s = {peer: self._tried_since_s.get(peer, now) for peer in tried if peer not in measured}
        unreachable = tuple(sorted(p for p, since_s in self._tried_since_s.items() if now - since_s >= UNREACHED_S))
        rtt_ms = {peer: self._steady(peer, ms) for peer, ms in list(measured.items())[:MOST_PEERS] if ms is not None}
        mbps = {
            peer: told if (told := self._mbps.get(peer)) is not None and _is_near(told, rate) else rate
            for peer, rate in list(rates.items())[:MOST_PEERS]
        }
        if now - self._told_s >= self._pause_s(rtt_ms, unreachable[:MOST_PEERS], mbps):
            self._rtt_ms, self._unreachable, self._mbps = rtt_ms, unreachable[:MOST_PEERS], mbps
            self._told_s = now
        return {"rtt_ms": self._rtt_ms, "unreachable": self._unreachable, "mbps": self._mbps}

    def _pause_s(self, rtt_ms: Mapping[str, float], unreachable: tuple[str, ...], mbps: Mapping[str, float]) -> float:
        """How long after the last time these are to be told."""
        if self._rtt_ms.keys() - rtt_ms.keys() or set(unreachable) - set(self._unreachable):
            return 0.0
        if rtt_ms.keys() != self._rtt_ms.keys() or unreachable != self._unreachable:
            return GAINED_S + GAINED_S_PER_PEER * len(rtt_ms)
        if rtt_ms != self._rtt_ms or mbps != self._mbps:
            return DRIFT_S + DRIFT_S_PER_PEER * len(rtt_ms)
        return float("inf")

    def _steady(self, peer: str, ms: float) -> float:
        told = self._rtt_ms.get(peer)
        ms = min(LONGEST_MS, ms)
        near = told is not None and (abs(ms - told) <= NEAR_MS or _is_near(told, ms))
        return told if told is not None and near else round(ms, 2)


def _is_near(told: float, now: float) -> bool:
    return abs(now - told) <= NEAR_SHARE * told
