"""A pool as the search sees it: a row per node of room, times and distances, in an order that names do not decide.

Times are those of `node.plan.chain_time`, kept per layer, so that thousands of chains can be timed at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from node.plan.chain_time import node_times
from node.plan.costs.model import ModelCost
from node.plan.costs.roofline import capacity_of
from node.plan.machines.distances import Described
from node.plan.machines.missing_memory import Capacity, missing_bytes
from node.plan.machines.pool import Links, PoolNode, Workload

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class PoolTable:
    """What the search asks about a pool, for the layers of `span` with or without the model's ends."""

    def __init__(
        self,
        model: ModelCost,
        nodes: Sequence[PoolNode],
        links: Links,
        workload: Workload,
        span: tuple[int, int] | None = None,
    ) -> None:
        self.model, self.links, self.workload = model, links, workload
        self.start, self.end = span if span is not None else (0, model.layers)
        self.layers = self.end - self.start
        self.has_first, self.has_last = self.start == 0, self.end == model.layers
        self.context = min(workload.context, model.context_tokens)
        self.dense = max(0, min(model.dense_layers, self.end) - self.start) if model.experts else 0
        """Of the span's first layers, those without experts."""
        by_id = sorted(nodes, key=lambda node: node.node_id)
        distances = Described(links).distances(by_id)
        rtt_ms, byte_ms = distances.rtt_ms[: len(by_id), : len(by_id)], 8 / (distances.mbps * 1000)
        order = _order(by_id, rtt_ms, byte_ms)
        self.nodes = tuple(by_id[i] for i in order)
        self.row_of = {node.node_id: row for row, node in enumerate(self.nodes)}
        both = np.ix_(order, order)
        self.way_ms: Floats = rtt_ms[both] * distances.trips
        self.byte_ms: Floats = byte_ms[both]
        if self.nodes:
            np.fill_diagonal(self.way_ms, 0.0)
            np.fill_diagonal(self.byte_ms, 0.0)
        self.memory: Ints = np.array([node.memory_bytes for node in self.nodes], dtype=np.int64)
        times = [node_times(model, node, workload) for node in self.nodes]
        self.layer_ms: Floats = np.array([t.layer_ms for t in times])
        self.chunk_ms: Floats = np.array([t.chunk_layer_ms for t in times])
        self.head_ms: Floats = np.array([t.head_ms if self.has_last else 0.0 for t in times])
        self.overhead_ms: Floats = np.array([t.overhead_ms for t in times])
        self.large_layer_ms: Floats = np.array([t.large_layer_ms for t in times])
        self.large_head_ms: Floats = np.array([t.large_head_ms if self.has_last else 0.0 for t in times])
        self._room: dict[int, Ints] = {}

    def room(self, sequences: int) -> Ints:
        """(node, 4): layers that fit beside nothing, the embedding, the head, both, with KV cache for so many
        sequences. A first stage has the dense layers of a mixture; of others the layers are taken as sparse."""
        found = self._room.get(sequences)
        if found is None:
            model, cache = self.model, self.model.kv_layer_bytes(self.context, sequences)
            found = np.zeros((len(self.nodes), 4), dtype=np.int64)
            for kind in range(4):
                first, last = bool(kind & 1), bool(kind & 2)
                ends = model.ends_bytes(first=first and self.has_first, last=last and self.has_last)
                left = np.maximum(self.memory - ends, 0)
                dense = np.zeros(len(self.nodes), dtype=np.int64)
                if first and self.dense:
                    one = max(1, model.dense_layer_bytes + cache)
                    dense = np.minimum(self.dense, left // one)
                    left = np.where(dense < self.dense, 0, left - dense * one)
                found[:, kind] = np.minimum(self.layers, dense + left // max(1, model.sparse_layer_bytes + cache))
            self._room[sequences] = found
        return found

    def capacity_of(self, memory_bytes: int) -> Capacity:
        """Layers that so much memory has room for."""
        ends = {"has_first": self.has_first, "has_last": self.has_last}
        return capacity_of(self.model, memory_bytes, self.context, most=self.layers, **ends)

    @cached_property
    def missing_bytes(self) -> int:
        """Memory of one more node that the layers would fit with; 0 where they fit."""
        capacities = [self.capacity_of(node.memory_bytes) for node in self.nodes]
        cache = self.model.kv_layer_bytes(self.context)
        alone = self.layers * (self.model.layer_bytes + cache) + self.model.ends_bytes(first=True, last=True)
        return missing_bytes(capacities, self.layers, self.capacity_of, alone)


def _order(nodes: Sequence[PoolNode], rtt_ms: Floats, byte_ms: Floats) -> list[int]:
    """By figures, then by links, and by id only where nothing else tells them apart: a new name changes nothing."""

    def figures(node: PoolNode) -> tuple[object, ...]:
        head = -1.0 if node.head_ms is None else node.head_ms
        row = -1.0 if node.prompt_row_ms is None else node.prompt_row_ms
        return (-node.memory_bytes, -node.bandwidth, -node.flops, node.layer_ms, head, node.overhead_ms, row)

    keys = [figures(node) for node in nodes]
    if len(set(keys)) == len(keys):
        return sorted(range(len(nodes)), key=keys.__getitem__)
    near = [row.tobytes() for row in np.sort(rtt_ms, axis=1).round(9)]
    rate = [row.tobytes() for row in np.sort(byte_ms, axis=1).round(12)]
    return sorted(range(len(nodes)), key=lambda i: (keys[i], near[i], rate[i], nodes[i].region, nodes[i].node_id))


def interchangeable(nodes: Sequence[PoolNode], links: Links) -> list[tuple[PoolNode, ...]]:
    """`nodes` in groups that nobody can tell apart: equal figures and region, and no link names one of them."""
    groups: dict[tuple[object, ...], list[PoolNode]] = {}
    for node in sorted(nodes, key=lambda node: node.node_id):
        own = node.node_id if node.node_id in links.named else ""
        measured = node.layer_ms, node.head_ms, node.overhead_ms, node.prompt_row_ms
        key = (own, node.memory_bytes, node.bandwidth, node.flops, node.region, measured)
        groups.setdefault(key, []).append(node)
    return [tuple(members) for members in groups.values()]
