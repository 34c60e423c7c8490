"""When a new plan is due, and which: a pure function of records, model and the plan in force.

The *planner* is the eligible member with the smallest id, so that any member can take over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from node.errors import BadLayers, DoesNotFit
from node.plan.assign import Member, assign_layers, still_holds
from node.wire.ids import NodeId
from node.wire.models import Dtype, ModelFacts, ModelRef
from node.wire.plans import Plan
from node.wire.records import NodeRecord

MEMORY_SHARE = 0.7
"""Of the measured memory; the rest is the operating system's, the runtime's and the activations'."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why there can be no plan, in a sentence for people."""

    reason: str


def eligible(records: Mapping[NodeId, NodeRecord]) -> dict[NodeId, NodeRecord]:
    """Members that can hold layers: measured, and not failed."""
    return {
        node: record for node, record in records.items() if record.hardware is not None and record.state != "failed"
    }


def planner_of(records: Mapping[NodeId, NodeRecord]) -> NodeId | None:
    """Whose word counts now."""
    return min(eligible(records), default=None)


def memory_for_model(record: NodeRecord, siblings: int) -> int:
    """Bytes that this node may use for weights and KV cache; machine memory is divided among its nodes."""
    if record.memory_cap_bytes is not None:
        return record.memory_cap_bytes
    assert record.hardware is not None
    return int(record.hardware.memory_bytes * MEMORY_SHARE / max(1, siblings))


def siblings_of(records: Mapping[NodeId, NodeRecord]) -> Counter[str]:
    """How many members each machine runs."""
    return Counter(record.machine_id for record in records.values())


def decide(
    self_id: NodeId,
    records: Mapping[NodeId, NodeRecord],
    model: ModelRef,
    dtype: Dtype,
    facts: ModelFacts,
    current: Plan | None,
    expected: frozenset[NodeId] = frozenset(),
    last_epoch: int = 0,
) -> Plan | Problem | None:
    """The plan to publish now, what stands in its way, or None when the one in force stays.

    `expected` are members that were lost without a goodbye and may return: while one of them has layers in the current
    plan, the plan stays as it is, so that its return makes the swarm whole without moving anybody's layers.
    """
    if planner_of(records) != self_id:
        return None
    if current is not None and any(assignment.id in expected for assignment in current.assignments):
        return None
    candidates = eligible(records)
    siblings = siblings_of(candidates)
    members = [
        Member(node, memory_for_model(record, siblings[record.machine_id]), record.pinned_layers)
        for node, record in candidates.items()
    ]
    previous = current.assignments if current is not None else ()
    try:
        assignments = assign_layers(model.name, facts, members, previous)
    except (DoesNotFit, BadLayers) as error:
        return Problem(str(error))
    if current is not None and (current.model, current.dtype) == (model, dtype):
        settled = {assignment.node_id for assignment in previous} | set(current.standby)
        if assignments == previous or (settled == set(candidates) and still_holds(facts, members, previous)):
            return None
    standby = tuple(sorted(set(candidates) - {assignment.id for assignment in assignments}))
    epoch = max(last_epoch, current.epoch if current is not None else 0) + 1
    return Plan(epoch, self_id, model, dtype, facts, assignments, standby)
