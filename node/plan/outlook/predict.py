"""What a plan will achieve, and what limits it: its chains' times, asked for one workload.

The times are those of `node.plan.chain_time`, which placement, routing and simulator use as well: TTFT is a prompt's
time, its chunks overlapping, TPOT the loop. What would help is found by changing the layout and timing it again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from node.plan.chain_time import ChainTime, chain_of_nodes
from node.plan.costs.roofline import layer_capacity
from node.plan.machines.pool import PoolNode, Workload
from node.plan.outlook.crossover import Crossover, crossover
from node.plan.outlook.figures import milliseconds
from node.plan.placement.allocation import Allocation, Pipeline, Stage

LEAST_GAIN = 0.01
"""A smaller one is not worth a sentence."""


@dataclass(frozen=True, slots=True)
class NodeMemory:
    """What a node's memory goes to."""

    node_id: str
    weight_bytes: int
    kv_bytes: int
    """For the users that its pipelines serve."""
    memory_bytes: int
    """All that it may use."""


@dataclass(frozen=True, slots=True)
class TimePart:
    """Part of one decode step."""

    what: str
    """A node's id, or two ids for the hop between them."""
    milliseconds: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """For one workload."""

    ttft_ms: float
    """One user, an idle swarm."""
    tpot_ms: float
    """Likewise."""
    tokens_per_s: float
    """One user, while tokens come."""
    users: int
    users_tokens_per_s: float
    """All users together."""
    users_tpot_ms: float
    """Each of them."""
    memory: tuple[NodeMemory, ...]
    """By node id, of every node that holds layers."""
    parts: tuple[TimePart, ...]
    """One user's decode step along the fastest pipeline, in order."""
    bottleneck: str
    """What limits the swarm and what would help, in a sentence."""
    splitting: Crossover | None = None
    """Up to which round trip it pays one user; None where the model has to be split."""


def predict(plan: Allocation, workload: Workload | None = None) -> Prediction:
    """What `plan` achieves under `workload` (by default the one that it was made for)."""
    work = workload or plan.workload
    memory = _memory(plan, work)
    timed = [(chain_of(plan, pipeline, work), pipeline) for pipeline in plan.pipelines]
    if not timed:
        reason = "no chain of ready ranges covers the model"
        return Prediction(0.0, 0.0, 0.0, work.users, 0.0, 0.0, memory, (), reason)
    chain, fastest = min(timed, key=lambda pair: pair[0].step_ms())
    tpot = chain.step_ms()
    total = _users_rate(timed, work)
    parts = _time_parts(fastest, chain)
    return Prediction(
        ttft_ms=chain.prompt_ms(work.prompt_tokens),
        tpot_ms=tpot,
        tokens_per_s=1000 / tpot,
        users=work.users,
        users_tokens_per_s=total,
        users_tpot_ms=1000 * work.users / total,
        memory=memory,
        parts=parts,
        bottleneck=_bottleneck(plan, fastest, work, parts),
        splitting=crossover(plan.model, plan.pool, work),
    )


def chain_of(plan: Allocation, pipeline: Pipeline, work: Workload) -> ChainTime:
    """The times of one of the plan's pipelines."""
    return chain_of_nodes(plan.model, plan.pool.links, _nodes(plan, pipeline), pipeline.ran, work)


def _time_parts(pipeline: Pipeline, chain: ChainTime) -> tuple[TimePart, ...]:
    """A step's parts in order; they add up to it."""
    ids = [stage.node_id for stage in pipeline.stages]
    parts: list[TimePart] = []
    for i, (node_id, stage, hop) in enumerate(zip(ids, chain.stages, chain.hops, strict=True)):
        parts.append(TimePart(node_id, stage.batch_step_ms(1)))
        if len(ids) > 1:
            is_back = i == len(ids) - 1
            sent = 0.0 if is_back else chain.token_bytes
            parts.append(TimePart(f"{node_id}→{ids[0] if is_back else ids[i + 1]}", hop.way_ms + sent * hop.byte_ms))
    return tuple(parts)


def _nodes(plan: Allocation, pipeline: Pipeline) -> list[PoolNode]:
    by_id = {node.node_id: node for node in plan.pool.nodes}
    return [by_id[stage.node_id] for stage in pipeline.stages]


