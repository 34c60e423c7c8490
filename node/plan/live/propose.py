"""What the swarm's next plan would be: from members' records and people's settings to a plan that can be published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from node.errors import BadLayers, NotCovered
from node.plan.costs.model import ModelCost, cost_of_facts
from node.plan.live.from_records import pool_of_records
from node.plan.live.members import eligible
from node.plan.machines.pool import Pool, PoolNode
from node.plan.moving.order import Step, left_out
from node.plan.moving.replan import first_plan, replan
from node.plan.objectives import BALANCED, SHARE, goal_named
from node.plan.placement.allocate import DEFAULT_WORKLOAD, allocate, reasons_of
from node.plan.placement.allocation import Allocation, Stage, Standby
from node.plan.placement.around_pins import pin_problem
from node.plan.placement.evaluate import judged
from node.wire.ids import NodeId
from node.wire.layer_range import layer_range
from node.wire.models import DTYPE_BYTES, Dtype, ModelFacts, ModelRef
from node.wire.plan_size import fit
from node.wire.plans import Objective, Plan, PlanSettings
from node.wire.plans import Standby as ToldStandby
from node.wire.records import NodeRecord

MOST_SENTENCE = 400
"""Characters of a reason or a note on the wire."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A plan and what it would mean."""

    plan: Plan
    """As it would be published; the plan in force itself when nothing changes."""
    allocation: Allocation
    """Its pipelines, replicas, standby and score."""
    steps: tuple[Step, ...]
    """Loads and drops that lead there from the plan in force, in order."""
    load_bytes: int
    """Weights to load, all nodes together."""
    load_s: float
    """How long that takes, about."""
    reason: str
    """Why, in a sentence."""
    problems: tuple[str, ...]
    """Records that cannot be taken, and why."""
    changes: bool
    """Whether it differs from the plan in force."""
    left_out: tuple[tuple[int, int], ...] = ()
    """Layers that no node holds for a while on the way, since there is no room for old and new at once."""


def propose(
    author: NodeId,
    records: Mapping[NodeId, NodeRecord],
    model: ModelRef,
    dtype: Dtype,
    facts: ModelFacts,
    current: Plan | None,
    settings: PlanSettings,
    last_epoch: int = 0,
    *,
    lenient: bool = False,
    settled: bool = False,
) -> Proposal:
    """The plan that suits `records` and `settings`; as little as possible changes against `current`.

    `lenient`: settings that cannot be any more, for the nodes or the model have changed, are planned around.
    `settled`: members have run on the machines where they are for long.

    Raises:
        DoesNotFit: all members' memory together is too small; says how much is missing.
        NotCovered: nobody can hold layers that were held by members who are gone, or nobody may hold any.
        BadLayers: a range set by hand reaches beyond the model, or overfills its node.
        BadWireData: the plan is too large to travel; only thousands of settings by hand lead there.
    """
    read = pool_of_records(records.values(), settings)
    cost = cost_of_facts(model.name, facts, DTYPE_BYTES[dtype])
    pool = _beside_bad_pins(read.pool, cost, records, lenient)
    if pool.nodes and all(node.barred for node in pool.nodes):
        raise NotCovered(
            f"no node may hold layers ({reasons_of(pool.nodes)}); "
            "`parallax plan --reset NAME --apply` takes settings back"
        )
    objective = resolved(settings, records, current, settled=settled)
    serves = current if current is not None and (current.model, current.dtype) == (model, dtype) else None
    held: Allocation | None = None
    if serves is not None:  # shares must know whether shares were in force; the others score what is held as their own
        if goal_named(objective).by_memory:
            as_it_was = pool_of_records(records.values(), serves.settings).pool
            held = _allocation_of(serves, cost, as_it_was, serves.objective)
        else:
            held = _allocation_of(serves, cost, pool, objective)
    if held is None or serves is None or serves.objective != objective:
        allocation = allocate(cost, pool.nodes, pool.links, objective, held)
        delta = first_plan(held, allocation, pool)
    else:
        delta = replan(held, pool)
        # The planner's own shares follow ranges set by hand, gaps and all; nobody shall open a gap by a change.
        if delta.uncovered is not None and (not goal_named(objective).by_memory or not (lenient or _has_gap(serves))):
            start, end = delta.uncovered
            raise NotCovered(f"layers {layer_range(start, end)} can be held by no node now: {delta.reason}")
    standby = tuple(ToldStandby(s.node_id, s.reason[:MOST_SENTENCE], s.barred) for s in delta.plan.standby)
    epoch = max(last_epoch, current.epoch if current is not None else 0) + 1
    note = delta.plan.note[:MOST_SENTENCE]
    assignments = delta.plan.assignments()
    if serves is not None:
        same_choice = (serves.objective, serves.settings) == (objective, settings)
        if same_choice and assignments == serves.assignments and _who(standby) == _who(serves.standby):
            return Proposal(serves, delta.plan, (), 0, 0.0, delta.reason, read.problems, changes=False)
    plan = fit(Plan(epoch, author, model, dtype, facts, assignments, standby, objective, settings, note))
    out = tuple(left_out(held.stages(), delta.steps)) if held is not None else ()
    return Proposal(
        plan,
        delta.plan,
        delta.steps,
        delta.load_bytes,
        delta.load_s,
        delta.reason,
        read.problems,
        changes=True,
        left_out=out,
    )


