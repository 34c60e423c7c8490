"""The way out of a node that is asked to end: what runs here ends first, and others take its layers over.

It says in its record that it leaves, so that it is planned for no longer; its ranges serve until the plan's other
holders have them, as at every change of the plan. Each wait has a bound: a node that is asked to end does end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import trio

from node.live.served_ranges import ServedRange
from node.plan.live.members import eligible
from node.swarm.base import Swarm
from node.wire.plans import Plan

log = logging.getLogger(__name__)

ANSWERS_S = 30.0
"""Answers that run here may go on for so long: a few hundred tokens on a slow machine."""
REPLAN_S = 5.0
"""A plan without this node is there by then, or none is possible."""
HAND_OVER_S = 60.0
"""For the others to load its layers; service managers kill after 90 s."""
LOOK_EVERY_S = 0.1


class Leaving:
    """Whether this node is on its way out, and the way."""

    def __init__(
        self,
        swarm: Swarm,
        ranges: Iterable[ServedRange],
        plan: Callable[[], Plan | None],
        busy: Callable[[], bool],
    ) -> None:
        """
        Args:
            ranges: those that this node has loaded, as they are.
            busy: whether an answer that this node is head of, or a sequence on its layers, still runs.
        """
        self._swarm, self._ranges, self._plan, self._busy = swarm, ranges, plan, busy
        self.begun = False
        """No new request is taken from then on."""

    async def run(self) -> None:
        """Return when nothing needs this node any more, or it has been waited for long enough."""
        self.begun = True
        await self._swarm.update(leaving=True)
        if self._holds() and self._others():
            log.info("others take its layers over first; ask again to leave at once")
        began_s = trio.current_time()
        while (waited_s := trio.current_time() - began_s) < HAND_OVER_S:
            answers = self._busy() and waited_s < ANSWERS_S
            if not answers and not self._is_taken_over_yet(waited_s):
                return
            await trio.sleep(LOOK_EVERY_S)
        log.warning("leaving after %.0f s although its layers are needed", HAND_OVER_S)

    def _is_taken_over_yet(self, waited_s: float) -> bool:
        """Whether others are about to take over what this node holds."""
        if not self._holds() or not self._others():
            return False
        plan = self._plan()
        still_planned_for = plan is None or plan.range_of(self._swarm.node_id) is not None
        return waited_s < REPLAN_S if still_planned_for else True

    def _holds(self) -> bool:
        """Whether the swarm is told of a range here; one that others serve by now may stay open for its sequences."""
        return any(held.stays for held in self._ranges)

    def _others(self) -> bool:
        """Whether anyone could take over: a swarm whose members all leave has nobody to wait for."""
        return any(
            node != self._swarm.node_id and not record.leaving
            for node, record in eligible(self._swarm.members()).items()
        )
