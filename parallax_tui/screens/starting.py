"""The first thing a person sees: how far the node is on its way to an answer. A question may be asked already."""

from __future__ import annotations

from functools import partial
from time import monotonic
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.containers import Middle

from parallax_tui.actions import Action
from parallax_tui.screens.live_screen import LiveScreen
from parallax_tui.state.cells import Line
from parallax_tui.state.live import Live
from parallax_tui.state.starting import centred, starting_lines
from parallax_tui.widgets.lines import Lines
from parallax_tui.widgets.prompt import Prompt

TEXT_WIDTH = 56
TICK_S = 1.0


class StartingScreen(LiveScreen):
    """Shown until the model can answer; the app then goes on to the chat by itself, which asks what was asked here."""

    SCOPES: ClassVar[tuple[str, ...]] = ("prompt", "app")
    AUTO_FOCUS = "Prompt"
    DEFAULT_CSS = """
    StartingScreen {
        & > Middle { height: 1fr; padding: 0 2; }
        & #starting { min-height: 12; }
        & > Prompt { margin: 0 1; }
    }
    """

    def __init__(self) -> None:
        super().__init__()
        self._opened_s = monotonic()
        self._told_s = 0
        self._question = ""

    def compose(self) -> ComposeResult:
        with Middle():
            yield Lines(id="starting")
        yield Prompt()
        yield from super().compose()

    def on_mount(self) -> None:
        self.set_interval(TICK_S, self._tick)

    def _tick(self) -> None:
        """Time passes; nothing is painted on a screen that nobody sees, or whose node has ended."""
        if self.is_current and not self.owner.live.last_words:
            self._told_s = int(monotonic() - self._opened_s)
            self._show_steps(self.owner.live)

    def show(self, live: Live) -> None:
        super().show(live)
        self._show_steps(live)

    def _show_steps(self, live: Live) -> None:
        self.query_one("#starting", Lines).show(partial(_starting, live, self._told_s, self._question))

    def offers(self, action: Action) -> bool:
        return action.id not in ("prompt.send", "prompt.new-line") or not self._question

    @on(Prompt.Sent)
    def keep(self, event: Prompt.Sent) -> None:
        """It waits until the model can answer."""
        self._question = event.text
        self.show(self.owner.live)

    @on(Prompt.Held)
    def hold(self) -> None:
        """Say why a second one stays where it is."""
        self.notify("one question waits already; this one can be sent after it", timeout=3, markup=False)

    def hand_over(self) -> tuple[str, str]:
        """The question that waits and what is being written, each of them empty where there is none."""
        prompt = self.query_one(Prompt)
        handed = self._question, prompt.text
        self._question, prompt.text, prompt.accepts = "", "", True
        return handed


def _starting(live: Live, seconds: int, question: str, width: int) -> tuple[Line, ...]:
    return centred(starting_lines(live, min(TEXT_WIDTH, width), seconds, question), width, TEXT_WIDTH)