def _beside_bad_pins(pool: Pool, cost: ModelCost, records: Mapping[NodeId, NodeRecord], lenient: bool) -> Pool:
    """The pool with nodes barred whose owner set layers that cannot be, unless nobody else is there.

    Raises:
        BadLayers: layers set from elsewhere cannot be; who sets them is told.
    """
    problems = {node.node_id: pin_problem(cost, node, DEFAULT_WORKLOAD) for node in pool.nodes if not node.barred}
    nodes: list[PoolNode] = []
    for node in pool.nodes:
        problem = problems.get(node.node_id, "")
        if problem and node.pinned is not None:
            text = layer_range(*node.pinned)
            by_owner = records[NodeId(node.node_id)].pinned_layers is not None
            if not (by_owner or lenient) or all(problems.values()):
                raise BadLayers(text, problem)
            node = replace(node, pinned=None, barred=f"its layers set by hand, {text}, cannot be: {problem}")
        nodes.append(node)
    return Pool(tuple(nodes), pool.links)


def resolved(
    settings: PlanSettings, records: Mapping[NodeId, NodeRecord], current: Plan | None, *, settled: bool = False
) -> Objective:
    """The objective itself where people left it to us: balanced with the second machine, and share again only when all
    have been on one for long (`settled`), so that a machine that comes and goes does not have all layers moved."""
    if settings.objective != "auto":
        return settings.objective
    was_balanced = current is not None and (current.settings.objective, current.objective) == ("auto", BALANCED.name)
    return (SHARE if on_one_machine(records) and (settled or not was_balanced) else BALANCED).name


def on_one_machine(records: Mapping[NodeId, NodeRecord]) -> bool:
    """Whether all who can hold layers run on one machine."""
    return len({record.machine_id for record in eligible(records).values()}) <= 1


def _allocation_of(plan: Plan, cost: ModelCost, pool: Pool, objective: Objective) -> Allocation:
    """The plan in force as phase 1 sees it. What members hold that are gone is told too, so that their loss is known
    from a plan that could be better; shares are of those who are here."""
    here = {node.node_id for node in pool.nodes}
    by_memory = goal_named(objective).by_memory
    stages = tuple(Stage(a.node_id, a.start, a.end) for a in plan.assignments if a.node_id in here or not by_memory)
    standby = tuple(Standby(s.node_id, s.reason, s.barred) for s in plan.standby if s.node_id in here)
    bare = Allocation(cost, pool, DEFAULT_WORKLOAD, objective, (), stages, standby, 0.0, 0.0, plan.note)
    return judged(bare, stages, pool)


def _has_gap(plan: Plan) -> bool:
    held = {layer for a in plan.assignments for layer in range(a.start, a.end)}
    return len(held) < plan.facts.layers


def _who(standby: tuple[ToldStandby, ...]) -> list[tuple[str, bool]]:
    """Reasons hold figures that change all the time; they are no reason for a new plan."""
    return [(each.node_id, each.barred) for each in standby]
