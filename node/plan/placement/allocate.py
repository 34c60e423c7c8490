"""Phase 1: which node holds which layers.

The published score of k pipelines, Z(k) = k^alpha / (T_comp + (s*/k)·r_RTT), takes every chain as alike. Here each is
timed for itself (`node.plan.chain_time`), and a layout is worth what it does for one user and for all
(`node.plan.objectives`). `placement.search` looks for the best disjoint chains; this module puts ranges set by hand,
the plan in force, replicas and standby around them.
"""

from __future__ import annotations

from collections.abc import Sequence

from node.errors import BadLayers, BadPool, DoesNotFit, NotCovered
from node.plan.costs.model import ModelCost
from node.plan.machines.pool import Links, Pool, PoolNode, Workload
from node.plan.objectives import goal_named
from node.plan.placement.allocation import Allocation, Objective, Pipeline, Stage, Standby
from node.plan.placement.around_pins import around_pins
from node.plan.placement.as_held import realised
from node.plan.placement.bound import upper_bound
from node.plan.placement.by_memory import shared
from node.plan.placement.chains import fits
from node.plan.placement.evaluate import DEFAULT_WORKLOAD as DEFAULT_WORKLOAD
from node.plan.placement.evaluate import pipeline_of, within_bar
from node.plan.placement.note import note_on
from node.plan.placement.pool_table import PoolTable
from node.plan.placement.replicas import Replicas
from node.plan.placement.search import best_chains
from node.wire.layer_range import layer_range

KEEP = 0.1
"""The plan in force stays while a new one would score at most this much better."""
MOST_NAMED = 5
"""Nodes in a sentence."""


def allocate(
    model: ModelCost,
    nodes: Sequence[PoolNode],
    links: Links,
    objective: Objective = "balanced",
    current: Allocation | None = None,
    workload: Workload = DEFAULT_WORKLOAD,
    effort: int | None = None,
) -> Allocation:
    """The plan for a pool: the best that the search finds with `effort` (by default some 50 ms of a processor; 100 ms
    in pools of hundreds). `Allocation.gap` tells how far off it is at most.

    `current` is the plan in force: it stays while nothing better than KEEP is found, and equal nodes go on with what
    they hold. Nodes with a range set by hand hold exactly that.

    Raises:
        BadPool: two nodes have one id.
        BadLayers: a range set by hand reaches beyond the model, or overfills its node.
        DoesNotFit: no chain of these nodes holds the model; says how much memory is missing.
        NotCovered: no node may hold anything.
        UnknownObjective: there is no such objective.
    """
    _check(model, nodes)
    goal = goal_named(objective)
    if nodes and all(node.barred for node in nodes):
        raise NotCovered(f"no node may hold layers ({reasons_of(nodes)})")
    if goal.by_memory:
        return shared(model, nodes, links, workload, current)
    free = [node for node in nodes if not node.barred and node.pinned is None]
    pinned = [node for node in nodes if not node.barred and node.pinned is not None]
    pipelines: list[Pipeline] = []
    misfit: DoesNotFit | None = None
    if pinned:
        try:
            chain, used = around_pins(model, pinned, free, links, goal, workload)
        except DoesNotFit as error:  # those without such a range may hold the model by themselves
            misfit = error
        else:
            pipelines.append(chain)
            free = [node for node in free if node.node_id not in used]
    table = PoolTable(model, free, links, workload)
    in_force = _in_force(table, current)
    orders = [[table.row_of[stage.node_id] for stage in pipeline.stages] for pipeline in in_force]
    chains = best_chains(table, goal, effort, orders) if free else []
    if not chains and not pipelines:
        raise misfit or DoesNotFit(model.name, table.missing_bytes)
    held = {stage.node_id: stage for stage in current.stages()} if current is not None else {}
    found = within_bar([*pipelines, *realised(table, goal, chains, held)], goal)
    stands = in_force and not pinned and current is not None and len(in_force) == len(current.pipelines)
    if stands and goal.score(in_force, workload.users) * (1 + KEEP) >= goal.score(found, workload.users):
        used = {stage.node_id for pipeline in in_force for stage in pipeline.stages}
        beside = [p for p in found if used.isdisjoint(stage.node_id for stage in p.stages)]
        found = within_bar([*in_force, *beside], goal)
    everyone = table if len(table.nodes) == len(nodes) else PoolTable(model, nodes, links, workload)
    replicas, standby = _place_left_over(everyone, found, pinned, current)
    pool = Pool(tuple(sorted(nodes, key=lambda node: node.node_id)), links)
    score = goal.score(found, workload.users)
    able = table if not pinned else PoolTable(model, [node for node in nodes if not node.barred], links, workload)
    return Allocation(
        model,
        pool,
        workload,
        objective,
        tuple(found),
        replicas,
        standby,
        score,
        max(upper_bound(able, goal), score),
        note_on(model, found, pool, workload),
    )


