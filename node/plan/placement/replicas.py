"""What becomes of nodes that no pipeline needs: replicas where they help most, or standby with a reason.

A layer's service rate is the sum over its hosts of 1 / (layers held · time per layer): how many steps per second the
hosts could give it. A left-over node takes the window of layers whose rates are lowest in sum, aligned with a stage's
edge where that costs nothing, so that every further node works against the current bottleneck. It stands by when a
token through it would take TOO_SLOW times what the best pipeline takes without it: routing would hardly ever choose it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from node.plan.costs.model import ModelCost
from node.plan.machines.pool import Links, PoolNode, Workload
from node.plan.placement.allocation import Stage, Standby
from node.plan.placement.pool_table import PoolTable

GIB = 1024**3
TOO_SLOW = 12.0
"""A token through a replica may take this many times the best pipeline's: as long as it would wait there under load."""


class Spares:
    """Places left-over nodes one by one beside the stages that are held already."""

    def __init__(
        self,
        model: ModelCost,
        held: Sequence[Stage],
        nodes: Sequence[PoolNode],
        links: Links,
        workload: Workload,
        step_ms: float,
    ) -> None:
        """`held` are all stages so far, `nodes` their nodes and the left-over, `step_ms` the best pipeline's."""
        self.model, self.links, self.workload, self.step_ms = model, links, workload, step_ms
        self._nodes = {node.node_id: node for node in nodes}
        self._tables: dict[tuple[object, ...], PoolTable] = {}
        self.rates: NDArray[np.float64] = np.zeros(model.layers)
        self._fastest_ms = np.full(model.layers, np.inf)
        self._edges = {0, model.layers}
        self._hosts: dict[tuple[int, int, str, str], PoolNode] = {}
        """One host of each range and place: all of them are equally far."""
        alike = Counter((stage.start, stage.end, self._layer_ms(stage)) for stage in held)
        for (start, end, layer_ms), number in alike.items():
            self._count(start, end, layer_ms, number)
        for stage in held:
            self._show(stage)

    def place(self, node: PoolNode, held: Stage | None = None) -> Stage | Standby:
        """A replica of the worst served layers that `node` can hold, or why it stands by.

        What it holds already (`held`) it keeps while that fits: nothing is loaded for a little more balance.
        """
        if node.barred:
            return Standby(node.node_id, f"{node.label} is given nothing: {node.barred}", barred=True)
        kind = self._table(node).classes[0]
        window = self._kept(kind.capacity, held) or self._window(kind.capacity)
        if window is None:
            needed = self.model.layer_bytes + self.model.kv_layer_bytes(self.workload.context)
            return Standby(
                node.node_id,
                f"{node.label} has {node.memory_bytes / GIB:.2f} GiB for the model, "
                f"and one layer with its cache takes {needed / GIB:.2f} GiB",
            )
        start, end = window
        through_ms = self._through_ms(node, kind.layer_ms, start, end)
        if self.step_ms and through_ms > TOO_SLOW * self.step_ms:
            return Standby(
                node.node_id,
                f"{node.label} would slow the swarm: a token would take {through_ms:.3g} ms through it "
                f"and takes {self.step_ms:.3g} ms without it",
            )
        stage = Stage(node.node_id, start, end)
        self._count(start, end, kind.layer_ms, 1)
        self._show(stage)
        return stage

    def _kept(self, capacity: tuple[int, int, int, int], held: Stage | None) -> tuple[int, int] | None:
        if held is None or held.end > self.model.layers:
            return None
        room = capacity[(held.start == 0) + 2 * (held.end == self.model.layers)]
        return (held.start, held.end) if held.layers <= room else None

    def _table(self, node: PoolNode) -> PoolTable:
        """Speed and room of one node; equal nodes share it."""
        key = (node.memory_bytes, node.bandwidth, node.flops, node.layer_ms)
        if key not in self._tables:
            whole = (0, self.model.layers)
            self._tables[key] = PoolTable(self.model, [node], self.links, "latency", self.workload, whole)
        return self._tables[key]

    def _layer_ms(self, stage: Stage) -> float:
        return self._table(self._nodes[stage.node_id]).classes[0].layer_ms

    def _count(self, start: int, end: int, layer_ms: float, number: int) -> None:
        """Adds what `number` hosts give these layers."""
        self.rates[start:end] += 1000 * number / (layer_ms * (end - start))
        held = self._fastest_ms[start:end]
        np.minimum(held, layer_ms, out=held)
        self._edges.update((start, end))

    def _show(self, stage: Stage) -> None:
        node = self._nodes[stage.node_id]
        own = node.node_id if node.node_id in self.links.named else ""
        self._hosts.setdefault((stage.start, stage.end, node.region, own), node)

    def _window(self, capacity: tuple[int, int, int, int]) -> tuple[int, int] | None:
        """The worst served layers, as many as fit there; None when not one does."""
        layers = self.model.layers
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

    def _through_ms(self, node: PoolNode, layer_ms: float, start: int, end: int) -> float:
        """One user's time per token through `node`, its neighbours being the nearest hosts of the layers around."""
        fastest = self._fastest_ms[start:end]
        saved = float(fastest[np.isfinite(fastest)].sum())
        sent = self.model.hop_bytes(1) + self.model.hop_bytes(self.workload.prompt_tokens) / self.workload.output_tokens
        before = [host for (s, e, _, _), host in self._hosts.items() if s < start <= e]
        after = [host for (s, e, _, _), host in self._hosts.items() if s <= end < e]
        hops = min((self.links.hop_ms(other, node, sent) for other in before), default=0.0)
        hops += min((self.links.hop_ms(node, other, sent) for other in after), default=0.0)
        return self.step_ms - saved + layer_ms * (end - start) + hops
