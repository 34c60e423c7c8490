"""Stories on a network without sockets and a clock that jumps over every wait."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio
import trio.testing

from tests.fakes.swarm import FakeNetwork, open_fake_network

LabT = TypeVar("LabT")


def on_a_jumping_clock(
    lab: Callable[[FakeNetwork, trio.Nursery], LabT],
) -> Callable[[Callable[[LabT], Awaitable[None]]], Callable[[], None]]:
    """A decorator for tests that get a `lab`; what it has started ends with the test."""

    def decorate(test: Callable[[LabT], Awaitable[None]]) -> Callable[[], None]:
        async def run() -> None:
            async with open_fake_network() as network, trio.open_nursery() as nursery:
                await test(lab(network, nursery))
                nursery.cancel_scope.cancel()

        def sync() -> None:
            trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))

        sync.__name__, sync.__doc__ = test.__name__, test.__doc__
        return sync

    return decorate
