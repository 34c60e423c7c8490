"""What becomes of nodes that no pipeline needs: replicas where they help most, or standby with a reason.

A layer's service rate is the sum over its hosts of 1 / (layers held · time per layer): how many steps per second the
hosts could give it. A left-over node takes the window of layers whose rates are lowest in sum, aligned with a stage's
edge where that costs nothing, so that every further node works against the current bottleneck. It takes as many layers
as fit, fewer where a token through so many would take TOO_SLOW times what the best pipeline takes without it, and
stands by where a token through any window would: routing would hardly ever choose it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from node.plan.machines.missing_memory import Capacity
from node.plan.machines.pool import PoolNode
from node.plan.outlook.figures import figure
from node.plan.placement.allocation import Stage, Standby
from node.plan.placement.pool_table import PoolTable

GIB = 1024**3
TOO_SLOW = 12.0
"""A token through a replica may take this many times the best pipeline's: as long as it would wait there under load."""
FEWER = 0.6
"""Where so many layers are too slow, so many times them are tried."""


class Replicas:
    """Places left-over nodes one by one beside the stages that are held already."""

    def __init__(self, table: PoolTable, held: Sequence[Stage], step_ms: float) -> None:
        """`table` has all nodes that hold or may hold something; `held` are all stages so far, `step_ms` the time of
        the best pipeline."""
        self.table, self.step_ms = table, step_ms
        self.rates: NDArray[np.float64] = np.zeros(table.layers)
        self._fastest_ms = np.full(table.layers, np.inf)
        self._edges = {0, table.layers}
        self._room = table.room(1)
        self._layer_ms = table.layer_ms + table.chunk_ms / table.workload.output_tokens
        sent = table.model.hop_bytes(1) * (1 + table.workload.prompt_tokens / table.workload.output_tokens)
        self._hop_ms = table.way_ms + table.byte_ms * sent
        self._held: NDArray[np.int64] = np.zeros((len(held) + len(table.nodes), 3), dtype=np.int64)
        """(start, end, row) of who holds what; the first `_many` rows."""
        self._many = 0
        for stage in held:
            if stage.node_id in table.row_of:
                self._count(stage.start, stage.end, table.row_of[stage.node_id])

    def place(self, node: PoolNode, held: Stage | None = None) -> Stage | Standby:
        """A replica of the worst served layers that `node` can hold, or why it stands by.

        What it holds already (`held`) it keeps while that fits: nothing is loaded for a little more balance.
        """
        if node.barred:
            return Standby(node.node_id, f"{node.label} is given nothing: {node.barred}", barred=True)
        row = self.table.row_of[node.node_id]
        plain, first, last, both = self._room[row].tolist()
        capacity = plain, first, last, both
        kept = self._kept(capacity, held)
        least_ms = float("inf")
        for window in (kept,) if kept is not None else self._windows(capacity):
            start, end = window
            through_ms = self._through_ms(row, start, end)
            if not self.step_ms or through_ms <= TOO_SLOW * self.step_ms:
                self._count(start, end, row)
                return Stage(node.node_id, start, end)
            least_ms = min(least_ms, through_ms)
        if least_ms < float("inf"):
            return Standby(
                node.node_id,
                f"{node.label} would slow the swarm: a token would take {figure(least_ms)} ms or more through it "
                f"and takes {figure(self.step_ms)} ms without it",
            )
        needed = self.table.model.layer_bytes + self.table.model.kv_layer_bytes(self.table.context)
        return Standby(
            node.node_id,
            f"{node.label} has {node.memory_bytes / GIB:.2f} GiB for the model, "
            f"and one layer with its cache takes {needed / GIB:.2f} GiB",
        )

    def _kept(self, capacity: Capacity, held: Stage | None) -> tuple[int, int] | None:
        if held is None or held.end > self.table.layers:
            return None
        room = capacity[(held.start == 0) + 2 * (held.end == self.table.layers)]
        return (held.start, held.end) if held.layers <= room else None

    def _windows(self, capacity: Capacity) -> Iterator[tuple[int, int]]:
        """The worst served layers: as many as fit, then fewer and fewer, one at last."""
        tried: set[tuple[int, int]] = set()
        while any(capacity):
            window = self._window(capacity)
            if window is not None and window not in tried:
                tried.add(window)
                yield window
            plain, first, last, both = (int(room * FEWER) if room > 1 else 0 for room in capacity)
            capacity = plain, first, last, both

    def _count(self, start: int, end: int, row: int) -> None:
        """Adds what a host gives these layers."""
        layer_ms = float(self._layer_ms[row])
        self.rates[start:end] += 1000 / (layer_ms * (end - start))
        held = self._fastest_ms[start:end]
        np.minimum(held, layer_ms, out=held)
        self._edges.update((start, end))
        if self._many == len(self._held):
            self._held = np.concatenate([self._held, np.zeros_like(self._held)])
        self._held[self._many] = start, end, row
        self._many += 1

    def _window(self, capacity: Capacity) -> tuple[int, int] | None:
        """The worst served layers, as many as fit there; None when not one does."""
        layers = self.table.layers
        if capacity[3] >= layers:
            return 0, layers
        total = np.concatenate([[0.0], np.cumsum(self.rates)])
        choices: list[tuple[float, bool, int, int]] = []
        first, last = min(capacity[1], layers - 1), min(capacity[2], layers - 1)
        if first > 0:
            choices.append((float(total[first]) / first, False, 0, first))
        if last > 0:
            choices.append((float(total[-1] - total[-1 - last]) / last, False, layers - last, layers))
        width = min(capacity[0], layers - 2)
        if width > 0:
            sums = (total[1 + width : layers] - total[1 : layers - width]) / width
            lowest = float(sums.min())
            for start in (np.flatnonzero(sums <= lowest * (1 + 1e-9)) + 1).tolist():
                aligned = start in self._edges or start + width in self._edges
                choices.append((lowest, not aligned, start, start + width))
        if not choices:
            return None
        return min((round(rate, 9), unaligned, start, end) for rate, unaligned, start, end in choices)[2:]

    def _through_ms(self, row: int, start: int, end: int) -> float:
        """One user's time per token through a node, its neighbours being the nearest hosts of the layers around."""
        fastest = self._fastest_ms[start:end]
        saved = float(fastest[np.isfinite(fastest)].sum())
        starts, ends, rows = self._held[: self._many].T
        before, after = rows[(starts < start) & (start <= ends)], rows[(starts <= end) & (end < ends)]
        hops = float(self._hop_ms[before, row].min()) if before.size else 0.0
        hops += float(self._hop_ms[row, after].min()) if after.size else 0.0
        own_ms = float(self._layer_ms[row]) * (end - start) + float(self.table.overhead_ms[row])
        return self.step_ms - saved + own_ms + hops
