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
SILENT_AFTER_S = 3.5
"""Seven missed pings. A stopped process must be gone within 5 s, a busy one on two cores must not."""

WINDOW = 20
"""Samples: ten seconds of pings."""

OUTSTANDING_LIMIT = 32
"""Pings whose answer may still come; a silent peer is given up long before."""


class SilenceWatch:
    """Measures silence by the ticks of our own loop: the time in which we ourselves stood still does not count."""

    def __init__(self, now: float) -> None:
        self._heard_s = now
        self._ticked_s = now

    def tick(self, now: float, heard_s: float) -> bool:
        """Called every `INTERVAL_S` with the time of the last byte that came; True when the peer must be given up."""
        stall_s = now - self._ticked_s - 2 * INTERVAL_S
        self._ticked_s = now
        self._heard_s = max(self._heard_s, heard_s)
        if stall_s > 0:
            self._heard_s = min(now, self._heard_s + stall_s)
        return now - self._heard_s > SILENT_AFTER_S


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
