"""A proposed plan as JSON: figures for programs, sentences and a table for people. Node ids come with their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from node.plan.live.propose import Proposal
from node.plan.outlook.predict import predict
from node.plan.outlook.report import report_data, report_text
from node.wire.plans import Plan


def plan_reply(proposal: Proposal, before: Plan, names: Mapping[str, str], *, applied: bool) -> dict[str, Any]:
    """The reply's body.

    Args:
        proposal: what was found.
        before: the plan that was in force.
        names: of the nodes, by id; ids without one are called by their end.
        applied: whether the proposal is in force now.
    """

    def name_of(node_id: str) -> str:
        set_for = next((each.name for each in proposal.plan.settings.overrides if each.node_id == node_id), "")
        return names.get(node_id) or set_for or node_id[-8:]

    prediction = predict(proposal.allocation)
    return {
        **report_data(proposal.allocation, prediction),
        "epoch": proposal.plan.epoch,
        "settings": proposal.plan.settings.as_data(name_of),
        "changes": proposal.changes,
        "applied": applied,
        "reason": proposal.reason,
        "load_bytes": proposal.load_bytes,
        "load_s": proposal.load_s,
        "moves": [{**move, "name": name_of(str(move["node"]))} for move in _moves(before, proposal.plan)],
        "steps": [
            {
                "kind": step.kind,
                "node": step.node_id,
                "name": name_of(step.node_id),
                "start": step.start,
                "end": step.end,
                "weight_bytes": step.weight_bytes,
            }
            for step in proposal.steps
        ],
        "left_out": [list(layers) for layers in proposal.left_out],
        "problems": list(proposal.problems),
        "text": report_text(proposal.allocation, prediction),
    }


def _moves(before: Plan, after: Plan) -> list[dict[str, object]]:
    """Nodes that shall hold other layers than before, in layer order; null where they hold none."""
    was = {a.node_id: [a.start, a.end] for a in before.assignments}
    shall = {a.node_id: [a.start, a.end] for a in after.assignments}
    moved = [node_id for node_id in {*was, *shall} if was.get(node_id) != shall.get(node_id)]
    moved.sort(key=lambda node_id: (shall.get(node_id) or was[node_id], node_id))
    return [{"node": node_id, "before": was.get(node_id), "after": shall.get(node_id)} for node_id in moved]
