"""A person at a terminal of a given size: waits, types, reads what the screen says."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from textual.pilot import Pilot

from node.home import Home
from parallax_tui.app import ParallaxApp
from parallax_tui.widgets.prompt import Prompt
from tests.fakes.node_api import FakeNode

PATIENCE_S = 10.0
"""Nothing here takes a second; a loaded machine may."""


@dataclass
class Terminal:
    """An app under test, with its pilot."""

    app: ParallaxApp
    pilot: Pilot[None]

    async def until(self, holds: Callable[[], object], what: str = "") -> None:
        """Let the app work until the condition holds."""
        end = monotonic() + PATIENCE_S
        while not holds():
            assert monotonic() < end, f"{what or 'it'} did not come; the screen says:\n{self.text}"
            await self.pilot.pause(0.01)
        await self.pilot.pause()

    async def shows(self, *words: str) -> None:
        """Wait until the screen shows all these words."""
        await self.until(lambda: all(word in self.text for word in words), f"all of {words}")

    async def hides(self, *words: str) -> None:
        """Wait until the screen shows none of these words."""
        await self.until(lambda: not any(word in self.text for word in words), f"none of {words}")

    async def type(self, text: str) -> None:
        """Write a question and send it, at once: single key presses are slow here."""
        self.app.screen.query_one(Prompt).insert(text)
        await self.pilot.press("enter")

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)

    @property
    def text(self) -> str:
        """The screen as plain text, without the spaces at line ends."""
        return screen_text(self.app)


def screen_text(app: ParallaxApp) -> str:
    """What the terminal would show, as lines of text."""
    strips = app.screen._compositor.render_strips()  # the only way to the painted lines; Textual is pinned
    return "\n".join(strip.text.rstrip() for strip in strips)


@asynccontextmanager
async def at_terminal(
    home: Home,
    *,
    size: tuple[int, int] = (80, 24),
    child_problem: Callable[[], str | None] = lambda: None,
    theme: str | None = None,
) -> AsyncIterator[Terminal]:
    """The app of that home, on a terminal of that size."""
    app = ParallaxApp(home, child_problem=child_problem, theme=theme)
    async with app.run_test(size=size, notifications=True) as pilot:
        yield Terminal(app, pilot)


@asynccontextmanager
async def at_node(
    node: FakeNode, *, size: tuple[int, int] = (80, 24), theme: str | None = None
) -> AsyncIterator[Terminal]:
    """The same, with the fake node running and the chat open."""
    await node.start()
    try:
        async with at_terminal(node.home, size=size, theme=theme) as terminal:
            if node.state.plan is not None:
                await terminal.until(lambda: terminal.app.current_mode == "chat", "the chat")
            yield terminal
    finally:
        await node.stop()


def check_snapshot(path: Path, text: str) -> None:
    """Compare with the file; UPDATE_SNAPSHOTS=1 writes it instead."""
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    assert path.is_file(), f"{path} is missing: run with UPDATE_SNAPSHOTS=1 and look at it"
    assert text + "\n" == path.read_text(encoding="utf-8")
