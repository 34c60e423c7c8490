"""What all screens share: the status line, the line of keys, and being told when the picture changes."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, ClassVar, cast

from textual.app import ComposeResult
from textual.screen import Screen

from parallax_tui.actions import ACTIONS, Action, keys_of, shown_key
from parallax_tui.state.cells import Cell, Line, fitted
from parallax_tui.state.live import Live
from parallax_tui.state.status import status_line
from parallax_tui.widgets.lines import Lines

if TYPE_CHECKING:
    from parallax_tui.app import ParallaxApp


class LiveScreen(Screen[None]):
    """A screen under the status line. `SCOPES` name the actions that it offers."""

    SCOPES: ClassVar[tuple[str, ...]] = ("app",)
    DEFAULT_CSS = """
    LiveScreen {
        background: $background;
        & > #status { dock: bottom; height: 1; padding: 0 2; margin-bottom: 1; background: $surface; }
        & > #keys { dock: bottom; height: 1; padding: 0 2; }
    }
    """

    def compose(self) -> ComposeResult:
        yield from self.main()
        yield Lines(id="status")
        yield Lines(id="keys")

    def main(self) -> Iterable[Lines]:
        """The widgets above the status line."""
        return ()

    @property
    def owner(self) -> ParallaxApp:
        """The app, by its own type."""
        return cast("ParallaxApp", self.app)

    def show(self, live: Live) -> None:
        """Show this picture."""
        self.query_one("#status", Lines).show(partial(_status, live))
        self.show_keys()

    def on_screen_resume(self) -> None:
        self.show(self.owner.live)

    def offers(self, action: Action) -> bool:
        """Whether the action means something here and now."""
        return True

    def offered(self) -> tuple[Action, ...]:
        """What can be done now."""
        return tuple(one for one in ACTIONS if one.scope in self.SCOPES and self.offers(one))

    def show_keys(self) -> None:
        """Bring the line of keys up to date."""
        armed = self.owner.quit_armed
        view = partial(_key_hints, self.offered(), dict(self.owner.keys), armed)
        self.query_one("#keys", Lines).show(view)


def _status(live: Live, width: int) -> tuple[Line, ...]:
    return (status_line(live, width),)


def _key_hints(offered: tuple[Action, ...], keymap: dict[str, str], armed: bool, width: int) -> tuple[Line, ...]:
    parts: list[tuple[int, Line]] = []
    for one in offered:
        keys = keys_of(one, keymap)
        if armed and one.id == "app.interrupt" and keys:
            parts.append((-1, (Cell(shown_key(keys[0]), "accent"), Cell(" again quits", "strong"))))
        elif one.hint and keys:
            parts.append((one.rank, (Cell(shown_key(keys[0]), "accent"), Cell(f" {one.hint}", "muted"))))
    return (fitted(parts, width, gap="   "),)
