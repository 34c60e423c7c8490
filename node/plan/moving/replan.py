"""What to do when the pool changes: as little as possible.

1. *Keep*: stages whose node is still there, may serve and has the memory stay as they are.
2. *Patch*: layers that nobody holds any more go to neighbours with room, to idle nodes, to replicas whose own layers
   are held elsewhere, for the fewest bytes to load (`fewest_bytes`); not to one that makes the swarm slower than the
   bytes saved are worth. New nodes become replicas of the worst served layers.
3. *Plan anew*, only when a layer stays uncovered, or when the new plan scores better by GAIN and what that gains within
   HORIZON_S outweighs moving: bytes / bandwidth + load time. Both bars are the hysteresis against flapping.

When a node is lost, the others only fill what it leaves open: nothing moves that is held still. Whether those who are
left would do better with another plan is asked later, when things are quiet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from node.errors import DoesNotFit, NotCovered
from node.plan.live.from_records import pool_of_records
from node.plan.machines.pool import Pool, PoolNode
from node.plan.moving.fewest_bytes import has_room, patched
from node.plan.moving.order import Step, ordered_steps
from node.plan.objectives import goal_named
from node.plan.placement.allocate import allocate
from node.plan.placement.allocation import Allocation, Stage, Standby
from node.plan.placement.by_memory import cache_tokens
from node.plan.placement.evaluate import judged
from node.plan.placement.pool_table import PoolTable
from node.plan.placement.replicas import Replicas
from node.plan.routing.router import uncovered
from node.wire.layer_range import layer_range
from node.wire.records import NodeRecord

GAIN = 0.2
"""A plan from scratch must score this much better than patching."""
HORIZON_S = 900.0
"""Time over which a better plan repays its moves."""
MOST_TAKERS = 4
"""Of a patch, that are tried to do without."""
SURE = 0.02
"""Another patch than that of the fewest bytes must give this much more."""
LOAD_RATE = 100e6
"""Bytes per second at which a node fetches and loads weights: a fast home line or a slow disk."""
LOAD_S = 5.0
"""Of every load, beside its bytes: starting a worker, warming up."""


@dataclass(frozen=True, slots=True)
class Delta:
    """From the plan in force to the next."""

    plan: Allocation
    """The next plan; the same object when nothing is to be done."""
    steps: tuple[Step, ...]
    """In this order: what is new is loaded before what is old is dropped."""
    load_bytes: int
    """Weights to fetch, all nodes together."""
    load_s: float
    """How long that takes: nodes load at once, the one with most to load sets the time."""
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
    if goal_named(plan.objective).by_memory:
        return _reshare(plan, pool)
    by_id = {node.node_id: node for node in pool.nodes}
    kept = [stage for stage in plan.stages() if _still_stands(plan, stage, by_id.get(stage.node_id))]
    patch = _patch(plan, kept, pool)
    gap = uncovered(plan.layers, patch.stages())
    if gap is None and any(stage.node_id not in by_id for stage in plan.stages()):
        return _kept_or_patched(plan, patch, pool)
    try:
        anew = allocate(plan.model, pool.nodes, pool.links, plan.objective, plan, plan.workload)
    except (DoesNotFit, NotCovered) as error:
        return _delta(plan, patch, pool, str(error), gap=gap)
    if gap is not None:
        why = f"layers {layer_range(*gap)} were held by nobody and no patch could hold them"
        return _delta(plan, anew, pool, why, anew=True)
    if {stage for pipeline in anew.pipelines for stage in pipeline.stages} <= set(patch.stages()):  # they stand already
        patch = max(patch, judged(replace(patch, pipelines=anew.pipelines), list(patch.stages()), pool), key=_score)
    measured = judged(anew if plan.pipelines else replace(anew, pipelines=()), list(anew.stages()), pool).score
    gain = measured / patch.score - 1 if patch.score > 0 else float("inf")
    moving_s = load_seconds(steps_between(plan, anew, pool)) - load_seconds(steps_between(plan, patch, pool))
    if gain >= GAIN and min(gain, 10.0) * HORIZON_S > moving_s:
        delta = _delta(plan, anew, pool, "", anew=True)
        return replace(delta, reason=f"planned anew: {gain:.0%} better, for {delta.load_bytes / 1e9:.2f} GB to load")
    return _kept_or_patched(plan, patch, pool)


def _kept_or_patched(plan: Allocation, patch: Allocation, pool: Pool) -> Delta:
    delta = _delta(plan, patch, pool, "nobody's layers change")
    if not delta.steps and patch.standby == plan.standby and set(patch.stages()) == set(plan.stages()):
        return replace(delta, plan=plan)
    if not delta.steps:
        return delta
    movers = len({step.node_id for step in delta.steps})
    return replace(delta, reason=_count(movers, "node changes what it holds", "nodes change what they hold"))


def _delta(
    before: Allocation | None,
    after: Allocation,
    pool: Pool,
    reason: str,
    *,
    anew: bool = False,
    gap: tuple[int, int] | None = None,
) -> Delta:
    steps = steps_between(before, after, pool)
    return Delta(after, steps, loaded_bytes(steps), load_seconds(steps), anew, reason, gap)


def first_plan(before: Allocation | None, after: Allocation, pool: Pool) -> Delta:
    """To a plan that owes nothing to the one before."""
    return _delta(before, after, pool, after.note, anew=True)


def _patch(plan: Allocation, kept: Sequence[Stage], pool: Pool) -> Allocation:
    """What is kept and what is missing, by the takers who give most tokens within HORIZON_S, the loading counted: of
    patches of the fewest bytes, and those in which one of their takers is left out."""
    found = patched(plan, kept, pool)
    best = _judge(plan, found, pool)
    takers = sorted({stage.node_id for stage in found} - {stage.node_id for stage in kept})
    takers += sorted({stage.node_id for stage in set(found) - set(kept)} - set(takers))
    if uncovered(plan.layers, kept) is None or uncovered(plan.layers, found) is not None:
        return best
    most = _worth(plan, best, pool)
    for taker in takers[:MOST_TAKERS]:
        other = patched(plan, kept, pool, without=taker)
        if uncovered(plan.layers, other) is None:
            judged_other = _judge(plan, other, pool)
            worth = _worth(plan, judged_other, pool)
            if worth > most * (1 + SURE):
                best, most = judged_other, worth
    return best


def _worth(plan: Allocation, patch: Allocation, pool: Pool) -> float:
    return patch.score * max(0.0, HORIZON_S - load_seconds(steps_between(plan, patch, pool)))


def _score(plan: Allocation) -> float:
    return plan.score


def _reshare(plan: Allocation, pool: Pool) -> Delta:
    """Shares follow the members: who comes or goes changes everybody's."""
    after = allocate(plan.model, pool.nodes, pool.links, plan.objective, plan, plan.workload)
    same = set(after.stages()) == set(plan.stages()) and after.standby == plan.standby
    why = "the shares stay as they are" if same else "the layers are divided anew among those who are here"
    gap = uncovered(after.layers, after.stages())
    delta = _delta(plan, after, pool, after.note if gap else why, anew=not same, gap=gap)
    return replace(delta, plan=plan) if same and after.note == plan.note else delta


