"""The first thing a person sees: how far the node is on its way to the first answer."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from textual.app import ComposeResult
from textual.containers import Middle

from parallax_tui.screens.live_screen import LiveScreen
from parallax_tui.state.cells import Line
from parallax_tui.state.live import Live
from parallax_tui.state.starting import centred, starting_lines
from parallax_tui.widgets.lines import Lines

TEXT_WIDTH = 56


class StartingScreen(LiveScreen):
    """Shown until the model can answer; the app then goes on to the chat by itself."""

    SCOPES: ClassVar[tuple[str, ...]] = ("app",)
    DEFAULT_CSS = """
    StartingScreen {
        & > Middle { height: 1fr; padding: 0 2; }
        & #starting { min-height: 12; }
    }
    """

    def compose(self) -> ComposeResult:
        with Middle():
            yield Lines(id="starting")
        yield from super().compose()

    def show(self, live: Live) -> None:
        super().show(live)
        self.query_one("#starting", Lines).show(partial(_starting, live))


def _starting(live: Live, width: int) -> tuple[Line, ...]:
    return centred(starting_lines(live, min(TEXT_WIDTH, width)), width, TEXT_WIDTH)