def reasons_of(nodes: Sequence[PoolNode]) -> str:
    """Why some nodes hold nothing, in words."""
    more = f"; and {len(nodes) - MOST_NAMED} more" if len(nodes) > MOST_NAMED else ""
    return "; ".join(f"{node.label}: {node.barred}" for node in nodes[:MOST_NAMED]) + more


def _check(model: ModelCost, nodes: Sequence[PoolNode]) -> None:
    seen: set[str] = set()
    for node in nodes:
        if node.node_id in seen:
            raise BadPool(node.label, "name", "two nodes have this name")
        seen.add(node.node_id)
        if node.pinned is not None and node.pinned[1] > model.layers:
            raise BadLayers(layer_range(*node.pinned), f"{node.label}: the model has {model.layers} layers")


def _in_force(table: PoolTable, current: Allocation | None) -> list[Pipeline]:
    """The pipelines in force whose nodes are there and have the room still, timed anew."""
    if current is None or current.layers != table.model.layers:
        return []
    found = []
    for pipeline in current.pipelines:
        starts = [stage.start for stage in pipeline.stages]
        tiles = starts == [0, *(stage.end for stage in pipeline.stages[:-1])]
        if not tiles or any(stage.node_id not in table.row_of for stage in pipeline.stages):
            continue
        order = [table.row_of[stage.node_id] for stage in pipeline.stages]
        if fits(table, order, [stage.layers for stage in pipeline.stages]):
            run = [(stage.node_id, stage.layers) for stage in pipeline.stages]
            found.append(pipeline_of(table, run, pipeline.stages))
    return found


def _place_left_over(
    table: PoolTable, pipelines: Sequence[Pipeline], pinned: Sequence[PoolNode], current: Allocation | None
) -> tuple[tuple[Stage, ...], tuple[Standby, ...]]:
    """Who is left over: replicas, and who stands by."""
    used = {stage.node_id for pipeline in pipelines for stage in pipeline.stages}
    replicas = [
        Stage(node.node_id, *node.pinned) for node in pinned if node.pinned is not None and node.node_id not in used
    ]
    used |= {stage.node_id for stage in replicas}
    held = [stage for pipeline in pipelines for stage in pipeline.stages] + replicas
    best_ms = min((pipeline.token_ms for pipeline in pipelines), default=0.0)
    places = Replicas(table, held, best_ms)
    before = {stage.node_id: stage for stage in current.stages()} if current is not None else {}
    left = [node for node in table.nodes if node.node_id not in used]
    left.sort(key=lambda node: (node.node_id not in before, -node.memory_bytes, -node.bandwidth, node.node_id))
    standby: list[Standby] = []
    for node in left:
        placed = places.place(node, before.get(node.node_id))
        if isinstance(placed, Stage):
            replicas.append(placed)
        else:
            standby.append(placed)
    replicas.sort(key=lambda stage: (stage.start, stage.end, stage.node_id))
    return tuple(replicas), tuple(sorted(standby, key=lambda s: s.node_id))
