"""One message as strips. Blocks that are settled are rendered once; only the open end is rendered again."""

from __future__ import annotations

import logging
from collections.abc import Callable

from textual.strip import Strip

from parallax_tui.chat.blocks import blocks
from parallax_tui.chat.captions import caption
from parallax_tui.chat.conversation import Message
from parallax_tui.state.cells import Line
from parallax_tui.widgets.markdown import MarkdownPainter

log = logging.getLogger(__name__)

OPEN_LIMIT = 2500
"""Characters of an unfinished block that are still rendered as Markdown on each flush; a longer one (a big table, a
long listing) is shown plain until it is settled."""

PaintLine = Callable[[Line], Strip]


class Entry:
    """The strips of one message for the painter it was last updated with."""

    def __init__(self, message: Message) -> None:
        self.message = message
        self.strips: list[Strip] = []
        self._settled: list[Strip] = []
        self._consumed = 0
        self._painter: MarkdownPainter | None = None
        self._shown: tuple[object, ...] = ()

    def update(self, painter: MarkdownPainter, paint_line: PaintLine) -> bool:
        """Bring the strips up to date; tells whether they changed."""
        message = self.message
        shown = (len(message.text), message.status, message.problem, message.figures)
        if painter is self._painter and shown == self._shown:
            return False
        if painter is not self._painter:
            self._painter, self._settled, self._consumed = painter, [], 0
        self._shown = shown
        body = painter.question(message.text) if message.role == "user" else self._answer(painter)
        under = [paint_line(line) for line in caption(message, painter.width)]
        between = [painter.blank()] if body and under else []
        self.strips = [*body, *between, *under, painter.blank()]
        return True

    def _answer(self, painter: MarkdownPainter) -> list[Strip]:
        settled, rest = blocks(self.message.text[self._consumed :])
        for block in settled:
            self._settled += [*_painted(painter, block), painter.blank()]
            self._consumed += len(block)
        if not rest.strip():
            return self._settled[:-1]
        running = self.message.status == "running"
        open_end = painter.plain(rest) if running and len(rest) > OPEN_LIMIT else _painted(painter, rest)
        return [*self._settled, *open_end]


def _painted(painter: MarkdownPainter, block: str) -> list[Strip]:
    """A block of a model's text as Markdown; plain where that fails. A door: a model can write anything."""
    try:
        return painter.markdown(block)
    except Exception:
        log.exception("a block of %d characters is shown plain: as Markdown it failed", len(block))
        return painter.plain(block)
