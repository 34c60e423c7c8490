"""Closes ranges that are no longer needed: first nobody is told of them any more, then they go.

A range of an older plan leaves once each of its layers is ready where the plan keeps it. What leaves stays open for as
long as heads may still send a route to it that they chose a moment ago, and while sequences run on it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection

import trio

from node.engine.base import Stage
from node.live.served_ranges import ServedRange, ServedRanges
from node.plan.moving.node_layers import holdings_of, kept_layers
from node.swarm.base import Swarm
from node.wire.plans import Plan

LOOK_EVERY_S = 0.5
"""While something is on its way out, or would be if others had its layers; else nothing is looked at until `wake`."""

LINGER_S = 1.0
"""In which every head has heard that a range is gone."""


class Retiring:
    """Decides what leaves, and closes what has left."""

    def __init__(
        self,
        ranges: ServedRanges,
        swarm: Swarm,
        plan: Callable[[], Plan | None],
        uses: Callable[[Stage], bool],
        close: Callable[[ServedRange, str], Awaitable[None]],
        tell: Callable[[], Awaitable[None]],
    ) -> None:
        self._ranges, self._swarm, self._plan = ranges, swarm, plan
        self._uses, self._close, self._tell = uses, close, tell
        self._looked, self._news = trio.Event(), trio.Event()

    def wake(self) -> None:
        """A range has come, or is to go."""
        self._news.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            if all(held.stays and held.state == "ready" for held in self._ranges):
                await self._news.wait()
            self._news = trio.Event()
            await trio.sleep(LOOK_EVERY_S)
            if self._let_go():
                await self._tell()
            await self._close_what_left()
            self._looked.set()
            self._looked = trio.Event()

    async def all_gone(self, leaving: Collection[ServedRange]) -> None:
        """Wait until these have been closed."""
        self.wake()
        await self._tell()
        while any(held in self._ranges for held in leaving):
            await self._looked.wait()

    def _let_go(self) -> bool:
        """Have what is needless leave, one by one: two ranges may each be needless only beside the other.

        Whether the record tells less now.
        """
        told_less = False
        for held in self._ranges:
            if held.stays and self._is_needless(held):
                held.leave(trio.current_time())
                told_less = True
        return told_less

    async def _close_what_left(self) -> None:
        for held in self._ranges:
            if held not in self._ranges or held.left_s is None:
                continue
            now_s = trio.current_time()
            unused = not self._uses(held.stage)
            if (unused and now_s >= held.left_s + LINGER_S) or now_s >= held.close_by_s:
                self._ranges.remove(held)
                await self._close(held, "its layers are needed here no longer")

    def _is_needless(self, held: ServedRange) -> bool:
        """Whether what `held` serves is served without it."""
        others = [other for other in self._ranges.whole() if other is not held and other.weights == held.weights]
        plan = self._plan()
        if plan is None or held.state != "draining":
            return False
        members = {node: r for node, r in self._swarm.members().items() if node != self._swarm.node_id}
        elsewhere = kept_layers(holdings_of(plan, members))
        return held.layers <= elsewhere.union(*(other.layers for other in others))
