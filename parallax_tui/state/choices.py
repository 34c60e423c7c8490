"""What was decided about the layers, in words: the plan's aim, what people have set by hand, who stands by and why."""

from __future__ import annotations

from node.journal.state import State
from node.plan.live.members import memory_for_model, siblings_of
from node.wire.ids import NodeId
from node.wire.layer_range import layer_range
from node.wire.plans import Override, Plan
from parallax_tui.state.figures import size

DUTIES = {"serve": "", "drain": "drains", "exclude": "is excluded"}
"""`serve` is what a node does anyway."""


def objective_words(plan: Plan) -> str:
    """`latency`, or `share (auto)` where people left the choice to the swarm."""
    return f"{plan.objective} (auto)" if plan.settings.objective == "auto" else plan.objective


def override_words(override: Override) -> str:
    """`holds layers 0–9, uses at most 6.0 GiB, drains`; empty where nothing is set."""
    words = [
        f"holds layers {layer_range(*override.layers)}" if override.layers is not None else "",
        f"uses at most {size(override.memory_bytes)}" if override.memory_bytes is not None else "",
        DUTIES[override.duty],
    ]
    told = ", ".join(word for word in words if word)
    return f"{told} (set aside for now)" if override.set_aside else told


def usable_bytes(state: State) -> dict[NodeId, int]:
    """Memory that each measured node may use for the model: its part of the machine's, and what was set by hand."""
    measured = {node: view.record for node, view in state.nodes.items() if view.record.hardware is not None}
    siblings = siblings_of(measured)
    binding = state.plan.settings.binding if state.plan is not None else {}
    caps = {node: override.memory_bytes for node, override in binding.items()}
    return {
        node: memory_for_model(record, siblings[record.machine_id], caps.get(node)) for node, record in measured.items()
    }


def set_by_hand(plan: Plan) -> tuple[tuple[NodeId, str], ...]:
    """What people have set, node by node."""
    return tuple((NodeId(each.node_id), override_words(each)) for each in plan.settings.overrides)


def standby_reasons(state: State) -> tuple[tuple[NodeId, str], ...]:
    """Live members that hold nothing, and why, in sentences that name them."""
    if state.plan is None:
        return ()
    told = ((NodeId(each.node_id), each.reason) for each in state.plan.standby if each.reason)
    return tuple((node_id, reason) for node_id, reason in told if node_id in state.nodes)