def _users_rate(timed: Sequence[tuple[ChainTime, Pipeline]], work: Workload) -> float:
    """Tokens per second of all: users go to pipelines in proportion to what these can do."""
    total = sum(pipeline.tokens_per_s for _, pipeline in timed)
    ordered = sorted(timed, key=lambda pair: (pair[1].token_ms, pair[1].stages[0].node_id))
    left, rate = work.users, 0.0
    for i, (chain, pipeline) in enumerate(ordered):
        part = left if i == len(ordered) - 1 else min(left, math.ceil(work.users * pipeline.tokens_per_s / total))
        if part > 0:
            rate += chain.tokens_per_s(max(1, min(part, pipeline.sequences)), work)
        left -= part
    return rate


def _memory(plan: Allocation, work: Workload) -> tuple[NodeMemory, ...]:
    held: dict[str, list[Stage]] = {}
    for stage in plan.stages():
        held.setdefault(stage.node_id, []).append(stage)
    memory = []
    for node_id, stages in sorted(held.items()):
        layers = sum(stage.layers for stage in stages)
        one = layers * plan.model.kv_layer_bytes(min(work.context, plan.model.context_tokens), 1)
        weights = sum(plan.model.range_bytes(stage.start, stage.end) for stage in stages)
        room = plan.node(node_id).memory_bytes
        users = max(1, min(work.users, (room - weights) // max(1, one)))
        memory.append(NodeMemory(node_id, weights, users * one, room))
    return tuple(memory)


def _bottleneck(plan: Allocation, pipeline: Pipeline, work: Workload, parts: Sequence[TimePart]) -> str:
    """The largest part of a step, and the move of one to three layers that makes one user's answers fastest."""
    names = {node.node_id: node.label for node in plan.pool.nodes}
    total = sum(part.milliseconds for part in parts)
    stages = [part for part in parts if "→" not in part.what]
    network = sum(part.milliseconds for part in parts if "→" in part.what)
    if network > total / 2:
        hop = max((s for s in parts if "→" in s.what), key=lambda s: (s.milliseconds, s.what))
        a, b = hop.what.split("→")
        return (
            f"the network limits you: {network / total:.0%} of a step; "
            f"the longest hop is {names.get(a, a)} to {names.get(b, b)}, {milliseconds(hop.milliseconds)}"
        )
    slowest = max(stages, key=lambda part: (part.milliseconds, part.what))
    said = f"{names[slowest.what]} limits you: {slowest.milliseconds / total:.0%} of a step"
    if len(stages) == 1:
        return f"{said}; it runs alone"
    best = _best_move(plan, pipeline, work, slowest.what)
    if best is None or best[0] < LEAST_GAIN:
        return said
    gain, layers, taker = best
    return f"{said}; {_number(layers)} to {names[taker]} would make one user's answers {gain:.0%} faster"


def _number(layers: int) -> str:
    return {1: "one layer", 2: "two layers", 3: "three layers"}[layers]


def _best_move(plan: Allocation, pipeline: Pipeline, work: Workload, giver: str) -> tuple[float, int, str] | None:
    """Gain, layers and taker of the best move away from `giver` to a node of its chain with room, timed as it would be.

    None where none makes one user's mean time per token shorter.
    """
    counts, nodes = list(pipeline.ran), _nodes(plan, pipeline)
    context = min(work.context, plan.model.context_tokens)

    def token_ms(layers: Sequence[int]) -> float:
        return chain_of_nodes(plan.model, plan.pool.links, nodes, layers, work).token_ms(work)

    now, source = token_ms(counts), [node.node_id for node in nodes].index(giver)
    if nodes[source].pinned is not None:
        return None
    moves: list[tuple[float, int, str]] = []
    for i, node in enumerate(nodes):
        if i == source or node.pinned is not None:
            continue
        ends = {"first": i == 0, "last": i == len(nodes) - 1}
        room = layer_capacity(plan.model, node.memory_bytes, context=context, **ends)
        for layers in (1, 2, 3):
            if counts[source] > layers and counts[i] + layers <= room:
                changed = list(counts)
                changed[source] -= layers
                changed[i] += layers
                moves.append((now / token_ms(changed) - 1, layers, node.node_id))
    best = max(moves, key=lambda move: (round(move[0], 9), -move[1], move[2]), default=None)
    return best if best is not None and best[0] > 0 else None
