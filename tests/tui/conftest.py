"""What the TUI's tests share: a home of their own, and a swarm's fake node in it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from functools import wraps
from pathlib import Path

import pytest

from node.home import Home
from parallax_tui.screens import starting
from tests.fakes.node_api import FakeNode, temporary_home


@pytest.fixture
def home() -> Iterator[Home]:
    """Directly under /tmp: a socket's path must be short."""
    with tempfile.TemporaryDirectory(prefix="plx") as folder:
        yield temporary_home(Path(folder))


@pytest.fixture
def node(home: Home) -> FakeNode:
    """Not started yet."""
    return FakeNode(home)


@pytest.fixture(autouse=True)
def _no_time_passes_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of the start do not depend on how busy the machine is."""
    monkeypatch.setattr(starting, "monotonic", lambda: 0.0)


@pytest.fixture(autouse=True)
def _quiet_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Colours do not depend on who runs the tests."""
    monkeypatch.delenv("NO_COLOR", raising=False)


def pytest_pycollect_makeitem(collector: pytest.Module, name: str, obj: object) -> None:
    """Tests may be async functions: each runs in an event loop of its own."""
    if name.startswith("test_") and asyncio.iscoroutinefunction(obj):
        setattr(collector.obj, name, _in_loop(obj))


def _in_loop(story: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @wraps(story)
    def run(*args: object, **kwargs: object) -> None:
        async def main() -> None:
            await story(*args, **kwargs)

        asyncio.run(main())

    return run
