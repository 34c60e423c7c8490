"""Gradient's Parallax, phase 1: chains by capacity, shared out by FLOPS, as many as score best by Z(k) = k² / s*.

Its greedy builder: the largest node first, the smallest that completes a chain when another chain stays possible. (Its
dynamic program finds the same or fewer stages; it takes too long on pools of dozens of unequal nodes.)
"""

from __future__ import annotations

from collections.abc import Sequence

from node.plan.costs.model import ModelCost
from node.plan.machines.pool import PoolNode
from node.plan.placement.allocation import Stage
from node.plan.placement.water_filling import water_fill
from tests.bench.rivals.fixed_chains import tiled
from tests.bench.rivals.same_memory import capacity, chain_rooms


def best_chains(model: ModelCost, nodes: Sequence[PoolNode]) -> list[list[PoolNode]]:
    """As many disjoint chains as maximise k² / Σ stages."""
    left = sorted(nodes, key=lambda n: (-capacity(model, n), n.node_id))
    chains: list[list[PoolNode]] = []
    while sum(capacity(model, n) for n in left) >= model.layers:
        chain = _chain(model, left)
        if chain is None:
            break
        chains.append(chain)
        left = [n for n in left if n not in chain]
    stages = [len(chain) for chain in chains]
    best = max(range(len(chains)), key=lambda k: ((k + 1) ** 2 / sum(stages[: k + 1]), -k), default=-1)
    return chains[: best + 1]


def filled(model: ModelCost, chain: list[PoolNode]) -> tuple[Stage, ...]:
    """Layers in proportion to FLOPS, as far as each node holds them."""
    return tiled(chain, water_fill(chain_rooms(model, chain), [n.flops for n in chain], model.layers))


def _chain(model: ModelCost, left: Sequence[PoolNode]) -> list[PoolNode] | None:
    chain: list[PoolNode] = []
    free = list(left)
    need = model.layers
    while free:
        closing = [n for n in free if capacity(model, n, first=not chain, last=True) >= need]
        chosen = closing[-1] if closing and chain else free[0]
        chain.append(chosen)
        free.remove(chosen)
        need -= capacity(model, chosen, first=len(chain) == 1)
        if sum(chain_rooms(model, chain)) >= model.layers:
            return chain
    return None
