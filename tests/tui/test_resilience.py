"""What must never end the app: any size of the window, and a view that fails on what a peer says."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from rich.style import Style
from textual.app import App, ComposeResult
from textual.strip import Strip

from parallax_tui.chat.conversation import Message
from parallax_tui.state.cells import Cell, Line
from parallax_tui.theming import FALLBACK_VARIABLES
from parallax_tui.widgets.entry import Entry
from parallax_tui.widgets.lines import Lines
from parallax_tui.widgets.markdown import MarkdownPainter, Palette
from tests.fakes.node_api import FakeNode
from tests.fakes.swarms import three_nodes
from tests.fakes.terminal import at_node


@pytest.mark.parametrize("keys", [(), ("f1",), ("f2",)], ids=["chat", "help", "topology"])
async def test_a_window_of_any_size(node: FakeNode, keys: tuple[str, ...]) -> None:
    node.state = three_nodes()
    async with at_node(node) as terminal:
        await terminal.press(*keys)
        for width in (1, 5, 6, 8, 9, 200):
            for height in (1, 3, 5, 50):
                await terminal.pilot.resize_terminal(width, height)
                await terminal.pilot.pause()
        await terminal.pilot.resize_terminal(80, 24)
        await terminal.shows("send" if not keys else "keys" if keys == ("f1",) else "studio")


class TwoViews(App[None]):
    def get_theme_variable_defaults(self) -> dict[str, str]:
        return FALLBACK_VARIABLES

    def compose(self) -> ComposeResult:
        yield Lines(id="broken")
        yield Lines(id="sound")


async def test_a_view_that_fails_says_so_and_the_rest_lives(caplog: pytest.LogCaptureFixture) -> None:
    calls = 0

    def broken(width: int) -> tuple[Line, ...]:
        nonlocal calls
        calls += 1
        raise KeyError("\x1b[2J a name")

    async with TwoViews().run_test(size=(60, 10)) as pilot:
        one, other = pilot.app.query_one("#broken", Lines), pilot.app.query_one("#sound", Lines)
        with caplog.at_level(logging.ERROR):
            for number in range(3):
                one.show(lambda width: broken(width))
                other.show(lambda width, number=number: ((Cell(f"picture {number}"),),))  # type: ignore[misc]
                await pilot.pause()
        assert "this view failed (KeyError" in one.text
        assert "\x1b" not in one.text
        assert other.text == "picture 2"
        one.show(lambda width: ((Cell("well again"),),))
        await pilot.pause()
        assert one.text == "well again"
    assert calls > 1
    assert len([entry for entry in caplog.records if "broken" in entry.getMessage()]) == 1


async def test_a_view_is_asked_once_for_each_picture_and_width() -> None:
    asked: list[int] = []

    def view(width: int) -> tuple[Line, ...]:
        asked.append(width)
        return ((Cell("a"),),) * len(asked)

    async with TwoViews().run_test(size=(60, 10)) as pilot:
        pilot.app.query_one("#sound", Lines).show(view)
        await pilot.pause()
        assert asked == [60]


def test_a_block_that_fails_as_markdown_is_shown_plain() -> None:
    class Failing(MarkdownPainter):
        def markdown(self, text: str) -> list[Strip]:
            if "boom" in text:
                raise RecursionError
            return super().markdown(text)

    style = Style()
    palette = Palette(style, style, style, style, style, "github-dark", "#000000")
    entry = Entry(Message("assistant", "fine\n\nboom here\n\nfine again", status="done"))
    entry.update(Failing(40, palette), lambda line: Strip.blank(40))
    assert [strip.text.strip() for strip in entry.strips if strip.text.strip()] == ["fine", "boom here", "fine again"]


def test_the_log_is_private_and_costs_nothing_where_it_cannot_be_written(tmp_path: Path) -> None:
    program = (
        "import logging, pathlib, sys; from parallax_tui.app_log import log_to; log_to(pathlib.Path(sys.argv[1])); "
    )
    program += "logging.getLogger('parallax_tui.widgets').error('a view failed')"
    for folder in (tmp_path, tmp_path / "missing"):
        done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True)
        assert done.stdout + done.stderr == ""
    assert "a view failed" in (tmp_path / "app.log").read_text()
    assert (tmp_path / "app.log").stat().st_mode & 0o077 == 0
