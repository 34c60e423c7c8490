"""Where a token's time goes: one bar per hop, shifted by what came before, and a sentence for the bottleneck."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from node.journal.state import RequestView, State
from node.wire.events import HopLatency
from node.wire.layer_range import layer_range
from parallax_tui.state.cells import Cell, Line, Tone, fitted, padded, safe, shorten, wrapped
from parallax_tui.state.figures import count, duration, speed

Part = Literal["wire", "queue", "compute", "serialise"]
PARTS: tuple[Part, ...] = ("wire", "queue", "compute", "serialise")
"""In the order in which a step meets them."""
SYMBOLS: dict[Part, str] = {"wire": "╌", "queue": "░", "compute": "█", "serialise": "▒"}
RETURN_SYMBOL = "◂"
_MEANING: dict[Part, str] = {
    "wire": "on the wire",
    "queue": "waiting",
    "compute": "computing",
    "serialise": "packing and unpacking",
}


def _ms(hop: HopLatency, part: Part) -> float:
    match part:
        case "wire":
            return hop.wire_ms
        case "queue":
            return hop.queue_ms
        case "compute":
            return hop.compute_ms
        case "serialise":
            return hop.serialise_ms


@dataclass(frozen=True, slots=True)
class HopRow:
    """One hop of the waterfall."""

    name: str
    layers: str
    offset_ms: float
    """What the step has spent before it gets here."""
    parts_ms: tuple[float, float, float, float]
    """In the order of `PARTS`."""

    @property
    def total_ms(self) -> float:
        return sum(self.parts_ms)


def hop_rows(hops: Sequence[HopLatency]) -> tuple[HopRow, ...]:
    """The hops of one mean decode step, in chain order."""
    rows: list[HopRow] = []
    offset_ms = 0.0
    for hop in hops:
        wire_ms, queue_ms, compute_ms, serialise_ms = (_ms(hop, part) for part in PARTS)
        parts_ms = (wire_ms, queue_ms, compute_ms, serialise_ms)
        rows.append(HopRow(safe(hop.name), layer_range(hop.start, hop.end), offset_ms, parts_ms))
        offset_ms += sum(parts_ms)
    return tuple(rows)


def step_ms(hops: Sequence[HopLatency], return_ms: float) -> float:
    """One decode step from the first stage until the head has the token."""
    return sum(hop.total_ms for hop in hops) + return_ms


def bottleneck(hops: Sequence[HopLatency], return_ms: float) -> str:
    """The sentence that says what to look at; empty without figures."""
    whole_ms = step_ms(hops, return_ms)
    if not hops or whole_ms <= 0:
        return ""
    slowest = max(hops, key=lambda hop: hop.total_ms)
    name = safe(slowest.name)
    if return_ms > slowest.total_ms:
        share = _percent(return_ms, whole_ms)
        return f"the way back from {safe(hops[-1].name)} limits you: {share} of a step"
    part = max(PARTS, key=lambda part: _ms(slowest, part))
    if len(hops) == 1:
        share = _percent(_ms(slowest, part), whole_ms)
        return f"{name} does it all: {duration(whole_ms)} a step, {share} {_MEANING[part]}"
    share = _percent(slowest.total_ms, whole_ms)
    spent = f"{duration(slowest.total_ms)} of {duration(whole_ms)}"
    if part == "wire":
        return f"the way to {name} limits you: {share} of a step ({spent})"
    return f"{name} limits you: {share} of a step ({spent}), mostly {_MEANING[part]}"


def _percent(share_ms: float, whole_ms: float) -> str:
    return f"{100 * share_ms / whole_ms:.0f} %"


def columns_of(row: HopRow, whole_ms: float, width: int) -> tuple[int, tuple[int, int, int, int]]:
    """The row's shift and its parts in columns of a bar that is `width` wide for `whole_ms`.

    Edges are rounded, not lengths, so that the last bar ends where the step does.
    """
    scale = width / whole_ms if whole_ms > 0 else 0.0
    edges = [round(row.offset_ms * scale)]
    reached_ms = row.offset_ms
    for part_ms in row.parts_ms:
        reached_ms += part_ms
        edges.append(min(width, round(reached_ms * scale)))
    wire, queue, compute, serialise = (right - left for left, right in pairwise(edges))
    return edges[0], (wire, queue, compute, serialise)


def shown_request(state: State) -> RequestView | None:
    """The latest request that has figures for its hops."""
    return next((request for request in reversed(state.requests) if request.hops), None)


def headline(request: RequestView) -> str:
    """One request in a line."""
    words = {"running": "running", "stop": "done", "length": "done, at its limit", "cancelled": "stopped"}
    parts = [words.get(request.status, "failed"), count(request.tokens, "token")]
    if request.ttft_ms:
        parts.append(f"first after {duration(request.ttft_ms)}")
    if request.tpot_ms:
        parts.append(speed(request.tpot_ms))
    return " · ".join(parts)


def waterfall(request: RequestView | None, width: int) -> tuple[Line, ...]:
    """Headline, one bar per hop, the way back, the bottleneck and the legend."""
    if request is None:
        return ((Cell("no request yet: ask something in the chat", "muted"),),)
    rows = hop_rows(request.hops)
    whole_ms = step_ms(request.hops, request.return_ms)
    name_width = min(16, max(len("and back"), *(len(row.name) for row in rows)))
    layers_width = max(len(row.layers) for row in rows)
    bar_width = max(8, width - name_width - layers_width - 8 - 4)
    lines: list[Line] = [(Cell(shorten(headline(request), width), "muted"),)]
    for row in rows:
        shift, parts = columns_of(row, whole_ms, bar_width)
        cells = [
            Cell(padded(row.name, name_width), "strong"),
            Cell(f" {padded(row.layers, layers_width, right=True)} ", "muted"),
        ]
        cells.append(Cell(" " * (1 + shift)))
        cells += [Cell(SYMBOLS[part] * columns, part) for part, columns in zip(PARTS, parts, strict=True) if columns]
        cells.append(Cell(" " * (bar_width - shift - sum(parts))))
        cells.append(Cell(padded(duration(row.total_ms), 9, right=True)))
        lines.append(tuple(cells))
    if len(rows) > 1:
        back = max(1, round(request.return_ms / whole_ms * bar_width)) if whole_ms else 1
        cells = [
            Cell(padded("and back", name_width), "muted"),
            Cell(" " * (layers_width + 3 + bar_width - back)),
            Cell(RETURN_SYMBOL * back, "wire"),
            Cell(padded(duration(request.return_ms), 9, right=True), "muted"),
        ]
        lines.append(tuple(cells))
    tone: Tone = "accent"
    sentence = bottleneck(request.hops, request.return_ms)
    lines += [
        (Cell("> " if index == 0 else "  ", tone), Cell(piece))
        for index, piece in enumerate(wrapped(sentence, width - 2))
    ]
    legend = [
        (len(PARTS) - index, (Cell(SYMBOLS[part], part), Cell(f" {part}", "muted"))) for index, part in enumerate(PARTS)
    ]
    lines.append(fitted(legend, width, gap="   "))
    return tuple(lines)
