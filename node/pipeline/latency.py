"""Per-layer latency over the last decode steps: what a node's record tells the planner and the router."""

from __future__ import annotations

from collections import deque
from statistics import fmean, quantiles

from node.wire.records import LayerLatency

KEPT_STEPS = 256
"""About ten seconds of one busy sequence: recent enough to follow a machine that slows down."""


class LatencyWindow:
    """The last `KEPT_STEPS` decode steps' time per layer, in milliseconds."""

    def __init__(self) -> None:
        self._per_layer_ms: deque[float] = deque(maxlen=KEPT_STEPS)

    def add(self, per_layer_ms: float) -> None:
        self._per_layer_ms.append(per_layer_ms)

    def summary(self) -> LayerLatency | None:
        """None until a step was seen."""
        seen = list(self._per_layer_ms)
        if not seen:
            return None
        if len(seen) == 1:
            return LayerLatency(seen[0], seen[0], seen[0])
        cuts = quantiles(seen, n=20, method="inclusive")
        return LayerLatency(fmean(seen), cuts[9], cuts[18])
