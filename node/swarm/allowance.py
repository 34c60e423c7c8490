"""How much one member may make us do. A bucket fills at a steady rate and is emptied by what is heard.

What is over the allowance is dropped before it costs a signature's check. Whoever goes on all the same is flooding: the
neighbour that *sends* it, never one that is merely named in it.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

HEARD_PER_S, HEARD_BURST = 300.0, 16_384.0
"""Statements of any age that come from one neighbour: old ones cost a look each and no check, so more may come, and a
newcomer may be told of everyone by two neighbours at once."""

OWN_PER_S, OWN_BURST = 10.0, 60.0
"""Statements of one signer. An honest one makes at most four statuses, four trips and a profile or two a second, and
all of them at once when it has found the swarm again."""

RELAYED_PER_S, RELAYED_BURST = 100.0, 8192.0
"""New statements that one neighbour passes on for others; the burst is what a newcomer hears of a thousand members,
four parts each, with as much again. A check takes about a tenth of a millisecond, so this is one percent of a core."""

FAULTS_PER_S, FAULTS_BURST = 1.0, 20.0
"""Statements that one neighbour passes on and that are badly signed or cannot be read. An honest relay has checked what
it passes on; only one of another version finds good what we do not."""

ASKS_PER_S, ASKS_BURST = 2.0, 20.0
"""Questions of one neighbour; each may lead to all that we know."""

PATIENCE = 200.0
"""Dropped statements of one flood, until its sender is disconnected; they are forgiven at the same rate as they may be
sent. A neighbour that was stopped and goes on with a full buffer stays below it."""

REMEMBERED = 8192


@dataclass(slots=True)
class _Level:
    left: float
    over: float
    at_s: float


class Allowance(Generic[K]):
    """One bucket for each key. Every `now` is seconds of one monotonic clock."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s, self._burst = per_s, burst
        self._levels: dict[K, _Level] = {}

    def take(self, key: K, now: float) -> bool:
        """Whether one more is within the allowance of `key`; it is counted either way."""
        level = self._levels.pop(key, None) or _Level(self._burst, 0.0, now)
        gained = max(0.0, now - level.at_s) * self._per_s
        level.left, level.over, level.at_s = min(self._burst, level.left + gained), max(0.0, level.over - gained), now
        self._levels[key] = level  # at the end: the one that was not heard of longest is forgotten first
        if len(self._levels) > REMEMBERED:
            del self._levels[next(iter(self._levels))]
        if level.left >= 1:
            level.left -= 1
            return True
        level.over += 1
        return False

    def is_flood(self, key: K) -> bool:
        """Whether `key` has gone on for too long over its allowance."""
        level = self._levels.get(key)
        return level is not None and level.over > PATIENCE

    def forget(self, key: K) -> None:
        """It begins anew."""
        self._levels.pop(key, None)
