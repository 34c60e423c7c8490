"""The node table: one row per member, and one per node that the plan counts on but nobody sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from node.journal.state import NodeView, State
from node.wire.ids import NodeId
from node.wire.layer_range import layer_range
from node.wire.records import NodeRecord
from parallax_tui.state.cells import Cell, Line, Tone, padded, safe, wrapped
from parallax_tui.state.choices import set_by_hand, standby_reasons, usable_bytes
from parallax_tui.state.figures import duration, short, size
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
LEAVING = Condition("◔", "leaving", "warn")
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
    engine: str = NONE
    """What runs its layers, and how their weights lie in memory."""
    kv: str = NONE
    """Tokens in its KV cache, of those that there is room for."""
    batch: str = NONE
    """Sequences in one step, lately."""
    sessions: str = NONE
    token: str = NONE
    """Time that one token spends in the node's layers."""
    problem: str = ""


def condition_of(record: NodeRecord) -> Condition:
    """What the node is doing, the worst first."""
    states = {held.state for held in record.held}
    if record.state == "failed":
        return FAILED
    if record.leaving:
        return LEAVING  # soon gone, whatever it still holds and serves
    if "loading" in states:
        return LOADING
    if "ready" in states:
        return READY
    if "draining" in states or (record.state == "standby" and record.sessions):
        return DRAINING  # a range that nobody is sent to any more stays until the last answer on it has ended
    return STANDBY if record.state == "standby" else STARTING


def engine_words(record: NodeRecord) -> str:
    """What runs the node's layers and how their weights lie in memory: `ort Q4_1`; empty until there are some."""
    return safe(f"{record.backend} {record.quantisation}".strip())


def node_rows(live: Live) -> tuple[NodeRow, ...]:
    """Rows in layer order; those without layers last, by name."""
    state = live.state
    if state is None:
        return ()
    usable = usable_bytes(state)
    assigned_to = {a.id: (a.start, a.end) for a in state.plan.assignments} if state.plan is not None else {}
    rows = [
        (_place(view, assigned_to.get(node)), _row(state, live, view, assigned_to.get(node), usable.get(node)))
        for node, view in state.nodes.items()
    ]
    if state.plan is not None:
        rows += [
            (
                assigned.start,
                NodeRow(assigned.id, live.name_of(assigned.id), GONE, layer_range(assigned.start, assigned.end)),
            )
            for assigned in state.plan.assignments
            if assigned.id not in state.nodes
        ]
    return tuple(row for _, row in sorted(rows, key=lambda entry: (entry[0], entry[1].name, entry[1].node_id)))


def _place(view: NodeView, assigned: tuple[int, int] | None) -> int:
    starts = [one.start for one in view.record.held] + ([assigned[0]] if assigned else [])
    return min(starts, default=1_000_000)


def _row(
    state: State, live: Live, view: NodeView, assigned: tuple[int, int] | None, memory_bytes: int | None
) -> NodeRow:
    record = view.record
    here = record.id == state.self_id
    held = record.ready_range() or (record.held[0] if record.held else None)
    shown = (held.start, held.end) if held else assigned
    us = state.nodes.get(state.self_id)
    rtt_ms = us.record.rtt_ms.get(record.id) if us is not None and not here else None
    latency = record.layer_latency
    return NodeRow(
        node_id=record.id,
        name=live.name_of(record.id) + (" (this)" if here else ""),
        condition=condition_of(record),
        layers=layer_range(*shown) if shown else NONE,
        memory=size(memory_bytes) if memory_bytes else NONE,
        device=record.hardware.device if record.hardware else NONE,
        rtt=duration(rtt_ms) if rtt_ms is not None else NONE,
        engine=engine_words(record) or NONE,
        kv=f"{short(record.kv_tokens_used)}/{short(record.kv_tokens_total)}" if record.kv_tokens_total else NONE,
        batch=str(latency.sequences) if latency else NONE,
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
    _Column("ENGINE", "engine", 7, right=False),
    _Column("KV", "kv", 8),
    _Column("BATCH", "batch", 9),
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
    texts = {column.field: [_text(row, column.field) for row in rows] for column in _COLUMNS}
    sizes = {
        column.field: min(
            max(cell_len(column.title), *(cell_len(text) for text in set(texts[column.field]))),
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
    stacks = [
        _column_cells(rows, texts[column.field], column, sizes[column.field], gap if index else "")
        for index, column in enumerate(columns)
    ]
    lines: list[Line] = [(Cell(head, "faint"),), *zip(*stacks, strict=True)]
    for row in rows:
        for index, piece in enumerate(wrapped(row.problem, width - 2)):
            lines.append((Cell("✕ " if index == 0 else "  ", "bad"), Cell(piece, "muted")))
    return (*lines, *_decided(live, width))


def _column_cells(
    rows: Sequence[NodeRow], texts: Sequence[str], column: _Column, size_columns: int, gap: str
) -> list[Cell]:
    """One column from top to bottom. Most texts of a large swarm are alike, and are padded once."""
    made: dict[tuple[str, Tone], Cell] = {}
    cells = []
    for row, text in zip(rows, texts, strict=True):
        tone = _tone(row, column.field)
        cell = made.get((text, tone))
        if cell is None:
            cell = made[text, tone] = Cell(gap + padded(text, size_columns, right=column.right), tone)
        cells.append(cell)
    return cells


def _decided(live: Live, width: int) -> list[Line]:
    """A line per node that stands by or has something set by hand; the first few of many."""
    state = live.state
    if state is None or state.plan is None:
        return []
    by_hand = {node_id: f"{live.name_of(node_id)} {words}, set by hand" for node_id, words in set_by_hand(state.plan)}
    reasons = dict(standby_reasons(state))
    told = [("· ", text) for node_id, text in by_hand.items() if node_id not in reasons]
    told += [("○ ", safe(reason)) for reason in reasons.values()]
    if len(told) > DECISIONS_SHOWN:
        rest = len(told) - DECISIONS_SHOWN + 1
        told = [*told[: DECISIONS_SHOWN - 1], ("· ", f"and {rest} more: see `parallax status`")]
    return [
        (Cell(mark if index == 0 else "  ", "faint"), Cell(piece, "muted"))
        for mark, text in told
        for index, piece in enumerate(wrapped(text, width - 2))
    ]


def _text(row: NodeRow, field: str) -> str:
    if field == "state":
        return f"{row.condition.symbol} {row.condition.word}"
    text: str = getattr(row, field)
    return text


def _tone(row: NodeRow, field: str) -> Tone:
    if field == "state":
        return row.condition.tone
    if row.condition is GONE:
        return "muted"
    return "strong" if field == "name" else "plain"
