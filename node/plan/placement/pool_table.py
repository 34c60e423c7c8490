"""A pool as the search sees it: classes of interchangeable nodes, their capacities, speeds and distances.

Nodes are interchangeable when memory, rates, measurements and region are equal and no link names one of them. The
search then chooses classes, and the choice among equals falls to what each holds now, then to its id.

One user's time per generated token is the sum over stages of n·t(layer) and over hops of their time, where a layer's
time is its decode step's plus its share of the prompt: t = decode(1) + prefill(P) / O for P prompt and O output tokens.
A hop likewise carries one token's activations per step and the prompt's once: slow links cost what they really cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from node.plan.costs.model import ModelCost
from node.plan.costs.roofline import capacity_of, decode_cost, fitted_efficiency, fitted_head_efficiency, prefill_cost
from node.plan.machines.missing_memory import Capacity, missing_bytes
from node.plan.machines.pool import Links, PoolNode, Workload
from node.plan.placement.allocation import Objective

USERS_PER_NODE = 4
"""Users whom throughput reckons with where the workload does not name more."""
LARGE_BATCH = 16
"""Sequences of the larger of the two steps between which a step's time is interpolated."""


@dataclass(frozen=True, slots=True)
class NodeClass:
    """Nodes that nobody can tell apart."""

    members: tuple[PoolNode, ...]
    """By id."""
    capacity: Capacity
    """Layers that fit beside: nothing, the embedding, the head, both."""
    room: int
    """The most of these: the first layers of some models are so small that more fit in spite of the embedding."""
    layer_ms: float
    """Per token of one user."""
    large_layer_ms: float
    """Per step of LARGE_BATCH users."""
    head_ms: float
    """The LM head's, per token of one user."""
    large_head_ms: float
    """Per step of LARGE_BATCH users."""

    @property
    def node(self) -> PoolNode:
        """One of them."""
        return self.members[0]


class PoolTable:
    """What the search asks about a pool, for `layers` layers with or without the model's ends."""

    def __init__(
        self,
        model: ModelCost,
        nodes: Sequence[PoolNode],
        links: Links,
        objective: Objective,
        workload: Workload,
        span: tuple[int, int],
        sequences: int = 1,
    ) -> None:
        """`span` are the layers to place, `sequences` those whose KV cache must fit beside them."""
        self.model, self.links, self.objective, self.workload = model, links, objective, workload
        self.layers = span[1] - span[0]
        self.has_first, self.has_last = span[0] == 0, span[1] == model.layers
        self.sequences = sequences
        self.context = min(workload.context, model.context_tokens)
        self._one = decode_cost(model, 1, self.context)
        self._many = decode_cost(model, LARGE_BATCH, self.context)
        self._prompt = prefill_cost(model, workload.prompt_tokens)
        self.classes = tuple(self._class(members) for members in interchangeable(nodes, links))
        self.room = sum(len(c.members) * c.room for c in self.classes)
        """Layers that all nodes together could hold."""
        self.users = max(workload.users, USERS_PER_NODE * len(nodes))
        """Users whom throughput is made for."""
        self._hops: dict[tuple[int, int], float] = {}
        self._returns: dict[tuple[int, int], float] = {}

    def _class(self, members: tuple[PoolNode, ...]) -> NodeClass:
        node, work, one, many, prompt = members[0], self.workload, self._one, self._many, self._prompt
        efficiency = fitted_efficiency(self.model, node)
        share = prompt.layer_ms(node, efficiency) / work.output_tokens
        head_efficiency = fitted_head_efficiency(self.model, node)
        head_share = prompt.head_ms(node, head_efficiency) / work.output_tokens
        capacity = self.capacity_of(node.memory_bytes)
        return NodeClass(
            members,
            capacity,
            max(capacity),
            one.layer_ms(node, efficiency) + share,
            many.layer_ms(node, efficiency) + LARGE_BATCH * share,
            one.head_ms(node, head_efficiency) + head_share,
            many.head_ms(node, head_efficiency) + LARGE_BATCH * head_share,
        )

    def capacity_of(self, memory_bytes: int) -> Capacity:
        """Layers that so much memory has room for."""
        ends = {"has_first": self.has_first, "has_last": self.has_last}
        return capacity_of(self.model, memory_bytes, self.context, self.sequences, most=self.layers, **ends)

    @property
    def missing_bytes(self) -> int:
        """Memory of one more node that the layers would fit with; 0 where they fit."""
        capacities = [kind.capacity for kind in self.classes for _ in kind.members]
        cache = self.model.kv_layer_bytes(self.context, self.sequences)
        alone = self.layers * (self.model.layer_bytes + cache) + self.model.ends_bytes(first=True, last=True)
        return missing_bytes(capacities, self.layers, self.capacity_of, alone)

    def hop_ms(self, a: int, b: int) -> float:
        """Out of a node of class `a`, and to another of class `b`, per token of one user: overhead and activations."""
        found = self._hops.get((a, b))
        if found is None:
            left, right = self._ends_of(a, b)
            sent = self.model.hop_bytes(1) + self.model.hop_bytes(self.workload.prompt_tokens) / (
                self.workload.output_tokens
            )
            found = left.overhead_ms + self.links.hop_ms(left, right, sent)
            self._hops[a, b] = found
        return found

    def return_ms(self, tail: int, first: int) -> float:
        """The sampled token out of the tail and to the first stage; a node alone has its overhead."""
        found = self._returns.get((tail, first))
        if found is None:
            left, right = self._ends_of(tail, first)
            found = left.overhead_ms + self.links.hop_ms(left, right, 0.0)
            self._returns[tail, first] = found
        return found

    def _ends_of(self, a: int, b: int) -> tuple[PoolNode, PoolNode]:
        return self.classes[a].members[0], self.classes[b].members[-1]


def interchangeable(nodes: Sequence[PoolNode], links: Links) -> list[tuple[PoolNode, ...]]:
    """`nodes` in groups of equals, in an order that does not depend on theirs."""
    groups: dict[tuple[object, ...], list[PoolNode]] = {}
    for node in sorted(nodes, key=lambda node: node.node_id):
        own = node.node_id if node.node_id in links.named else ""
        measured = node.layer_ms, node.head_ms, node.overhead_ms
        key = (own, node.memory_bytes, node.bandwidth, node.flops, node.region, measured)
        groups.setdefault(key, []).append(node)
    return [tuple(members) for members in groups.values()]
