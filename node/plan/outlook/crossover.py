"""Up to which round trip it pays one user that the model is split: where the best chain and the best node alone tie.

A chain's time per token grows evenly with the round trip between its nodes, so that each chain ties with the best
single node at one round trip, and the answer is the largest of these. Looked at are chains of the fastest nodes behind
every tail: all splits of two, else the layers at the fastest, or shared out evenly by speed, which suits long prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from node.plan.chain_time import ChainTime, HopTime, NodeTimes, hop_time, node_times
from node.plan.costs.model import ModelCost
from node.plan.costs.roofline import layer_capacity
from node.plan.machines.pool import Pool, PoolNode, Workload
from node.plan.outlook.figures import milliseconds

PAYS_MS = 0.1
"""A round trip below which nobody's machines are."""
MOST_STAGES = 6
"""Longer chains pay less and less."""
MOST_NODES = 12
"""Of the fastest ones that are looked at."""


@dataclass(frozen=True, slots=True)
class Crossover:
    """Where splitting and not splitting tie."""

    rtt_ms: float
    """Below this round trip between its nodes a chain is faster for one user; 0: at none."""
    alone: str
    """The id of the node that is fastest by itself."""
    chain: tuple[str, ...]
    """The ids of those that tie with it; empty where none does."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    node: PoolNode
    times: NodeTimes
    capacity: dict[tuple[bool, bool], int]
    """Layers that fit, by whether it is the first and the last stage."""


def crossover(model: ModelCost, pool: Pool, work: Workload) -> Crossover | None:
    """For the nodes of `pool` that may hold layers; None where no single one holds the model: it must be split."""
    able = [_candidate(model, node, work) for node in pool.nodes if not node.barred]
    alone = [
        (_alone_ms(model, one, work), one.node.node_id) for one in able if one.capacity[True, True] >= model.layers
    ]
    if not alone:
        return None
    best_ms, best = min(alone)
    found = Crossover(0.0, best, ())
    for nodes, counts in _chains(model, able):
        near = _chain(model, pool, nodes, counts, 0.0).token_ms(work)
        if near >= best_ms:
            continue
        far = _chain(model, pool, nodes, counts, 1.0).token_ms(work)
        if (tie_ms := (best_ms - near) / (far - near)) > found.rtt_ms:
            found = Crossover(tie_ms, best, tuple(one.node.node_id for one in nodes))
    return found


def crossover_text(found: Crossover | None, names: dict[str, str], nodes: int) -> str:
    """A sentence for people; empty where there is nothing to choose."""
    if nodes < 2:
        return ""
    if found is None:
        return "no node holds the model alone: it is split whatever the round trips"
    alone = names[found.alone]
    if found.rtt_ms < PAYS_MS:
        return f"splitting pays at no round trip: {alone} alone is the fastest for one user"
    chain = " + ".join(names[node_id] for node_id in found.chain)
    return f"splitting pays below {milliseconds(found.rtt_ms)} round trip: {chain} against {alone} alone, for one user"


def _candidate(model: ModelCost, node: PoolNode, work: Workload) -> _Candidate:
    context = min(work.context, model.context_tokens)
    capacity = {
        (first, last): layer_capacity(model, node.memory_bytes, first=first, last=last, context=context)
        for first in (False, True)
        for last in (False, True)
    }
    return _Candidate(node, node_times(model, node, work), capacity)


def _alone_ms(model: ModelCost, one: _Candidate, work: Workload) -> float:
    chain = ChainTime([one.times.stage(model.layers, last=True)], [HopTime(0.0)], model.hop_bytes(1))
    return chain.token_ms(work)


def _chain(
    model: ModelCost, pool: Pool, nodes: Sequence[_Candidate], counts: Sequence[int], rtt_ms: float
) -> ChainTime:
    """With this round trip between all, and the rates that there are."""
    stages = [
        one.times.stage(count, last=i == len(nodes) - 1)
        for i, (one, count) in enumerate(zip(nodes, counts, strict=True))
    ]
    ways = replace(pool.links, rtt_ms={}, near_ms=rtt_ms, far_ms=rtt_ms)
    hops = [hop_time(ways, one.node, nodes[(i + 1) % len(nodes)].node) for i, one in enumerate(nodes)]
    return ChainTime(stages, hops, model.hop_bytes(1))


def _chains(model: ModelCost, able: Sequence[_Candidate]) -> Iterator[tuple[list[_Candidate], list[int]]]:
    fastest = sorted(able, key=lambda one: (one.times.layer_ms, one.node.node_id))[:MOST_NODES]
    for tail in fastest:
        others = [one for one in fastest if one is not tail]
        for count in range(1, min(MOST_STAGES, len(fastest), model.layers)):
            nodes = [*others[:count], tail]
            room = [one.capacity[i == 0, i == count] for i, one in enumerate(nodes)]
            if min(room) < 1 or sum(room) < model.layers:
                continue
            if count == 1:  # the fewest hops: these mostly tie last, so every split is looked at
                for first in range(max(1, model.layers - room[1]), min(room[0], model.layers - 1) + 1):
                    yield nodes, [first, model.layers - first]
                continue
            yield nodes, _fastest_first(model.layers, nodes, room)
            yield nodes, _by_speed(model.layers, nodes, room)


def _fastest_first(layers: int, nodes: Sequence[_Candidate], room: Sequence[int]) -> list[int]:
    counts = [1] * len(nodes)
    left = layers - len(nodes)
    for i in sorted(range(len(nodes)), key=lambda i: (nodes[i].times.layer_ms, i)):
        more = min(room[i] - 1, left)
        counts[i] += more
        left -= more
    return counts


def _by_speed(layers: int, nodes: Sequence[_Candidate], room: Sequence[int]) -> list[int]:
    """Layer by layer to the stage that then takes least for a chunk."""
    counts = [1] * len(nodes)
    for _ in range(layers - len(nodes)):
        free = [i for i in range(len(nodes)) if counts[i] < room[i]]
        counts[min(free, key=lambda i: ((counts[i] + 1) * nodes[i].times.chunk_layer_ms, i))] += 1
    return counts
