"""Text of line-painting widgets that a person can select with the mouse and copy."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.segment import Segment
from textual.selection import Selection
from textual.strip import Strip
from textual.widget import Widget


def selectable(widget: Widget, strip: Strip, y: int, x: int = 0) -> Strip:
    """The strip of content line `y`, its selected part marked, its first column being column `x` of the content.

    Selections are counted in columns, as the mouse points.
    """
    selection = widget.text_selection
    span = selection.get_span(y) if selection is not None else None
    if span is not None:
        start, end = span
        end = strip.cell_length if end == -1 else min(end, strip.cell_length)
        if start < end:
            style = widget.screen.get_component_rich_style("screen--selection")
            before, marked, after = (list(strip.crop(*edges)) for edges in ((0, start), (start, end), (end, None)))
            marked = [Segment(text, own + style if own else style, control) for text, own, control in marked]
            strip = Strip([*before, *marked, *after], strip.cell_length)
    return strip.apply_offsets(x, y)


def selected_text(lines: Sequence[str], selection: Selection) -> str:
    """What is selected of these lines, without the spaces that fill them up."""
    taken = []
    for y, line in enumerate(lines):
        span = selection.get_span(y)
        if span is not None:
            start, end = span
            taken.append(_columns(line, start, None if end == -1 else end).rstrip())
    return "\n".join(taken)


def _columns(text: str, start: int, end: int | None) -> str:
    """The characters that begin in columns [start, end)."""
    if text.isascii():
        return text[start:end]
    column, kept = 0, []
    for character in text:
        if start <= column and (end is None or column < end):
            kept.append(character)
        column += cell_len(character)
    return "".join(kept)
