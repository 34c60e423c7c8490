"""What a layout is worth: the pipelines that held ranges make, timed and scored. The same to whoever asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from node.plan.costs.model import ModelCost
from node.plan.machines.pool import Pool, PoolNode, Workload
from node.plan.objectives import Goal, goal_named
from node.plan.placement.allocation import Allocation, Objective, Pipeline, Stage, Standby
from node.plan.placement.bound import upper_bound
from node.plan.placement.chains import chain_of_counts
from node.plan.placement.note import note_on
from node.plan.placement.pool_table import PoolTable
from node.plan.placement.tilings import disjoint_tilings
from node.plan.routing.disjoint import most_disjoint, route_disjoint
from node.plan.routing.router import Host, Request, route, uncovered

CHAINS_JUDGED = 8
"""Chains over ranges that make no whole pipeline by themselves which are looked for."""
MOST_JOINED = 300
"""Ways from range to range that are looked at for chains of whole ranges."""
DEFAULT_WORKLOAD = Workload()


def evaluate(
    model: ModelCost,
    layout: Sequence[Stage],
    pool: Pool,
    objective: Objective = "balanced",
    workload: Workload = DEFAULT_WORKLOAD,
) -> Allocation:
    """What it is worth that these ranges are held: its pipelines, replicas, score and bound. Changes and moves nothing.

    Ranges of nodes that are not in the pool count for nothing. Who holds nothing stands by. A layout that leaves a
    layer to nobody has no pipeline and scores 0.

    Raises:
        UnknownObjective: there is no such objective.
    """
    here = {node.node_id for node in pool.nodes}
    held = [stage for stage in layout if stage.node_id in here]
    holders = {stage.node_id for stage in held}
    idle = sorted(here - holders)
    standby = tuple(Standby(node_id, "holds nothing in this layout") for node_id in idle)
    bare = Allocation(model, _sorted(pool), workload, objective, (), (), standby, 0.0, 0.0, "")
    found = judged(bare, held, pool)
    barred = {node.node_id for node in pool.nodes if node.barred}
    able = [node for node in pool.nodes if node.node_id not in barred - holders]
    bound = upper_bound(PoolTable(model, able, pool.links, workload), goal_named(objective))
    return replace(found, bound=max(found.score, bound))


def judged(plan: Allocation, stages: Sequence[Stage], pool: Pool) -> Allocation:
    """`plan` with these ranges held instead: its pipelines found, the rest as replicas, its score told."""
    goal = goal_named(plan.objective)
    pipelines = pipelines_of(plan, stages, pool)
    used = {stage.node_id for pipeline in pipelines for stage in pipeline.stages}
    replicas = [stage for stage in stages if stage.node_id not in used]
    score = goal.score(pipelines, plan.workload.users)
    return replace(
        plan,
        pool=_sorted(pool),
        pipelines=_by_time(pipelines),
        replicas=tuple(sorted(replicas, key=lambda s: (s.start, s.end, s.node_id))),
        score=score,
        bound=max(score, plan.bound),
        note=note_on(plan.model, pipelines, pool, plan.workload) if pipelines and not goal.by_memory else plan.note,
    )


def hosts_of(plan: Allocation, stages: Sequence[Stage], pool: Pool, table: PoolTable | None = None) -> list[Host]:
    """Stages as phase 2 sees them, idle."""
    table = table if table is not None else PoolTable(plan.model, pool.nodes, pool.links, plan.workload)
    share = plan.workload.output_tokens
    hosts = []
    for stage in stages:
        row = table.row_of.get(stage.node_id)
        if row is not None:
            layer_ms = float(table.layer_ms[row] + table.chunk_ms[row] / share)
            node, head_ms = table.nodes[row], float(table.head_ms[row])
            hosts.append(
                Host(
                    stage.node_id,
                    stage.start,
                    stage.end,
                    layer_ms,
                    node.region,
                    overhead_ms=node.overhead_ms,
                    head_ms=head_ms,
                )
            )
    return hosts


def pipelines_of(plan: Allocation, stages: Sequence[Stage], pool: Pool) -> list[Pipeline]:
    """The pipelines among held ranges: those of `plan` that are whole, then node-disjoint chains over the others: one,
    or as many as there are, whichever scores better."""
    table = PoolTable(plan.model, pool.nodes, pool.links, plan.workload)
    goal, users = goal_named(plan.objective), plan.workload.users
    held = {stage.node_id: stage for stage in stages}
    whole = [p for p in plan.pipelines if all(held.get(s.node_id) == s and s.node_id in table.row_of for s in p.stages)]
    runs = [run for run in (_run_over(plan, p.stages, pool, table) for p in whole) if len(dict(run)) == len(run)]
    in_whole = {node for run in runs for node, _ in run}
    known = [pipeline_of(table, run, [held[node] for node, _ in run]) for run in runs]
    hosts = hosts_of(plan, [stage for stage in stages if stage.node_id not in in_whole], pool, table)
    choices = [within_bar(known, goal)]
    if hosts and uncovered(plan.layers, hosts) is None:
        for chains in {1, min(CHAINS_JUDGED, most_disjoint(plan.layers, hosts))}:
            pipelines, used = list(known), set[str]()
            for found in route_disjoint(plan.layers, hosts, pool.links, Request(plan.model.hop_bytes(1)), chains):
                if used.isdisjoint(found.nodes) and len(set(found.nodes)) == len(found.nodes):
                    run = [(stage.node_id, stage.layers) for stage in found.stages]
                    pipelines.append(pipeline_of(table, run, [held[node] for node in found.nodes]))
                    used.update(found.nodes)
            choices.append(within_bar(pipelines, goal))
        rest = [stage for stage in stages if stage.node_id not in in_whole]
        choices.append(within_bar([*known, *_joined(table, goal, rest)], goal))
        tiled = [pipeline_of(table, [(s.node_id, s.layers) for s in t], t) for t in disjoint_tilings(table, goal, rest)]
        choices.append(within_bar([*known, *tiled], goal))
    return max(choices, key=lambda pipelines: (goal.score(pipelines, users), -len(pipelines)))


def _joined(table: PoolTable, goal: Goal, stages: Sequence[Stage]) -> list[Pipeline]:
    """Disjoint pipelines of ranges that follow one another without overlap, each as long as it raises the score."""
    following: dict[int, list[Stage]] = {}
    for stage in sorted(stages, key=lambda s: (s.start, -s.end, s.node_id)):
        if stage.node_id in table.row_of:
            following.setdefault(stage.start, []).append(stage)
    found: list[tuple[Stage, ...]] = []
    ways: list[tuple[Stage, ...]] = [(stage,) for stage in reversed(following.get(0, []))]
    looked = 0
    while ways and looked < MOST_JOINED:
        way = ways.pop()
        looked += 1
        if way[-1].end == table.layers:
            found.append(way)
            continue
        names = {stage.node_id for stage in way}
        ways += [(*way, stage) for stage in reversed(following.get(way[-1].end, [])) if stage.node_id not in names]
    pipelines = [pipeline_of(table, [(s.node_id, s.layers) for s in way], way) for way in found]
    picked: list[Pipeline] = []
    used: set[str] = set()
    users = table.workload.users
    for pipeline in _by_time(pipelines):
        names = {stage.node_id for stage in pipeline.stages}
        if used.isdisjoint(names) and goal.score([*picked, pipeline], users) >= goal.score(picked, users):
            picked.append(pipeline)
            used |= names
    return picked


def pipeline_of(table: PoolTable, run: Sequence[tuple[str, int]], held: Sequence[Stage]) -> Pipeline:
    """One that runs so many layers on each node in turn; `held` is what these hold."""
    counts = tuple(layers for _, layers in run)
    chain = chain_of_counts(table, [table.row_of[node] for node, _ in run], counts)
    overlaps = counts if counts != tuple(stage.layers for stage in held) else ()
    return Pipeline(tuple(held), chain.token_ms, chain.rates[-1], max(1, chain.sequences), overlaps, chain.curve)


def within_bar(pipelines: Sequence[Pipeline], goal: Goal) -> list[Pipeline]:
    """By time, without those that take too many times what the fastest takes: they serve nobody."""
    ordered = _by_time(pipelines)
    return [p for p in ordered if p.token_ms <= goal.bar * ordered[0].token_ms]


def _run_over(plan: Allocation, stages: Sequence[Stage], pool: Pool, table: PoolTable) -> list[tuple[str, int]]:
    """How many layers each node of a pipeline runs: of layers that two of them hold, the faster one runs them."""
    if sum(stage.layers for stage in stages) == plan.layers:
        return [(stage.node_id, stage.layers) for stage in stages]
    request = Request(plan.model.hop_bytes(1))
    found = route(plan.layers, hosts_of(plan, stages, pool, table), pool.links, request)
    return [(stage.node_id, stage.layers) for stage in found.stages]


def _by_time(pipelines: Sequence[Pipeline]) -> tuple[Pipeline, ...]:
    return tuple(sorted(pipelines, key=lambda p: (p.token_ms, p.stages[0].node_id)))


def _sorted(pool: Pool) -> Pool:
    return Pool(tuple(sorted(pool.nodes, key=lambda node: node.node_id)), pool.links)


def nodes_of(pool: Pool) -> dict[str, PoolNode]:
    """By id."""
    return {node.node_id: node for node in pool.nodes}
