"""Is the peer alive, how far is it, and how do its clock and ours differ? Stamps in, answers out; no I/O.

Clocks are compared as NTP does it: a ping has four stamps, and the one with the smallest round trip of the last ten
seconds waited least in queues, so its offset is the best.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from node.wire.control import Pong

INTERVAL_S = 0.5
"""Between two pings to a neighbour that carries a link, and to each where there are few."""

MANY = 16
LONGEST_INTERVAL_S = 2.0
"""To each of more than `MANY` neighbours: 256 of them cost about 12 kB/s so."""

SILENT_AFTER_S = 3.5
"""Seven missed pings. A stopped process must be gone within 5 s, a busy one on two cores must not."""

UNANSWERED_AFTER_S = 4.0
"""Bytes that come while no answer does: the way there is dead, or the peer reads nothing."""

LONGEST_PATIENCE_S = 12.0
"""Whatever a peer has been like."""

REMEMBERED_S = 60.0
"""How long the longest silence of a peer counts, at most twice that."""

WINDOW = 20
"""Samples: ten seconds of pings."""

OUTSTANDING_LIMIT = 32
"""Pings whose answer may still come; a silent peer is given up long before."""


def interval_s(neighbours: int, *, carries_links: bool) -> float:
    """How long to wait between two pings to one of so many neighbours."""
    return INTERVAL_S if carries_links else min(LONGEST_INTERVAL_S, INTERVAL_S * max(1.0, neighbours / MANY))


class SilenceWatch:
    """Says when a peer has been silent for too long: longer than it has ever been lately, and than `least_s`.

    A machine that compiles something is silent for a second now and then, and for three when it is worse. So a peer may
    be silent for twice as long as it was in the last minute. Silence is measured by the ticks of our own loop: the time
    by which a tick comes late is the time in which we could not listen ourselves, and does not count.
    """

    def __init__(self, now: float, least_s: float = SILENT_AFTER_S) -> None:
        self._least_s = least_s
        self._heard_s = now
        self._ticked_s = now
        self._seen_s = -math.inf
        """The last sign of life that was counted."""
        self._longest = (0.0, 0.0)
        """The longest silence in this minute and in the one before."""
        self._minute_s = now

    def tick(self, now: float, heard_s: float, expected_s: float = INTERVAL_S) -> bool:
        """Called every `expected_s` with the time of the last sign of life; True when the peer must be given up."""
        late_s = max(0.0, now - self._ticked_s - expected_s)
        self._ticked_s = now
        if heard_s > self._seen_s:
            self._learn(heard_s - self._heard_s - late_s, now)
            self._seen_s = heard_s
            self._heard_s = max(self._heard_s, heard_s)
        self._heard_s = min(now, self._heard_s + late_s)
        return now - self._heard_s > self.patience_s(expected_s)

    def patience_s(self, expected_s: float = INTERVAL_S) -> float:
        """What silence is borne now from a peer that speaks every `expected_s`."""
        usual_s = max(self._least_s, 3 * expected_s + INTERVAL_S)
        return max(usual_s, min(LONGEST_PATIENCE_S, 2 * max(self._longest)))

    def _learn(self, silence_s: float, now: float) -> None:
        if now - self._minute_s > REMEMBERED_S:
            self._longest, self._minute_s = (0.0, self._longest[0]), now
        self._longest = (max(self._longest[0], silence_s), self._longest[1])


@dataclass(frozen=True, slots=True)
class _Sample:
    rtt_s: float
    offset_s: float


class PeerClock:
    """Round trip and clock offset of one peer. Stamps are `time.perf_counter` of either machine, in seconds."""

    def __init__(self) -> None:
        self._sent_s: dict[int, float] = {}
        self._samples: deque[_Sample] = deque(maxlen=WINDOW)
        self._next = 0

    def reset(self) -> None:
        """The peer's process began anew, perhaps after its machine did: nothing that was measured holds."""
        self._sent_s.clear()
        self._samples.clear()

    def ping(self, now: float) -> int:
        """The number for a ping that leaves now."""
        self._next += 1
        self._sent_s[self._next] = now
        if len(self._sent_s) > OUTSTANDING_LIMIT:
            del self._sent_s[min(self._sent_s)]
        return self._next

    def pong(self, pong: Pong, now: float) -> None:
        """An answer came. One that nobody asked for or that cannot be counts nothing."""
        sent_s = self._sent_s.pop(pong.number, None)
        if sent_s is None:
            return
        there_s = max(0.0, pong.sent_s - pong.received_s)
        rtt_s = now - sent_s - there_s
        offset_s = ((pong.received_s - sent_s) + (pong.sent_s - now)) / 2
        if rtt_s < 0 or not math.isfinite(offset_s):  # two stamps that are finite may have a sum that is not
            return
        self._samples.append(_Sample(rtt_s, offset_s))

    @property
    def rtt_ms(self) -> float | None:
        """The smallest round trip of the last ten seconds: the way itself, without queues. None before the first."""
        return min(sample.rtt_s for sample in self._samples) * 1000 if self._samples else None

    def to_ours(self, their_s: float) -> float | None:
        """A stamp of the peer's clock in terms of ours; None before the first round trip."""
        if not self._samples:
            return None
        return their_s - min(self._samples, key=lambda sample: sample.rtt_s).offset_s
