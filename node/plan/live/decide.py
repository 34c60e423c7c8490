"""When a new plan is due, and which: a pure function of records, model, settings and the plan in force.

The *planner* is the eligible member with the smallest id, so that any member can take over.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from node.errors import PlanError
from node.plan.costs.model import cost_of_plan
from node.plan.live.members import planner_of
from node.plan.live.propose import propose
from node.plan.moving.replan import LOAD_RATE
from node.wire.ids import NodeId
from node.wire.models import Dtype, ModelFacts, ModelRef
from node.wire.plans import Plan, PlanSettings
from node.wire.records import NodeRecord

RETURN_MOST_S = 1.5
"""A member that vanished without a goodbye is waited for no longer than this, however much it held: a lost link is back
by then, and there is a new plan within 5 s of a cut cable, which is noticed after 3."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why there can be no plan, in a sentence for people."""

    reason: str


def decide(
    self_id: NodeId,
    records: Mapping[NodeId, NodeRecord],
    model: ModelRef,
    dtype: Dtype,
    facts: ModelFacts,
    current: Plan | None,
    settings: PlanSettings,
    expected: Collection[NodeId] = (),
    last_epoch: int = 0,
    aside: Collection[NodeId] = (),
    *,
    settled: bool = False,
) -> Plan | Problem | None:
    """The plan to publish now, what stands in its way, or None when the one in force stays.

    `expected` are members that were lost without a goodbye and may return: while one of them has layers in the current
    plan, the plan stays as it is, so that its return makes the swarm whole without moving anybody's layers. Those who
    are `aside` hold layers as anybody does, and do not plan. `settled`: members have run on the machines where they are
    for long.
    """
    if planner_of(records, first=current is None, aside=aside) != self_id:
        return None
    if current is not None and any(assignment.id in expected for assignment in current.assignments):
        return None
    try:
        proposal = propose(
            self_id, records, model, dtype, facts, current, settings, last_epoch, lenient=True, settled=settled
        )
    except PlanError as error:
        return Problem(str(error))
    return proposal.plan if proposal.changes else None


def return_grace_s(plan: Plan, node_id: NodeId) -> float:
    """How long to wait for a member that vanished: about as long as the others would load what it alone held.

    The rule of the ski rental, never much worse than having known whether it returns, for as long as people can be kept
    waiting.
    """
    held = plan.range_of(node_id)
    if held is None:
        return 0.0
    elsewhere = {layer for a in plan.assignments if a.id != node_id for layer in range(a.start, a.end)}
    alone = [layer for layer in range(held.start, held.end) if layer not in elsewhere]
    cost = cost_of_plan(plan)
    return min(RETURN_MOST_S, sum(cost.range_bytes(layer, layer + 1) for layer in alone) / LOAD_RATE)
