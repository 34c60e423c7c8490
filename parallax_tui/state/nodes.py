"""The node table: one row per member, and one per node that the plan counts on but nobody sees."""

from __future__ import annotations

from dataclasses import dataclass

from rich.cells import cell_len

from node.journal.state import NodeView, State
from node.wire.ids import NodeId
from node.wire.records import NodeRecord
from parallax_tui.state.cells import Cell, Line, Tone, padded, safe, wrapped
from parallax_tui.state.choices import set_by_hand, standby_reasons, usable_bytes
from parallax_tui.state.figures import duration, layers, size
from parallax_tui.state.live import Live

NONE = "–"
DECISIONS_SHOWN = 4
"""Of nodes that stand by or are steered by hand; a large swarm has too many for a screen."""


@dataclass(frozen=True, slots=True)
class Condition:
    """How a node is: the symbol and the word say it, the tone only repeats it."""

    symbol: str
    word: str
    tone: Tone


READY = Condition("●", "ready", "good")
LOADING = Condition("◐", "loading", "warn")
DRAINING = Condition("◔", "draining", "warn")
STARTING = Condition("◌", "starting", "warn")
STANDBY = Condition("○", "standby", "muted")
FAILED = Condition("✕", "failed", "bad")
GONE = Condition("✕", "gone", "bad")


@dataclass(frozen=True, slots=True)
class NodeRow:
    """One line of the table, as text."""

    node_id: NodeId
    name: str
    condition: Condition
    layers: str
    memory: str = NONE
    device: str = NONE
    rtt: str = NONE
    """Round trip from the node that we ask."""
    sessions: str = NONE
    token: str = NONE
    """Time that one token spends in the node's layers."""
    problem: str = ""


def condition_of(record: NodeRecord) -> Condition:
    """What the node is doing, the worst first."""
    states = {held.state for held in record.held}
    if record.state == "failed":
        return FAILED
    if "loading" in states:
        return LOADING
    if "ready" in states:
        return READY
    if "draining" in states or (record.state == "standby" and record.sessions):
        return DRAINING  # a range that nobody is sent to any more stays until the last answer on it has ended
    return STANDBY if record.state == "standby" else STARTING


def node_rows(live: Live) -> tuple[NodeRow, ...]:
    """Rows in layer order; those without layers last, by name."""
    state = live.state
    if state is None:
        return ()
    rows = [(_place(state, node_id), _row(state, live, view)) for node_id, view in state.nodes.items()]
    if state.plan is not None:
        rows += [
            (
                assigned.start,
                NodeRow(assigned.id, live.name_of(assigned.id), GONE, layers(assigned.start, assigned.end)),
            )
            for assigned in state.plan.assignments
            if assigned.id not in state.nodes
        ]
    return tuple(row for _, row in sorted(rows, key=lambda entry: (entry[0], entry[1].name, entry[1].node_id)))


def _place(state: State, node_id: NodeId) -> int:
    held = state.nodes[node_id].record.held
    assigned = state.plan.range_of(node_id) if state.plan is not None else None
    starts = [one.start for one in held] + ([assigned.start] if assigned else [])
    return min(starts, default=1_000_000)


def _row(state: State, live: Live, view: NodeView) -> NodeRow:
    record = view.record
    here = record.id == state.self_id
    held = record.ready_range() or (record.held[0] if record.held else None)
    assigned = state.plan.range_of(record.id) if state.plan is not None else None
    shown = held or assigned
    us = state.nodes.get(state.self_id)
    rtt_ms = us.record.rtt_ms.get(record.id) if us is not None and not here else None
    latency = record.layer_latency
    memory_bytes = usable_bytes(state, record)
    return NodeRow(
        node_id=record.id,
        name=live.name_of(record.id) + (" (this)" if here else ""),
        condition=condition_of(record),
        layers=layers(shown.start, shown.end) if shown else NONE,
        memory=size(memory_bytes) if memory_bytes else NONE,
        device=record.hardware.device if record.hardware else NONE,
        rtt=duration(rtt_ms) if rtt_ms is not None else NONE,
        sessions=str(record.sessions),
        token=duration(latency.mean_ms * (held.end - held.start)) if latency and held else NONE,
        problem=safe(record.problem),
    )


