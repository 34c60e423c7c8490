"""Judges plans that others have made: any member may plan, and none shall end the service by it.

A plan is followed at once where there is nothing to lose, or nothing wrong with it. Where the plan in force can serve
and the new one cannot, or names another model that nobody asked for or that cannot be had, or sizes that are not those
of the model's files, it waits: records may lag behind plans. If it is no better after some seconds, its author's plans
are set aside for a while and any member goes on from the plan in force. No clocks and no I/O here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from node.plan.live.members import eligible
from node.wire.ids import NodeId
from node.wire.layer_range import layer_range
from node.wire.models import ModelFacts, ModelRef
from node.wire.plans import Plan
from node.wire.records import NodeRecord

SIZES_AGREE_WITHIN = 1.25
"""Versions of this program may count a layer's bytes a little differently."""

EXACT = ("layers", "hidden_size", "vocab_size", "context_tokens", "experts")
ABOUT = ("layer_bytes", "embedding_bytes", "head_bytes", "kv_bytes_per_token_layer")


@dataclass(frozen=True, slots=True)
class Look:
    """What came of looking at a model's files."""

    facts: ModelFacts | None = None
    """None where they cannot be had here."""
    problem: str = ""


def nobody_for(plan: Plan, here: Mapping[NodeId, NodeRecord]) -> tuple[int, int] | None:
    """The first layers [start, end) that none of these members shall hold, as far as its owner lets it; None if all
    layers are somebody's."""
    given = sorted((a.start, a.end) for a in plan.assignments if a.id in here and _lets(here[a.id], a.start, a.end))
    reached = 0
    for start, end in [*given, (plan.facts.layers, plan.facts.layers)]:
        if start > reached:
            return reached, start
        reached = max(reached, end)
    return None


def _lets(record: NodeRecord, start: int, end: int) -> bool:
    return record.pinned_layers is None or tuple(record.pinned_layers) == (start, end)


def serves(plan: Plan, records: Mapping[NodeId, NodeRecord]) -> bool:
    """Whether members who follow the plan have every layer ready."""
    ready = sorted(
        (held.start, held.end)
        for record in records.values()
        for held in record.held
        if record.plan_epoch == plan.epoch and held.state == "ready" and held.weights in ("", plan.weights)
    )
    reached = 0
    for start, end in ready:
        if start <= reached:
            reached = max(reached, end)
    return reached >= plan.facts.layers


def all_have_failed(plan: Plan, records: Mapping[NodeId, NodeRecord]) -> bool:
    """Whether every member that shall hold layers, its author aside, says that it cannot."""
    others = [records[a.id] for a in plan.assignments if a.id in records and a.node_id != plan.author]
    return bool(others) and all(record.state == "failed" for record in others)


def asked_for(model: ModelRef, records: Mapping[NodeId, NodeRecord], aside: Collection[NodeId] = ()) -> bool:
    """Whether the owner of a member who is here, or what it has served, names this model."""
    return any(record.wanted_model == model for node, record in records.items() if node not in aside)


def difference(plan: Plan, found: ModelFacts) -> str:
    """What the plan says of its model that its files do not; empty where they agree."""
    for name in EXACT:
        told, true = getattr(plan.facts, name), getattr(found, name)
        if told != true:
            return f"it says {name} {told} of {plan.model.name}, whose files say {true}"
    for name in ABOUT:
        told, true = getattr(plan.facts, name), getattr(found, name)
        if not true / SIZES_AGREE_WITHIN <= told <= true * SIZES_AGREE_WITHIN:
            return f"it says {name} {told} of {plan.model.name}, whose files make {true}"
    return ""


def doubt(plan: Plan, current: Plan | None, records: Mapping[NodeId, NodeRecord], look: Look | None) -> str:
    """Why `plan` is not to be followed now, in words that follow on its name; empty where it may be.

    Args:
        current: the plan in force.
        look: what its model's files say, None where they have not been looked at.
    """
    if current is None or nobody_for(current, eligible(records)) is not None:
        return ""  # nothing is lost by it
    true = look.facts if look is not None else None
    if true is None and (plan.model, plan.dtype) == (current.model, current.dtype):
        true = current.facts
    if true is not None and (wrong := difference(plan, true)):
        return wrong
    if plan.model != current.model:
        if not asked_for(plan.model, records):
            return f"it names another model, {plan.model.name}, that no member asks for"
        if look is None:
            return f"it names another model, {plan.model.name}, whose files are not here yet"
        if look.facts is None:
            return f"it names another model, {plan.model.name}, that cannot be had here ({look.problem})"
    if (gap := nobody_for(plan, eligible(records))) is not None:
        return f"it leaves layers {layer_range(*gap)} to nobody"
    return ""
