"""What a plan will achieve, and what limits it. The same roofline and links as the placement, asked for one workload.

TTFT = Σ stages prefill(P) + Σ hops (RTT·trips + P·activation / bandwidth) + head        P: prompt tokens
TPOT = Σ stages decode(1)  + Σ hops (RTT·trips + activation / bandwidth) + head + tail → first
both + Σ stages overhead: a step's time at a node outside its layers
tokens/s of m users on one pipeline = min(m / around(b), b / slowest stage(b)),  b = ⌈m / stages⌉ per micro-batch
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from node.plan.costs.model import ModelCost
from node.plan.costs.roofline import (
    decode_cost,
    fitted_efficiency,
    fitted_head_efficiency,
    layer_capacity,
    prefill_cost,
)
from node.plan.machines.pool import PoolNode, Workload
from node.plan.outlook.figures import figure
from node.plan.placement.allocation import Allocation, Pipeline, Stage


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
class Share:
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
    shares: tuple[Share, ...]
    """One user's decode step along the fastest pipeline, in order."""
    bottleneck: str
    """What limits the swarm and what would help, in a sentence."""


def predict(plan: Allocation, workload: Workload | None = None) -> Prediction:
    """What `plan` achieves under `workload` (by default the one that it was made for)."""
    work = workload or plan.workload
    fastest = min(plan.pipelines, key=lambda p: _around_ms(plan, p, work, 1), default=None)
    memory = _memory(plan, work)
    if fastest is None:
        reason = "no chain of ready ranges covers the model"
        return Prediction(0.0, 0.0, 0.0, work.users, 0.0, 0.0, memory, (), reason)
    shares = _shares(plan, fastest, work, 1)
    tpot = sum(share.milliseconds for share in shares)
    total = _users_rate(plan, work)
    return Prediction(
        ttft_ms=_ttft_ms(plan, fastest, work),
        tpot_ms=tpot,
        tokens_per_s=1000 / tpot,
        users=work.users,
        users_tokens_per_s=total,
        users_tpot_ms=1000 * work.users / total,
        memory=memory,
        shares=shares,
        bottleneck=_bottleneck(plan, fastest, work, shares),
    )


def stage_ms(model: ModelCost, node: PoolNode, layers: int, *, last: bool, batch: int, context: int) -> float:
    """One decode step of `batch` sequences in `layers` layers of `node`, and what goes around them there."""
    cost = decode_cost(model, batch, context)
    head = cost.head_ms(node, fitted_head_efficiency(model, node)) if last else 0.0
    return layers * cost.layer_ms(node, fitted_efficiency(model, node)) + head + node.overhead_ms