@dataclass(frozen=True, slots=True)
class _Column:
    title: str
    field: str
    rank: int
    """Those with the highest rank go first where the table is too wide."""
    right: bool = True


_COLUMNS = (
    _Column("NODE", "name", 0, right=False),
    _Column("LAYERS", "layers", 1),
    _Column("STATE", "state", 0, right=False),
    _Column("MEMORY", "memory", 4),
    _Column("DEVICE", "device", 5, right=False),
    _Column("RTT", "rtt", 3),
    _Column("SESSIONS", "sessions", 6),
    _Column("PER TOKEN", "token", 2),
)
_GAP = 2
NAME_LIMIT = 22


def node_table(live: Live, width: int) -> tuple[Line, ...]:
    """Head, rows, and under them the problems that nodes tell and what was decided; columns that do not fit go."""
    rows = node_rows(live)
    if not rows:
        return ((Cell("no node has been seen yet", "muted"),),)
    texts = [{column.field: _text(row, column.field) for column in _COLUMNS} for row in rows]
    sizes = {
        column.field: min(
            max(cell_len(column.title), *(cell_len(text[column.field]) for text in texts)),
            NAME_LIMIT + 2 if column.field == "name" else 99,
        )
        for column in _COLUMNS
    }
    columns = list(_COLUMNS)
    while len(columns) > 2 and sum(sizes[column.field] + _GAP for column in columns) - _GAP > width:
        columns.remove(max(columns, key=lambda column: column.rank))
    if len(columns) == 2:
        sizes["name"] = max(4, min(sizes["name"], width - sizes["state"] - _GAP))
    gap = " " * _GAP
    head = gap.join(padded(column.title, sizes[column.field], right=column.right) for column in columns)
    lines: list[Line] = [(Cell(head, "faint"),)]
    for row, text in zip(rows, texts, strict=True):
        cells: list[Cell] = []
        for index, column in enumerate(columns):
            cell = padded(text[column.field], sizes[column.field], right=column.right)
            cells.append(Cell((gap if index else "") + cell, _tone(row, column.field)))
        lines.append(tuple(cells))
    for row in rows:
        for index, piece in enumerate(wrapped(row.problem, width - 2)):
            lines.append((Cell("✕ " if index == 0 else "  ", "bad"), Cell(piece, "muted")))
    return (*lines, *_decided(live, width))


def _decided(live: Live, width: int) -> list[Line]:
    """A line per node that stands by or has something set by hand; the first few of many."""
    state = live.state
    if state is None or state.plan is None:
        return []
    by_hand = {node_id: f"{live.name_of(node_id)} {words}, set by hand" for node_id, words in set_by_hand(state.plan)}
    told = [("· ", text) for node_id, text in by_hand.items() if node_id not in dict(standby_reasons(state))]
    told += [("○ ", safe(reason)) for _, reason in standby_reasons(state)]
    if len(told) > DECISIONS_SHOWN:
        rest = len(told) - DECISIONS_SHOWN + 1
        told = [*told[: DECISIONS_SHOWN - 1], ("· ", f"and {rest} more: see `parallax status`")]
    return [
        (Cell(mark if index == 0 else "  ", "faint"), Cell(piece, "muted"))
        for mark, text in told
        for index, piece in enumerate(wrapped(text, width - 2))
    ]


def _text(row: NodeRow, field: str) -> str:
    match field:
        case "name":
            return row.name
        case "state":
            return f"{row.condition.symbol} {row.condition.word}"
        case "layers":
            return row.layers
        case "memory":
            return row.memory
        case "device":
            return row.device
        case "rtt":
            return row.rtt
        case "sessions":
            return row.sessions
        case _:
            return row.token


def _tone(row: NodeRow, field: str) -> Tone:
    if field == "state":
        return row.condition.tone
    if row.condition is GONE:
        return "muted"
    return "strong" if field == "name" else "plain"
