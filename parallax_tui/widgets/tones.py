"""Tones to styles: the one place where the view models' tones meet the theme's colours."""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

from rich.segment import Segment
from textual.strip import Strip
from textual.widget import Widget

from parallax_tui.state.cells import Cell, Tone, width_of

TONE_CLASSES: set[str] = {f"tone-{tone}" for tone in get_args(Tone)}
"""Component classes; a widget that paints tones has them all."""

_STYLES: dict[Tone, str] = {
    "plain": "color: $foreground;",
    "muted": "color: $foreground 65%;",
    "faint": "color: $foreground 45%;",
    "strong": "color: $foreground; text-style: bold;",
    "accent": "color: $primary; text-style: bold;",
    "good": "color: $success;",
    "warn": "color: $warning;",
    "bad": "color: $error; text-style: bold;",
    "wire": "color: $hop-wire;",
    "queue": "color: $hop-queue;",
    "compute": "color: $hop-compute;",
    "serialise": "color: $hop-serialise;",
    "node-1": "color: $node-1;",
    "node-2": "color: $node-2;",
    "node-3": "color: $node-3;",
    "node-4": "color: $node-4;",
}


def tone_css(widget: str) -> str:
    """Default CSS of the tones in a widget of that type."""
    return "\n".join(f"{widget} > .tone-{tone} {{ {style} }}" for tone, style in _STYLES.items())


def strip_of(widget: Widget, line: Iterable[Cell], width: int) -> Strip:
    """The line in the widget's styles, exactly `width` columns wide."""
    cells = tuple(line)
    segments = [Segment(cell.text, widget.get_component_rich_style(f"tone-{cell.tone}")) for cell in cells if cell.text]
    return Strip(segments, width_of(cells)).adjust_cell_length(width, widget.rich_style).simplify()
