"""The chat's text: a scrolling view over entries, painted line by line, at most ten times a second.

However long the conversation, this is one widget: Textual's own Markdown widget makes one per paragraph and falls
seconds behind on long answers.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from textwrap import dedent
from time import perf_counter

from textual import events
from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip
from textual.timer import Timer

from parallax_tui.chat.conversation import Message
from parallax_tui.state.cells import Line
from parallax_tui.widgets.entry import Entry
from parallax_tui.widgets.markdown import MarkdownPainter, Palette
from parallax_tui.widgets.selecting import selectable, selected_text
from parallax_tui.widgets.tones import TONE_CLASSES, strip_of, tone_css

FLUSH_S = 0.1
FLUSH_SHARE = 0.2
"""At most this share of the time goes into rendering; a costly open block is repainted less often."""
RESIZE_S = 0.08
"""Wrapping everything anew waits until the window has stood still so long."""
MARGIN = 2
WIDTH_LIMIT = 100
"""Longer lines are hard to read."""


class Transcript(ScrollView, can_focus=True):
    """Shows messages; follows the newest line while it is in view."""

    COMPONENT_CLASSES = TONE_CLASSES | {"transcript--question", "transcript--code"}
    DEFAULT_CSS = """
    Transcript {
        height: 1fr;
        background: $background;
        overflow-x: hidden;
        overflow-y: auto;
        scrollbar-gutter: stable;
        scrollbar-size-vertical: 1;
        & > .transcript--question { color: $foreground; background: $surface; }
        & > .transcript--code { background: $surface; }
    }
    """ + tone_css("Transcript")

    def __init__(self, *, flush_s: float = FLUSH_S, id: str | None = None) -> None:
        super().__init__(id=id)
        self.code_style = "github-dark"
        self._messages: Sequence[Message] = ()
        self._entries: list[Entry] = []
        self._ends: list[int] = []
        """Line after the last one of each entry."""
        self._painter: MarkdownPainter | None = None
        self._flush_s = flush_s
        self._flushed_at = 0.0
        self._pause_s = flush_s
        self._timer: Timer | None = None
        self._resize_timer: Timer | None = None

    def show(self, messages: Sequence[Message], *, at_once: bool = False) -> None:
        """Show these messages, soon; `at_once` also scrolls to their end."""
        self._messages = messages
        if at_once:
            self._flush()
            self.end()
        elif self._timer is None:
            waited_s = perf_counter() - self._flushed_at
            self._timer = self.set_timer(max(0.001, self._pause_s - waited_s), self._flush)

    def end(self) -> None:
        """Scroll to the newest line and follow it."""
        self.scroll_to(y=self.max_scroll_y, animate=False, force=True)

    @property
    def text(self) -> str:
        """All lines, without styles."""
        return "\n".join(strip.text.rstrip() for entry in self._entries for strip in entry.strips)

    def repaint_all(self, code_style: str) -> None:
        """The theme has changed."""
        self.code_style = code_style
        self._painter = None
        self._flush()
        self.refresh()

    def on_resize(self, event: events.Resize) -> None:
        if self._painter is None or self._text_width() == self._painter.width:
            self._flush()  # first shown, or shown again
        else:
            if self._resize_timer is not None:
                self._resize_timer.stop()
            self._resize_timer = self.set_timer(RESIZE_S, self._flush)

    def render_line(self, y: int) -> Strip:
        width = self.scrollable_content_region.width
        strip = self._line(y + self.scroll_offset.y)
        if strip is None:
            return Strip.blank(width, self.rich_style)
        line = Strip.join([Strip.blank(MARGIN, self.rich_style), strip]).adjust_cell_length(width, self.rich_style)
        return selectable(self, line, y + self.scroll_offset.y)

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        lines = (" " * MARGIN + strip.text for entry in self._entries for strip in entry.strips)
        return dedent(selected_text([*lines], selection)), "\n"

    def selection_updated(self, selection: Selection | None) -> None:
        self.refresh()

    def _line(self, y: int) -> Strip | None:
        index = bisect_right(self._ends, y)
        if index == len(self._entries):
            return None
        return self._entries[index].strips[y - (self._ends[index - 1] if index else 0)]

    def _text_width(self) -> int:
        return max(10, min(WIDTH_LIMIT, self.scrollable_content_region.width - 2 * MARGIN))

    def _flush(self) -> None:
        """Bring entries and screen up to date."""
        if self._timer is not None:
            self._timer.stop()
            self._timer = None
        if not self.size.width:
            return
        started = perf_counter()
        following = self.is_vertical_scroll_end
        top, height = self.scroll_offset.y, self.size.height
        before = [self._line(top + y) for y in range(height)]
        count = self._ends[-1] if self._ends else 0
        self._update_entries()
        now = self._ends[-1] if self._ends else 0
        if now != count:
            self.virtual_size = Size(self.scrollable_content_region.width, now)
        if following and now != count:
            self.end()
        for y, old in enumerate(before):
            if old != self._line(top + y):
                self.refresh(Region(0, y, self.size.width, 1))
        self._flushed_at = perf_counter()
        self._pause_s = max(self._flush_s, (self._flushed_at - started) / FLUSH_SHARE)

    def _update_entries(self) -> None:
        width = self._text_width()
        palette = self._palette()
        if self._painter is None or self._painter.width != width or self._painter.palette != palette:
            self._painter = MarkdownPainter(width, palette)
        for index, message in enumerate(self._messages):
            if index < len(self._entries) and self._entries[index].message is not message:
                del self._entries[index:]
            if index == len(self._entries):
                self._entries.append(Entry(message))
            self._entries[index].update(self._painter, self._paint_line)
        del self._entries[len(self._messages) :]
        self._ends = list(accumulate(len(entry.strips) for entry in self._entries))

    def _paint_line(self, line: Line) -> Strip:
        return strip_of(self, line, self._text_width())

    def _palette(self) -> Palette:
        question = self.get_component_rich_style("transcript--question")
        code = self.get_component_styles("transcript--code").background
        return Palette(
            base=self.rich_style,
            muted=self.get_component_rich_style("tone-muted", partial=True),
            strong=self.get_component_rich_style("tone-strong", partial=True),
            accent=self.get_component_rich_style("tone-accent", partial=True),
            question=question,
            code_style=self.code_style,
            code_ground=code.hex6,
        )
