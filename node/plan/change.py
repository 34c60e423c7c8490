"""What to do when the pool changes: as little as possible.

1. *Keep*: stages whose node is still there, may serve and has the memory stay as they are.
2. *Patch*: layers that nobody holds any more go to neighbours with room, to idle nodes, to replicas whose own layers
   are held elsewhere: only the missing layers are loaded. New nodes become replicas of the worst served layers.
3. *Plan anew*, only when a layer stays uncovered, or when the new plan scores better by GAIN and what that gains within
   HORIZON_S outweighs moving: bytes / bandwidth + load time. Both bars are the hysteresis against flapping.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from node.errors import DoesNotFit
from node.plan.allocation import Allocation, Stage, Standby
from node.plan.disjoint import most_disjoint, route_disjoint
from node.plan.placement import allocate, best_of, score_pipelines, timed_pipeline
from node.plan.pool import Pool, PoolNode
from node.plan.pool_table import PoolTable
from node.plan.records import pool_of_records
from node.plan.routing import Host, Request, uncovered
from node.plan.spare import Spares
from node.plan.stage_time import layer_capacity
from node.plan.steps import Step, ordered_steps
from node.wire.records import NodeRecord

GAIN = 0.2
"""A plan from scratch must score this much better than patching."""
HORIZON_S = 900.0
"""Time over which a better plan repays its moves."""
LOAD_RATE = 100e6
"""Bytes per second at which a node fetches and loads weights: a fast home line or a slow disk."""
LOAD_S = 5.0
"""Of every load, beside its bytes: starting a worker, warming up."""
CHAINS_JUDGED = 8
"""Chains over patched ranges that are looked for."""


@dataclass(frozen=True, slots=True)
class Delta:
    """From the plan in force to the next."""

    plan: Allocation
    """The next plan; the same object when nothing is to be done."""
    steps: tuple[Step, ...]
    """In this order: what is new is loaded before what is old is dropped."""
    load_bytes: int
    """Weights to fetch, all nodes together."""
    anew: bool
    """Whether everything was planned anew."""
    reason: str
    """Why, in a sentence."""
    uncovered: tuple[int, int] | None = None
    """Layers that no node can hold now: nothing is served until one joins. None when all are held."""


def replan(plan: Allocation, records: Pool | Sequence[NodeRecord]) -> Delta:
    """The smallest change that suits the pool as it is now.

    A node that drains or is excluded is `barred` in the pool; a memory cap is its memory; a pin its `pinned`.

    Raises:
        BadPool, BadLayers: the pool or a range set by hand cannot be.
    """
    pool = records if isinstance(records, Pool) else pool_of_records(records).pool
    by_id = {node.node_id: node for node in pool.nodes}
    kept = [stage for stage in plan.stages() if _still_stands(plan, stage, by_id.get(stage.node_id))]
    patched = _patch(plan, kept, pool)
    patch = _judge(plan, patched, pool)
    gap = uncovered(plan.layers, hosts_of(plan, list(patch.stages()), pool))
    try:
        anew = allocate(plan.model, pool.nodes, pool.links, plan.objective, plan, plan.workload)
    except DoesNotFit as error:
        steps = _steps(plan, patch, pool)
        loaded = _loaded(steps)
        return Delta(patch, steps, loaded, False, str(error), gap)
    if gap is not None:
        steps = _steps(plan, anew, pool)
        why = f"layers {gap[0]}–{gap[1] - 1} were held by nobody and no patch could hold them"
        return Delta(anew, steps, _loaded(steps), True, why)
    anew_steps = _steps(plan, anew, pool)
    gain = anew.score / patch.score - 1 if patch.score > 0 else float("inf")
    moving_s = _moving_s(anew_steps) - _moving_s(_steps(plan, patch, pool))
    if gain >= GAIN and min(gain, 10.0) * HORIZON_S > moving_s:
        why = f"planned anew: {gain:.0%} better, for {_loaded(anew_steps) / 1e9:.2f} GB to load"
        return Delta(anew, anew_steps, _loaded(anew_steps), True, why)
    steps = _steps(plan, patch, pool)
    same = not steps and patch.standby == plan.standby and set(patch.stages()) == set(plan.stages())
    why = "nothing changes" if not steps else f"{len({s.node_id for s in steps})} nodes change what they hold"
    return Delta(plan if same else patch, steps, _loaded(steps), False, why)


def hosts_of(plan: Allocation, stages: Sequence[Stage], pool: Pool) -> list[Host]:
    """Stages as phase 2 sees them, idle."""
    by_id = {node.node_id: node for node in pool.nodes}
    times: dict[str, float] = {}
    hosts = []
    for stage in stages:
        node = by_id.get(stage.node_id)
        if node is None:
            continue
        if stage.node_id not in times:
            whole = (0, plan.layers)
            table = PoolTable(plan.model, [node], pool.links, plan.objective, plan.workload, whole)
            times[stage.node_id] = table.classes[0].layer_ms
        hosts.append(Host(stage.node_id, stage.start, stage.end, times[stage.node_id], node.region))
    return hosts


def _still_stands(plan: Allocation, stage: Stage, node: PoolNode | None) -> bool:
    if node is None or node.barred:
        return False
    if node.pinned is not None:
        return node.pinned == (stage.start, stage.end)
    return stage.layers <= _room(plan, node, first=stage.start == 0, last=stage.end == plan.layers)


def _room(plan: Allocation, node: PoolNode, *, first: bool, last: bool) -> int:
    context = min(plan.workload.context, plan.model.context_tokens)
    return layer_capacity(plan.model, node.memory_bytes, first=first, last=last, context=context)


def _patch(plan: Allocation, kept: Sequence[Stage], pool: Pool) -> list[Stage]:
    """`kept`, with the layers that nobody holds given to whoever has to load least for them."""
    stages = {stage.node_id: stage for stage in kept}
    for node in pool.nodes:
        if node.pinned is not None and not node.barred and node.pinned[1] <= plan.layers:
            stages[node.node_id] = Stage(node.node_id, *node.pinned)
    free = [n for n in pool.nodes if not n.barred and n.pinned is None]
    while (gap := _gap(plan.layers, stages.values())) is not None:
        start, end = gap
        best: tuple[int, int, str, Stage] | None = None
        for node in free:
            for rank, stage in _offers(plan, node, stages, start, end):
                covers = min(stage.end, end) - max(stage.start, start)
                offer = (rank, -covers, node.node_id, stage)
                if covers > 0 and (best is None or offer[:3] < best[:3]):
                    best = offer
        if best is None:
            break
        stages[best[2]] = best[3]
    return list(stages.values())


def _gap(layers: int, stages: Iterable[Stage]) -> tuple[int, int] | None:
    return uncovered(layers, [Host(s.node_id, s.start, s.end, 1.0) for s in stages])


def _offers(
    plan: Allocation, node: PoolNode, stages: dict[str, Stage], start: int, end: int
) -> list[tuple[int, Stage]]:
    """What `node` could hold of [start, end), by rank: stretched from its own, taken while idle, moved as a replica."""
    held = stages.get(node.node_id)
    if held is None:
        most = _room(plan, node, first=start == 0, last=False)
        stop = min(end, start + most)
        if stop == plan.layers:
            stop = start + min(stop - start, _room(plan, node, first=start == 0, last=True))
        return [(1, Stage(node.node_id, start, stop))] if stop > start else []
    offers = []
    if held.end == start:
        most = _room(plan, node, first=held.start == 0, last=False)
        stop = min(end, held.start + most)
        if stop == plan.layers:
            stop = min(stop, held.start + _room(plan, node, first=held.start == 0, last=True))
        if stop > held.end:
            offers.append((0, Stage(node.node_id, held.start, stop)))
    if held.start == end:
        most = _room(plan, node, first=start == 0, last=held.end == plan.layers)
        begin = max(start, held.end - most)
        if begin < held.start and (begin > 0 or held.layers + begin <= most):
            offers.append((0, Stage(node.node_id, begin, held.end)))
    others = [s for s in stages.values() if s.node_id != node.node_id]
    hosts = [Host(s.node_id, s.start, s.end, 1.0) for s in others]
    if not offers and _covered(hosts, held):
        moved = _offers(plan, node, {s.node_id: s for s in others}, start, end)
        offers += [(2, stage) for _, stage in moved]
    return offers


def _covered(hosts: Sequence[Host], held: Stage) -> bool:
    """Whether others hold all of `held`."""
    return all(any(h.start <= layer < h.end for h in hosts) for layer in range(held.start, held.end))


def _judge(plan: Allocation, stages: Sequence[Stage], pool: Pool) -> Allocation:
    """A layout as an allocation: its pipelines found, its idle nodes placed as replicas, its score told."""
    held = {stage.node_id: stage for stage in stages}
    whole = [p for p in plan.pipelines if all(held.get(s.node_id) == s for s in p.stages)]
    in_whole = {s.node_id for p in whole for s in p.stages}
    pipelines = [timed_pipeline(plan, [(s.node_id, s.layers) for s in p.stages], p.stages, pool) for p in whole]
    loose = [stage for stage in stages if stage.node_id not in in_whole]
    hosts = hosts_of(plan, loose, pool)
    chains = min(CHAINS_JUDGED, most_disjoint(plan.layers, hosts)) if hosts else 0
    used: set[str] = set()
    if uncovered(plan.layers, hosts) is None and chains:
        request = Request(plan.model.hop_bytes(1))
        for found in route_disjoint(plan.layers, hosts, pool.links, request, chains):
            run = [(s.node_id, s.layers) for s in found.stages]
            if used.isdisjoint(found.nodes) and len(set(found.nodes)) == len(found.nodes):
                pipelines.append(timed_pipeline(plan, run, tuple(held[n] for n in found.nodes), pool))
                used.update(found.nodes)
    pipelines = best_of(pipelines, plan.objective)
    used = {stage.node_id for pipeline in pipelines for stage in pipeline.stages}
    replicas = [stage for stage in stages if stage.node_id not in used]
    best_ms = min((p.token_ms for p in pipelines), default=0.0)
    spares = Spares(plan.model, list(stages), pool.nodes, pool.links, plan.workload, best_ms)
    standby: list[Standby] = []
    idle = [node for node in pool.nodes if node.node_id not in held]
    for node in sorted(idle, key=lambda n: (-n.memory_bytes, -n.bandwidth, n.node_id)):
        placed = spares.place(node)
        if isinstance(placed, Stage):
            replicas.append(placed)
        else:
            standby.append(placed)
    score = score_pipelines(pipelines, plan.objective)
    return replace(
        plan,
        pool=Pool(tuple(sorted(pool.nodes, key=lambda node: node.node_id)), pool.links),
        pipelines=tuple(sorted(pipelines, key=lambda p: (p.token_ms, p.stages[0].node_id))),
        replicas=tuple(sorted(replicas, key=lambda s: (s.start, s.end, s.node_id))),
        standby=tuple(sorted(standby, key=lambda s: s.node_id)),
        score=score,
        bound=max(score, plan.bound),
    )


def _steps(plan: Allocation, after: Allocation, pool: Pool) -> tuple[Step, ...]:
    memory = {node.node_id: node.memory_bytes for node in pool.nodes}
    context = min(plan.workload.context, plan.model.context_tokens)
    return ordered_steps(plan.model, list(plan.stages()), list(after.stages()), memory, context)


def _loaded(steps: Sequence[Step]) -> int:
    return sum(step.weight_bytes for step in steps if step.kind == "load")


def _moving_s(steps: Sequence[Step]) -> float:
    """Nodes load at once: the one with most to load sets the time."""
    per_node: dict[str, int] = {}
    for step in steps:
        if step.kind == "load":
            per_node[step.node_id] = per_node.get(step.node_id, 0) + step.weight_bytes
    return max((LOAD_S + size / LOAD_RATE for size in per_node.values()), default=0.0)
