"""The latest sentences for the person at the terminal, newest last."""

from __future__ import annotations

from typing import Literal

from parallax_tui.state.cells import Cell, Line, Tone, safe, wrapped
from parallax_tui.state.live import Live

_MARKS: dict[Literal["info", "warning", "error"], tuple[str, Tone]] = {
    "info": ("·", "muted"),
    "warning": ("!", "warn"),
    "error": ("✕", "bad"),
}


def notice_lines(live: Live, width: int, limit: int) -> tuple[Line, ...]:
    """At most `limit` lines, the newest notices whole."""
    lines: list[Line] = []
    for notice in reversed(live.notices):
        mark, tone = _MARKS[notice.level]
        pieces = wrapped(safe(notice.text), width - 2)
        block: list[Line] = [
            (Cell(f"{mark if index == 0 else ' '} ", tone), Cell(piece, "muted" if notice.level == "info" else "plain"))
            for index, piece in enumerate(pieces)
        ]
        if lines and len(lines) + len(block) > limit:
            break
        lines = [*block[:limit], *lines]
    return tuple(lines) or ((Cell("nothing to report", "muted"),),)
