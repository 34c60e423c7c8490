"""What to do when the pool changes: as little as possible.

1. *Keep*: stages whose node is still there, may serve and has the memory stay as they are.
2. *Patch*: layers that nobody holds any more go to neighbours with room, to idle nodes, to replicas whose own layers
   are held elsewhere, for the fewest bytes to load (`patch`). New nodes become replicas of the worst served layers.
3. *Plan anew*, only when a layer stays uncovered, or when the new plan scores better by GAIN and what that gains within
   HORIZON_S outweighs moving: bytes / bandwidth + load time. Both bars are the hysteresis against flapping.
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
from node.wire.records import NodeRecord

GAIN = 0.2
"""A plan from scratch must score this much better than patching."""
HORIZON_S = 900.0
"""Time over which a better plan repays its moves."""
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
    try:
        anew = allocate(plan.model, pool.nodes, pool.links, plan.objective, plan, plan.workload)
    except (DoesNotFit, NotCovered) as error:
        patch = _judge(plan, patched(plan, kept, pool), pool)
        steps = steps_between(plan, patch, pool)
        gap = uncovered(plan.layers, patch.stages())
        return Delta(patch, steps, loaded_bytes(steps), False, str(error), gap)
    patch = _judge(plan, patched(plan, kept, pool), pool)
    gap = uncovered(plan.layers, patch.stages())
    if gap is not None:
        steps = steps_between(plan, anew, pool)
        why = f"layers {gap[0]}–{gap[1] - 1} were held by nobody and no patch could hold them"
        return Delta(anew, steps, loaded_bytes(steps), True, why)
    if {stage for pipeline in anew.pipelines for stage in pipeline.stages} <= set(patch.stages()):  # they stand already
        patch = max(patch, judged(replace(patch, pipelines=anew.pipelines), list(patch.stages()), pool), key=_score)
    anew_steps = steps_between(plan, anew, pool)
    measured = judged(anew if plan.pipelines else replace(anew, pipelines=()), list(anew.stages()), pool).score
    gain = measured / patch.score - 1 if patch.score > 0 else float("inf")
    steps = steps_between(plan, patch, pool)
    moving_s = _moving_s(anew_steps) - _moving_s(steps)
    if gain >= GAIN and min(gain, 10.0) * HORIZON_S > moving_s:
        why = f"planned anew: {gain:.0%} better, for {loaded_bytes(anew_steps) / 1e9:.2f} GB to load"
        return Delta(anew, anew_steps, loaded_bytes(anew_steps), True, why)
    same = not steps and patch.standby == plan.standby and set(patch.stages()) == set(plan.stages())
    movers = len({step.node_id for step in steps})
    why = (
        "nobody's layers change"
        if not movers
        else _count(movers, "node changes what it holds", "nodes change what they hold")
    )
    return Delta(plan if same else patch, steps, loaded_bytes(steps), False, why)


def _score(plan: Allocation) -> float:
    return plan.score


def _reshare(plan: Allocation, pool: Pool) -> Delta:
    """Shares follow the members: who comes or goes changes everybody's."""
    after = allocate(plan.model, pool.nodes, pool.links, plan.objective, plan, plan.workload)
    steps = steps_between(plan, after, pool)
    same = set(after.stages()) == set(plan.stages()) and after.standby == plan.standby
    why = "the shares stay as they are" if same else "the layers are divided anew among those who are here"
    gap = uncovered(after.layers, after.stages())
    unchanged = same and after.note == plan.note
    return Delta(plan if unchanged else after, steps, loaded_bytes(steps), not same, after.note if gap else why, gap)


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


def _moving_s(steps: Sequence[Step]) -> float:
    """Nodes load at once: the one with most to load sets the time."""
    per_node: dict[str, int] = {}
    for step in steps:
        if step.kind == "load":
            per_node[step.node_id] = per_node.get(step.node_id, 0) + step.weight_bytes
    return max((LOAD_S + size / LOAD_RATE for size in per_node.values()), default=0.0)
