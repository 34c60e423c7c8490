"""`parallax status`: the swarm as this home's node sees it, as lines for people or JSON for programs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec

from node.journal.state import NodeView, State
from node.wire.ids import NodeId
from node.wire.layer_range import layer_range
from parallax_tui.state.cells import safe
from parallax_tui.state.choices import objective_words, set_by_hand, standby_reasons, usable_bytes
from parallax_tui.state.figures import size
from parallax_tui.state.nodes import condition_of, engine_words


def as_json(state: State) -> str:
    """Live members, the plan, what people have set of it and what it lacks. Past requests and departed members are
    not in it."""
    plan = state.plan
    memory = usable_bytes(state)
    duties = {node: override.duty for node, override in plan.settings.binding.items()} if plan else {}
    report: dict[str, Any] = {
        "self": state.self_id,
        "model": plan.model.name if plan else None,
        "dtype": plan.dtype if plan else None,
        "layers": plan.facts.layers if plan else None,
        "epoch": plan.epoch if plan else None,
        "objective": plan.objective if plan else None,
        "settings": plan.settings.as_data(lambda node: state.name_of(NodeId(node))) if plan else None,
        "note": plan.note if plan else "",
        "problem": state.plan_problem,
        "uncovered": [list(gap) for gap in state.uncovered()],
        "serving": plan is not None and not state.uncovered(),
        "avoided": [
            {"node": each.node_id, "name": each.name, "reason": each.reason, "until_s": each.until_s}
            for each in state.avoided
        ],
        "nodes": [_node(view, duties, memory) for view in _in_layer_order(state)],
        "assignments": [[a.node_id, a.start, a.end] for a in plan.assignments] if plan else [],
        "standby": [
            {"node": each.node_id, "name": state.name_of(NodeId(each.node_id)), "reason": each.reason}
            for each in (plan.standby if plan else ())
        ],
    }
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode()


def as_text(state: State) -> str:
    """A table, a sentence on what is missing, and under the table what people and the planner have decided."""
    plan = state.plan
    if plan is None:
        head = state.plan_problem or "no plan yet"
    else:
        gaps = state.uncovered()
        missing = ", ".join(layer_range(start, end) for start, end in gaps)
        health = f"layers {missing} have no ready node" if gaps else "whole"
        parts = (plan.model.name, f"{plan.facts.layers} layers", plan.dtype, f"plan {plan.epoch}")
        head = " · ".join([*parts, objective_words(plan), health])
        head += f"\n{plan.note}" if plan.note else ""
        if state.plan_problem:
            head += f"\n{state.plan_problem}"
    remarks = [f"{view.record.name}: {view.record.problem}" for view in state.nodes.values() if view.record.problem]
    remarks += [f"{each.name}: avoided until {_clock(each.until_s)}: {each.reason}" for each in state.avoided]
    if plan is not None:
        remarks += [f"standby: {reason}" for _, reason in standby_reasons(state)]
        remarks += [f"set by hand: {state.name_of(node_id)} {words}" for node_id, words in set_by_hand(plan)]
    return "\n".join(
        safe(line) for line in [*head.splitlines(), "", *_table(state), *([""] if remarks else []), *remarks]
    )


def _clock(unix_s: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(unix_s))


def _table(state: State) -> list[str]:
    rows = [("node", "layers", "state", "memory", "engine", "batch", "kv tokens", "rtt", "ms/layer")]
    own = state.nodes.get(state.self_id)
    memory = usable_bytes(state)
    for view in _in_layer_order(state):
        record = view.record
        held = next((h for h in record.held if h.state == "ready"), None) or next(iter(record.held), None)
        rtt = own.record.rtt_ms.get(record.node_id) if own else None
        latency, usable = record.layer_latency, memory.get(record.id)
        rows.append(
            (
                record.name + (" (this one)" if record.node_id == state.self_id else ""),
                layer_range(held.start, held.end) if held else "–",
                condition_of(record).word,
                "–" if usable is None else size(usable),
                engine_words(record) or "–",
                "–" if latency is None else str(latency.sequences),
                f"{record.kv_tokens_used}/{record.kv_tokens_total}",
                "–" if rtt is None else f"{rtt:.1f} ms",
                "–" if latency is None else f"{latency.p50_ms:.2f}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _in_layer_order(state: State) -> list[NodeView]:
    def place(view: NodeView) -> tuple[int, str, str]:
        held = view.record.held
        return (held[0].start if held else 1_000_000, view.record.name, view.record.node_id)

    return sorted(state.nodes.values(), key=place)


def _node(view: NodeView, duties: Mapping[str, str], memory: Mapping[NodeId, int]) -> dict[str, Any]:
    record = view.record
    ready = record.ready_range()
    return {
        "id": record.node_id,
        "name": record.name,
        "state": record.state,
        "condition": condition_of(record).word,
        "duty": duties.get(record.node_id, "serve"),
        "problem": record.problem,
        "layers": [ready.start, ready.end] if ready else None,
        "held": [[held.start, held.end, held.state] for held in record.held],
        "backend": record.backend or None,
        "quantisation": record.quantisation or None,
        "drift_class": record.drift_class or None,
        "batch": record.layer_latency.sequences if record.layer_latency else None,
        "device": record.hardware.device if record.hardware else None,
        "memory_bytes": record.hardware.memory_bytes if record.hardware else None,
        "usable_bytes": memory.get(record.id),
        "kv_tokens_total": record.kv_tokens_total,
        "kv_tokens_used": record.kv_tokens_used,
        "sessions": record.sessions,
        "queue_depth": record.queue_depth,
        "layer_latency_ms": record.layer_latency.p50_ms if record.layer_latency else None,
        "rtt_ms": record.rtt_ms,
        "addresses": list(record.addresses),
        "software": record.software,
    }