def _shares(plan: Allocation, pipeline: Pipeline, work: Workload, batch: int) -> tuple[Share, ...]:
    model, links = plan.model, plan.pool.links
    nodes = _nodes(plan, pipeline)
    context = min(work.prompt_tokens + work.output_tokens // 2, model.context_tokens)
    shares: list[Share] = []
    for i, (node, layers) in enumerate(zip(nodes, pipeline.ran, strict=True)):
        last = i == len(nodes) - 1
        time = stage_ms(model, node, layers, last=last, batch=batch, context=context)
        shares.append(Share(node.node_id, time))
        if len(nodes) > 1:
            following = nodes[0] if last else nodes[i + 1]
            sent = 0.0 if last else model.hop_bytes(batch)
            shares.append(Share(f"{node.node_id}→{following.node_id}", links.hop_ms(node, following, sent)))
    return tuple(shares)


def _nodes(plan: Allocation, pipeline: Pipeline) -> list[PoolNode]:
    by_id = {node.node_id: node for node in plan.pool.nodes}
    return [by_id[stage.node_id] for stage in pipeline.stages]


def _around_ms(plan: Allocation, pipeline: Pipeline, work: Workload, batch: int) -> float:
    return sum(share.milliseconds for share in _shares(plan, pipeline, work, batch))


def _ttft_ms(plan: Allocation, pipeline: Pipeline, work: Workload) -> float:
    model, links, nodes = plan.model, plan.pool.links, _nodes(plan, pipeline)
    cost = prefill_cost(model, work.prompt_tokens)
    time = 0.0
    for i, (node, layers) in enumerate(zip(nodes, pipeline.ran, strict=True)):
        time += layers * cost.layer_ms(node, fitted_efficiency(model, node)) + node.overhead_ms
        if i == len(nodes) - 1:
            time += cost.head_ms(node, fitted_head_efficiency(model, node))
    return time + sum(links.hop_ms(a, b, model.hop_bytes(work.prompt_tokens)) for a, b in pairwise(nodes))


def pipeline_rate(plan: Allocation, pipeline: Pipeline, work: Workload, users: int) -> float:
    """Tokens per second of `users` users on one pipeline."""
    if users < 1:
        return 0.0
    stages = len(pipeline.stages)
    running = max(1, min(users, pipeline.sequences))
    batch = -(-running // stages)
    shares = _shares(plan, pipeline, work, batch)
    slowest = max(share.milliseconds for share in shares[:: 2 if stages > 1 else 1])
    return 1000 * min(running / sum(share.milliseconds for share in shares), batch / slowest)


def _users_rate(plan: Allocation, work: Workload) -> float:
    """Users go to pipelines in proportion to what these can do."""
    total = sum(p.tokens_per_s for p in plan.pipelines)
    ordered = sorted(plan.pipelines, key=lambda p: (p.token_ms, p.stages[0].node_id))
    left, rate = work.users, 0.0
    for i, pipeline in enumerate(ordered):
        part = left if i == len(ordered) - 1 else min(left, -(-work.users * pipeline.tokens_per_s // total).__int__())
        rate += pipeline_rate(plan, pipeline, work, part)
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


def _bottleneck(plan: Allocation, pipeline: Pipeline, work: Workload, shares: Sequence[Share]) -> str:
    """The largest part of a step, and the move of one to three layers that helps most."""
    names = {node.node_id: node.label for node in plan.pool.nodes}
    total = sum(share.milliseconds for share in shares)
    stages = [share for share in shares if "→" not in share.what]
    network = sum(share.milliseconds for share in shares if "→" in share.what)
    worst = max(shares, key=lambda share: (share.milliseconds, share.what))
    if network > total / 2:
        hop = max((s for s in shares if "→" in s.what), key=lambda s: (s.milliseconds, s.what))
        a, b = hop.what.split("→")
        return (
            f"the network limits you: {network / total:.0%} of a step; "
            f"the longest hop is {names.get(a, a)} to {names.get(b, b)}, {figure(hop.milliseconds)} ms"
        )
    slowest = max(stages, key=lambda share: (share.milliseconds, share.what)) if "→" in worst.what else worst
    said = f"{names[slowest.what]} limits you: {slowest.milliseconds / total:.0%} of a step"
    best = _best_move(plan, pipeline, work, slowest.what)
    if best is None or best[0] < 0.01:
        return said if len(stages) > 1 else f"{said}; it runs alone"
    gain, layers, taker = best
    return f"{said}; {_number(layers)} to {names[taker]} ≈ +{gain:.0%}"


def _number(layers: int) -> str:
    return {1: "one layer", 2: "two layers", 3: "three layers"}[layers]


def _best_move(plan: Allocation, pipeline: Pipeline, work: Workload, giver: str) -> tuple[float, int, str] | None:
    """Gain, layers and taker of the best move away from `giver` to a node with room: in the objective's own measure."""
    ids = [stage.node_id for stage in pipeline.stages]
    counts, nodes = list(pipeline.ran), _nodes(plan, pipeline)
    context = min(work.context, plan.model.context_tokens)

    def value(layers: Sequence[int]) -> float:
        moved, start = [], 0
        for node_id, number in zip(ids, layers, strict=True):
            moved.append(Stage(node_id, start, start + number))
            start += number
        shares = _shares(plan, Pipeline(tuple(moved), 0, 0, pipeline.sequences), work, 1)
        if plan.objective == "latency" or len(ids) == 1:
            return 1 / sum(share.milliseconds for share in shares)
        return 1 / max(share.milliseconds for share in shares[::2])

    now, from_index = value(counts), ids.index(giver)
    best: tuple[float, int, str] | None = None
    if nodes[from_index].pinned is not None:
        return None
    for i, node in enumerate(nodes):
        if i == from_index or node.pinned is not None:
            continue
        first, last = i == 0, i == len(nodes) - 1
        room = layer_capacity(plan.model, node.memory_bytes, first=first, last=last, context=context)
        for layers in (1, 2, 3):
            if counts[from_index] > layers and counts[i] + layers <= room:
                changed = list(counts)
                changed[from_index] -= layers
                changed[i] += layers
                gain = value(changed) / now - 1
                if best is None or gain > best[0] + 1e-9:
                    best = (gain, layers, node.node_id)
    return best
