"""Pipelines around ranges set by hand: the pins stay where they are, free nodes fill what they leave open."""

from __future__ import annotations

from collections.abc import Sequence

from node.errors import BadLayers, DoesNotFit
from node.plan.costs.model import ModelCost
from node.plan.machines.pool import Links, PoolNode, Workload
from node.plan.placement.allocation import Objective, Pipeline, Stage
from node.plan.placement.chain import chain_of_counts
from node.plan.placement.exact_search import MOST_STATES, best_partition, state_count
from node.plan.placement.large_pools import good_partition
from node.plan.placement.pool_table import PoolTable


def around_pins(
    model: ModelCost,
    pinned: Sequence[PoolNode],
    free: Sequence[PoolNode],
    links: Links,
    objective: Objective,
    workload: Workload,
) -> tuple[Pipeline, set[str]]:
    """One pipeline through pinned ranges, the gaps between them filled; and the ids of the nodes in it.

    Where pinned ranges overlap, the one that reaches furthest goes on. Overlapped layers are held twice and run once.

    Raises:
        BadLayers: a pinned range does not fit into its node.
        DoesNotFit: the free nodes cannot hold a gap.
    """
    for node in pinned:
        if problem := pin_problem(model, node, workload):
            assert node.pinned is not None
            raise BadLayers(f"{node.pinned[0]}:{node.pinned[1]}", problem)
    runs, gaps = _tiling(model.layers, pinned)
    left = list(free)
    stages: list[Stage] = list(runs)
    for start, end in gaps:
        table = PoolTable(model, left, links, objective, workload, (start, end))
        search = best_partition if state_count(table) <= MOST_STATES else good_partition
        chains = search(table)[0] if table.classes else []
        if not chains:
            beside = f"{model.name}, layers {start}–{end - 1} beside those set by hand,"
            raise DoesNotFit(beside, table.missing_bytes)
        chain = min(chains, key=lambda chain: chain.token_ms)
        taken = {c: list(table.classes[c].members) for c in chain.order}
        for c, layers in zip(chain.order, chain.counts, strict=True):
            node = taken[c].pop(0)
            left = [other for other in left if other.node_id != node.node_id]
            stages.append(Stage(node.node_id, start, start + layers))
            start += layers
    stages.sort(key=lambda stage: stage.start)
    ids = [stage.node_id for stage in stages]
    by_id = {node.node_id: node for node in (*pinned, *free)}
    whole = PoolTable(model, [by_id[node_id] for node_id in ids], links, objective, workload, (0, model.layers))
    of_member = {node.node_id: c for c, kind in enumerate(whole.classes) for node in kind.members}
    timed = chain_of_counts(whole, [of_member[i] for i in ids], [stage.layers for stage in stages])
    held = {node.node_id: Stage(node.node_id, *node.pinned) for node in pinned if node.pinned is not None}
    full = tuple(held.get(stage.node_id, stage) for stage in stages)
    ran = tuple(stage.layers for stage in stages)
    return Pipeline(full, timed.token_ms, timed.tokens_per_s, timed.sequences, ran), set(ids)


def pin_problem(model: ModelCost, node: PoolNode, workload: Workload) -> str:
    """Why a node cannot hold the range set by hand for it; empty where it can."""
    if node.pinned is None:
        return ""
    start, end = node.pinned
    if end > model.layers:
        return f"the model has {model.layers} layers"
    cache = (end - start) * model.kv_layer_bytes(min(workload.context, model.context_tokens))
    needed = model.range_bytes(start, end) + cache
    if needed <= node.memory_bytes:
        return ""
    gib = 1024**3
    return f"they take {needed / gib:.2f} GiB with their cache, {node.label} has {node.memory_bytes / gib:.2f} GiB"


def _tiling(layers: int, pinned: Sequence[PoolNode]) -> tuple[list[Stage], list[tuple[int, int]]]:
    """Which part of each pinned range runs, and the gaps."""
    ranges = sorted((node.pinned or (0, 0), node.node_id) for node in pinned)
    runs: list[Stage] = []
    gaps: list[tuple[int, int]] = []
    reached = 0
    while reached < layers:
        going = [(end, node_id) for (start, end), node_id in ranges if start <= reached < end]
        if going:
            end, node_id = max(going, key=lambda item: (item[0], [-ord(c) for c in item[1]]))
            runs.append(Stage(node_id, reached, end))
        else:
            end = min((start for (start, _), _ in ranges if start > reached), default=layers)
            gaps.append((reached, end))
        reached = end
    return runs, gaps