def _count(number: int, one: str, several: str) -> str:
    return f"one {one}" if number == 1 else f"{number} {several}"


def _still_stands(plan: Allocation, stage: Stage, node: PoolNode | None) -> bool:
    if node is None or node.barred:
        return False
    if node.pinned is not None:
        return node.pinned == (stage.start, stage.end)
    return has_room(plan, node, stage.start, stage.end)


def _judge(plan: Allocation, stages: Sequence[Stage], pool: Pool) -> Allocation:
    """A layout as an allocation: its pipelines found, its idle nodes placed as replicas, its score told."""
    bare = judged(plan, stages, pool)
    held = {stage.node_id for stage in stages}
    best_ms = min((p.token_ms for p in bare.pipelines), default=0.0)
    places = Replicas(PoolTable(plan.model, pool.nodes, pool.links, plan.workload), stages, best_ms)
    replicas, standby = list(bare.replicas), list[Standby]()
    idle = [node for node in pool.nodes if node.node_id not in held]
    for node in sorted(idle, key=lambda n: (-n.memory_bytes, -n.bandwidth, n.node_id)):
        placed = places.place(node)
        if isinstance(placed, Stage):
            replicas.append(placed)
        else:
            standby.append(placed)
    return replace(
        bare,
        replicas=tuple(sorted(replicas, key=lambda s: (s.start, s.end, s.node_id))),
        standby=tuple(sorted(standby, key=lambda s: s.node_id)),
    )


def steps_between(before: Allocation | None, after: Allocation, pool: Pool) -> tuple[Step, ...]:
    """Loads and drops that lead from one plan to the next, make before break."""
    memory = {node.node_id: node.memory_bytes for node in pool.nodes}
    context = cache_tokens(after.model, after.objective, after.workload)
    held = list(before.stages()) if before is not None else []
    return ordered_steps(after.model, held, list(after.stages()), memory, context)


def loaded_bytes(steps: Sequence[Step]) -> int:
    """Weights to load, all nodes together."""
    return sum(step.weight_bytes for step in steps if step.kind == "load")


def load_seconds(steps: Sequence[Step]) -> float:
    """Nodes load at once: the one with most to load sets the time."""
    per_node: dict[str, int] = {}
    for step in steps:
        if step.kind == "load":
            per_node[step.node_id] = per_node.get(step.node_id, 0) + step.weight_bytes
    return max((LOAD_S + size / LOAD_RATE for size in per_node.values()), default=0.0)
