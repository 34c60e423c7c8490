"""Layers that a node may hold in every scheduler's plan: with KV room for as many sequences as ours reserves."""

from __future__ import annotations

from node.plan.costs.model import ModelCost
from node.plan.costs.roofline import layer_capacity
from node.plan.machines.pool import PoolNode

CONTEXT = 768
SEQUENCES = 16


def capacity(model: ModelCost, node: PoolNode, *, first: bool = False, last: bool = False) -> int:
    """Layers, with the embedding beside them at the first stage and the LM head at the last."""
    return layer_capacity(model, node.memory_bytes, first=first, last=last, context=CONTEXT, sequences=SEQUENCES)


def chain_rooms(model: ModelCost, chain: list[PoolNode]) -> list[int]:
    """The capacity of each node of a chain, by its place."""
    last = len(chain) - 1
    return [capacity(model, node, first=i == 0, last=i == last) for i, node in enumerate(chain)]
