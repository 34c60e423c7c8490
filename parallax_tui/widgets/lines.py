"""Toned lines that repaint only the columns that changed.

Textual sends again whatever a widget marks dirty, unlooked at. So this widget compares its new lines with the old ones
and marks just the difference: a changed figure in a table costs tens of bytes instead of the whole table.

A view folds what peers say. One that fails shows that it did, in its own place; the app and all other views live on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from textual import events
from textual.geometry import Region, Size
from textual.selection import Selection
from textual.strip import Strip
from textual.widget import Widget

from parallax_tui.state.cells import Cell, Line, safe, text_of, width_of, wrapped
from parallax_tui.widgets.selecting import selectable, selected_text
from parallax_tui.widgets.tones import TONE_CLASSES, strip_of, tone_css

log = logging.getLogger(__name__)

View = Callable[[int], tuple[Line, ...]]
"""The lines for a width in columns. Pure, so that it can be asked again after a resize."""


class Lines(Widget):
    """Shows a view; as high as the view's lines unless its styles say otherwise."""

    COMPONENT_CLASSES = TONE_CLASSES
    DEFAULT_CSS = "Lines { height: auto; width: 1fr; }\n" + tone_css("Lines")

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._view: View = _nothing
        self._lines: tuple[Line, ...] = ()
        self._width = 0
        self._asked: tuple[View, int, tuple[Line, ...]] = (_nothing, 0, ())
        """The view and width that were last asked for lines, and those lines: layout and painting ask alike."""
        self._problems: set[str] = set()
        """Already in the log."""

    def show(self, view: View) -> None:
        """Show another view, painting what differs."""
        self._view = view
        if not self._width:
            self.refresh(layout=True)
            return
        old, self._lines = self._lines, self._lines_at(self._width)
        if len(old) != len(self._lines):
            self.refresh(layout=True)
            return
        for y, (before, after) in enumerate(zip(old, self._lines, strict=True)):
            if changed := changed_columns(before, after, self._width):
                self.refresh(Region(changed[0], y, changed[1] - changed[0], 1))

    @property
    def text(self) -> str:
        """What is shown, without tones."""
        return "\n".join(text_of(line) for line in self._lines)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return len(self._lines_at(width)) if width else 0

    def get_content_width(self, container: Size, viewport: Size) -> int:
        return container.width

    def on_resize(self, event: events.Resize) -> None:
        self._width = self.content_size.width
        self._lines = self._lines_at(self._width) if self._width else ()
        self.refresh()

    def render_line(self, y: int) -> Strip:
        line = self._lines[y] if y < len(self._lines) else ()
        return selectable(self, strip_of(self, line, self.content_size.width), y)

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        return selected_text(self._lines_as_text(), selection), "\n"

    def selection_updated(self, selection: Selection | None) -> None:
        self.refresh()

    def _lines_as_text(self) -> list[str]:
        return [text_of(line) for line in self._lines]

    def _lines_at(self, width: int) -> tuple[Line, ...]:
        view, at, lines = self._asked
        if view is not self._view or at != width:
            lines = self._from_view(width)
            self._asked = self._view, width, lines
        return lines

    def _from_view(self, width: int) -> tuple[Line, ...]:
        """What the view says; where it fails, that it does. A door: whatever a view raises must not end the app."""
        try:
            return self._view(width)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            if problem not in self._problems:
                self._problems = {*list(self._problems)[:7], problem}
                log.exception("the view %s failed", self.id)
            told = safe(f"this view failed ({problem[:200]}); the rest goes on. Please report it")
            return tuple((Cell(line, "bad"),) for line in wrapped(told, max(1, width)))


def _nothing(width: int) -> tuple[Line, ...]:
    return ()


def changed_columns(before: Line, after: Line, width: int) -> tuple[int, int] | None:
    """First and last column (half-open) in which two lines differ, by whole cells; None where they are equal."""
    if before == after:
        return None
    same = 0
    while same < min(len(before), len(after)) and before[same] == after[same]:
        same += 1
    left, right = width_of(before[:same]), width
    if width_of(before) == width_of(after):
        tail = 0
        while tail < min(len(before), len(after)) - same and before[-1 - tail] == after[-1 - tail]:
            tail += 1
        right = width_of(after[: len(after) - tail])
    return (left, right) if left < right <= width else (0, width)
