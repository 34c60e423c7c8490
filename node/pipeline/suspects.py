"""Nodes that a head keeps away from for a while, because of what they did to its requests and not of what they say.

A node that took a sequence and said nothing more, whose frames cannot be, or that refuses again and again for lack of
room that its record tells. The first time it is avoided for `FIRST_S`, each time after it twice as long; an answer that
comes through it clears it. It is used all the same where there is no other way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from node.wire.records import NodeRecord

FIRST_S, MOST_S = 60.0, 600.0
"""The first is several times what finding it out costs: twenty seconds of silence, where steps are slow. Whoever asks a
few times a minute would else meet it nearly each time."""
MOST_REFUSALS = 3
"""In a row, with no answer between them: of heads that ask for the same room at once, some lose once or twice."""
MOST_SUSPECTS = 1024
"""As many as a swarm has members; then those whose time has passed are forgotten, and the oldest."""


@dataclass(slots=True)
class _Suspect:
    reason: str
    times: int
    until_s: float


@dataclass(slots=True)
class _Refusals:
    """Of one node, in a row."""

    times: int = 0
    """Its next record told that there was room."""
    kv_tokens: int | None = None
    """Of one that its record has not told about yet."""
    seq: int = 0


class Suspects:
    """Those of one head."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._known: dict[str, _Suspect] = {}
        self._refusals: dict[str, _Refusals] = {}

    def blame(self, node: str, reason: str) -> float:
        """It did it once more; how many seconds it is avoided from now on."""
        former = self._known.pop(node, None)
        times = former.times + 1 if former is not None else 1
        for_s = min(MOST_S, FIRST_S * 2.0 ** min(times - 1, 16))
        self._known[node] = _Suspect(reason, times, self._clock() + for_s)
        if len(self._known) > MOST_SUSPECTS:
            del self._known[next(iter(self._known))]
        return for_s

    def refused(self, node: str, kv_tokens: int, seq: int) -> None:
        """It said that it has no room for so many tokens. Its record was the one of this number then; what the next one
        tells shows whether that was so: answers grow, and fill within a second what was free."""
        known = self._refusals.setdefault(node, _Refusals())
        known.kv_tokens, known.seq = kv_tokens, seq
        if len(self._refusals) > MOST_SUSPECTS:
            del self._refusals[next(iter(self._refusals))]

    def heard(self, record: NodeRecord) -> float | None:
        """It has told how it is; for how long it is avoided, where it has refused too often what it had room for."""
        known = self._refusals.get(record.node_id)
        if known is None or known.kv_tokens is None or record.seq <= known.seq:
            return None
        if record.kv_tokens_total - record.kv_tokens_used < known.kv_tokens:
            del self._refusals[record.node_id]
            return None
        known.times, known.kv_tokens = known.times + 1, None
        if known.times < MOST_REFUSALS:
            return None
        del self._refusals[record.node_id]
        reason = f"it refused {MOST_REFUSALS} sequences in a row for lack of room that its record tells"
        return self.blame(record.node_id, reason)

    def clear(self, node: str) -> bool:
        """An answer came through it; whether it was suspected."""
        self._refusals.pop(node, None)
        return self._known.pop(node, None) is not None

    def reason(self, node: str) -> str:
        return self._known[node].reason if node in self._known else ""

    def now(self) -> frozenset[str]:
        """Those to keep away from."""
        now_s = self._clock()
        return frozenset(node for node, suspect in self._known.items() if suspect.until_s > now_s)

    def next_change_s(self) -> float:
        """When one of them may be used again."""
        now_s = self._clock()
        return min((s.until_s for s in self._known.values() if s.until_s > now_s), default=float("inf"))
