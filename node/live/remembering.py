"""Notes the plan in force once it is served: one that never was must not come back with the next start."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import trio

from node.live.judging import serves
from node.live.remembered import Remembered
from node.wire.ids import NodeId
from node.wire.models import ModelRef
from node.wire.plans import Plan
from node.wire.records import NodeRecord


class Remembering:
    """Looks whenever something stirs, and keeps what it finds beside whatever else the node does."""

    def __init__(
        self,
        remembered: Remembered,
        plan: Callable[[], Plan | None],
        members: Callable[[], Mapping[NodeId, NodeRecord]],
        served: Callable[[ModelRef], Awaitable[None]],
    ) -> None:
        """Args:
        served: told of the model of each plan that has been noted.
        """
        self._remembered, self._plan, self._members, self._served = remembered, plan, members, served
        self._stirred = trio.Event()

    def stir(self) -> None:
        """A record was heard, or the plan is another one."""
        self._stirred.set()

    async def run(self) -> None:
        """Note plans until cancelled."""
        noted: Plan | None = None
        while True:
            await self._stirred.wait()
            self._stirred = trio.Event()
            plan = self._plan()
            if plan is not None and plan != noted and serves(plan, self._members()):
                noted = plan
                await self._remembered.remember(plan)
                await self._served(plan.model)
