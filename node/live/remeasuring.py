"""When this node times its layers again: soon after things have settled, and now and then while nobody uses it.

What was timed while layers were loaded is a first guess only: the node itself and the machine's other nodes are busy
then. Steps in service tell more than a probe, so after them it has time.
"""

from __future__ import annotations

import math
from collections.abc import Hashable

import trio

from node.live.served_ranges import ServedRange, ServedRanges
from node.pipeline.stage import StageRunner
from node.swarm.base import Swarm
from node.wire.records import NodeRecord

LOOK_EVERY_S, LOOK_IDLY_S = 0.25, 2.0
"""The second while nothing is due soon and no other node is on this machine: an idle node sleeps."""
SETTLE_S = 2.0
"""After the last change of this machine's nodes. They have divided its cores anew by then (`member.REPORT_EVERY_S`)."""
TURN_S = 0.5
"""Nodes of one machine see a change at the same time, and must not time their steps against one another."""
EVERY_S = 180.0
"""Other programs come and go. A probe costs at most half a second of an idle machine."""


class Remeasuring:
    """Of one node's ready range."""

    def __init__(self, swarm: Swarm, ranges: ServedRanges, runner: StageRunner) -> None:
        self._swarm, self._ranges, self._runner = swarm, ranges, runner

    async def run(self) -> None:
        """Until cancelled."""
        seen: Hashable = None
        steps = self._runner.times.in_service
        due_s = math.inf
        while True:
            soon = due_s - trio.current_time() < SETTLE_S + LOOK_IDLY_S or len(self._of_this_machine()) > 1
            pause_s = LOOK_EVERY_S if soon else LOOK_IDLY_S
            await trio.sleep(pause_s)
            held, now_s = self._ready(), trio.current_time()
            if (surroundings := (held, self._neighbours())) != seen:
                seen, due_s = surroundings, now_s + self._settled_s()
            if (taken := self._runner.times.in_service) != steps:
                steps, due_s = taken, now_s - pause_s + EVERY_S
            elif not self._calm():
                due_s = max(due_s, now_s + self._settled_s())
            elif held is not None and now_s >= due_s:
                measured = await self._runner.idle_probe.measure(held.stage, held.start, held.end)
                due_s = trio.current_time() + (EVERY_S if measured else self._settled_s())

    def _ready(self) -> ServedRange | None:
        """The range that serves, unless another one is loading: that takes the engine's time."""
        if any(told.state == "loading" for told in self._swarm.members()[self._swarm.node_id].held):
            return None
        return self._ranges.serving()

    def _neighbours(self) -> Hashable:
        """The nodes of this machine, and what they are busy with."""
        return frozenset((told.node_id, told.state, told.held) for told in self._of_this_machine())

    def _calm(self) -> bool:
        """Nobody uses this node, nor another one of its machine."""
        return self._runner.idle and not any(told.sessions for told in self._of_this_machine())

    def _settled_s(self) -> float:
        """From a change to this node's turn."""
        turn = sorted(told.node_id for told in self._of_this_machine()).index(self._swarm.node_id)
        return SETTLE_S + turn * TURN_S

    def _of_this_machine(self) -> list[NodeRecord]:
        records = self._swarm.members()
        machine = records[self._swarm.node_id].machine_id
        return [told for told in records.values() if told.machine_id == machine]
