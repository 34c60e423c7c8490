"""Where a question is written: enter sends, earlier questions come back with the arrows."""

from __future__ import annotations

from collections.abc import Sequence

from textual import events
from textual.message import Message
from textual.strip import Strip
from textual.widgets import TextArea

from parallax_tui.actions import bindings

HEIGHT_LIMIT = 8


class Prompt(TextArea):
    """A text area that grows with its text. It keeps a draft while earlier questions are looked at."""

    BINDINGS = bindings("prompt")
    DEFAULT_CSS = f"""
    Prompt {{
        height: auto;
        max-height: {HEIGHT_LIMIT};
        background: $background;
        border: round $panel;
        padding: 0 1;
        scrollbar-size-vertical: 1;
        & .text-area--cursor-line {{ background: $background; }}
        &:focus {{ border: round $primary 70%; }}
    }}
    """

    class Held(Message):
        """Send was pressed while no question is taken; the text stays."""

    class Sent(Message):
        """A question is asked."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(
            id=id,
            soft_wrap=True,
            show_line_numbers=False,
            tab_behavior="focus",
            highlight_cursor_line=False,
            compact=False,
            placeholder="Ask anything",
        )
        self.cursor_blink = False  # an idle screen writes nothing
        self._earlier: Sequence[str] = ()
        self._place = 0
        self._draft = ""
        self.accepts = True
        """Whether a question is taken now."""

    def render_line(self, y: int) -> Strip:
        """A line of it. TextArea wraps its placeholder at any width, and fails where there is none left (8.2.8)."""
        return super().render_line(y) if self.content_size.width > 0 else Strip.blank(self.size.width, self.rich_style)

    def remember(self, prompts: Sequence[str]) -> None:
        """What the arrows bring back, oldest first."""
        self._earlier, self._place = prompts, len(prompts)

    async def _on_key(self, event: events.Key) -> None:
        """Run this widget's own actions here, in the order in which the keys came.

        As bindings they would run in the app's queue, before letters that are still in this one: of a line that is
        typed faster than the screen follows, only the beginning would be sent.
        """
        active = self.screen.active_bindings.get(event.key)
        if active is not None and active.node is self and (active.binding.id or "").startswith("prompt."):
            event.stop()
            event.prevent_default()
            await self.run_action(active.binding.action)
        else:
            await super()._on_key(event)

    def action_send(self) -> None:
        text = self.text.strip()
        if not self.accepts:
            self.post_message(self.Held())
        elif text:
            self.text = ""  # at once: what is typed from here on belongs to the next question
            self.accepts = False  # until whoever asks says otherwise
            self.post_message(self.Sent(text))

    def action_new_line(self) -> None:
        self.insert("\n")

    def action_earlier(self) -> None:
        if self.cursor_location[0] > 0 or not self._place:
            self.action_cursor_up()
            return
        if self._place == len(self._earlier):
            self._draft = self.text
        self._place -= 1
        self._put(self._earlier[self._place])

    def action_later(self) -> None:
        if self.cursor_location[0] < self.document.line_count - 1 or self._place >= len(self._earlier):
            self.action_cursor_down()
            return
        self._place += 1
        self._put(self._earlier[self._place] if self._place < len(self._earlier) else self._draft)

    def _put(self, text: str) -> None:
        self.text = text
        self.move_cursor(self.document.end)
