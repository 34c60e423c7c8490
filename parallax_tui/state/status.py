"""The status line: model, nodes, layers, speed of the last answer, and whether the node answers at all."""

from __future__ import annotations

from node.wire.layer_range import layer_range
from parallax_tui.state.cells import Cell, Line, fitted, safe, shorten
from parallax_tui.state.figures import count, speed
from parallax_tui.state.layers import segments
from parallax_tui.state.live import Live

UNREACHABLE = "node unreachable, retrying"


def connection(live: Live) -> Line:
    """Whether the picture is live, old, or not there yet."""
    if live.connected:
        return (Cell("●", "good"),)
    if live.last_words:
        return (Cell("✕", "bad"), Cell(" the node has ended", "bad"))
    if live.state is None:
        return (Cell("◌", "warn"), Cell(" starting node…"))
    return (Cell("✕", "bad"), Cell(f" {UNREACHABLE}", "bad"))


def nodes(live: Live) -> Line:
    """`3 nodes`, `2 nodes, 1 stands by`, or `2/3 nodes` where not all of those that should serve do."""
    if live.state is None:
        return ()
    state = live.state
    planned = state.plan.assignments if state.plan is not None else ()
    waiting = {each.node_id for each in state.plan.standby} if state.plan is not None else set()
    ready = {node_id for node_id, view in state.nodes.items() if view.record.ready_range() is not None}
    idle = {node_id for node_id in state.nodes if node_id in waiting} - ready
    total = len({*state.nodes, *(assigned.id for assigned in planned)} - idle)
    if not total:
        return ()
    if len(ready) < total:
        return (Cell(f"{len(ready)}/{total} nodes", "warn"),)
    standing = f", {len(idle)} {'stands' if len(idle) == 1 else 'stand'} by" if idle else ""
    return (Cell(count(total, "node") + standing, "muted"),)


def coverage(live: Live) -> Line:
    """`30 layers, whole`, or which are missing."""
    if live.state is None or live.state.plan is None:
        return ()
    if live.state.plan_problem:
        return (Cell("✕ no plan", "bad"),)
    parts = segments(live.state)
    missing = [layer_range(s.start, s.end) for s in parts if s.kind == "none"]
    loading = [layer_range(s.start, s.end) for s in parts if s.kind == "loading"]
    if missing:
        return (Cell(f"✕ layers {', '.join(missing)} missing", "bad"),)
    if loading:
        return (Cell(f"◐ layers {', '.join(loading)} loading", "warn"),)
    return (Cell(f"{live.state.plan.facts.layers} layers, whole", "muted"),)


def last_speed(live: Live) -> Line:
    """Tokens per second of the last answer that has them."""
    if live.state is None:
        return ()
    request = next((r for r in reversed(live.state.requests) if r.tpot_ms > 0), None)
    return (Cell(speed(request.tpot_ms), "muted"),) if request else ()


def status_line(live: Live, width: int) -> Line:
    """All of it in `width` columns; what matters least goes first."""
    model = shorten(safe(live.model), 32)
    parts: list[tuple[int, Line]] = [(0, connection(live))]
    parts += [(3, (Cell(model, "strong"),))] if model else []
    if not live.connected:  # the rest would be what once was
        return fitted(parts, width)
    parts += [(rank, part) for rank, part in ((2, nodes(live)), (1, coverage(live)), (4, last_speed(live))) if part]
    return fitted(parts, width)
