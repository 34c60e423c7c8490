"""All keys, made from the table of actions and the keymap in force."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, cast

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.screen import ModalScreen

from parallax_tui.actions import SCOPES, bindings, in_scope, keys_of, shown_key
from parallax_tui.state.cells import Cell, Line, padded, shorten
from parallax_tui.widgets.lines import Lines

if TYPE_CHECKING:
    from parallax_tui.app import ParallaxApp

KEYS_WIDTH = 16
TITLE_WIDTH = 19


def help_lines(keymap: Mapping[str, str], width: int) -> tuple[Line, ...]:
    """Each scope's actions with their keys; an action without a key is told to be in the command list."""
    lines: list[Line] = []
    for scope, title in SCOPES.items():
        lines += [(), (Cell(title, "accent"),)] if lines else [(Cell(title, "accent"),)]
        for one in in_scope(scope):
            keys = " ".join(shown_key(key) for key in keys_of(one, keymap)) or "in commands"
            head = (Cell(padded(keys, KEYS_WIDTH), "strong"), Cell(padded(one.title, TITLE_WIDTH)))
            lines.append((*head, Cell(shorten(one.tooltip, max(0, width - KEYS_WIDTH - TITLE_WIDTH)), "muted")))
    lines += [(), (Cell("other keys: keymap.toml beside config.toml, "), Cell('"chat.stop" = "f8"', "strong"))]
    return tuple(lines)


class HelpScreen(ModalScreen[None]):
    """A page over whatever was open."""

    BINDINGS = bindings("help")
    DEFAULT_CSS = """
    HelpScreen {
        align: center middle;
        background: $background 70%;
        & > VerticalScroll {
            width: 76; max-width: 100%; height: auto; max-height: 100%;
            padding: 1 2; background: $surface; border: round $primary 70%;
            border-title-color: $primary; border-title-style: bold;
            scrollbar-size-vertical: 1;
        }
    }
    """

    def compose(self) -> ComposeResult:
        with VerticalScroll() as page:
            page.border_title = "keys"
            yield Lines(id="help")

    def on_mount(self) -> None:
        app = cast("ParallaxApp", self.app)
        self.query_one(Lines).show(partial(help_lines, dict(app.keys)))

    def action_close(self) -> None:
        self.dismiss()
