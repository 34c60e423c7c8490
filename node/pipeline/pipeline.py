"""Joins the two sides of this node, head and stage, to the swarm's frames."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, assert_never

import trio

from node.errors import WorkerDied
from node.pipeline.head import Head
from node.pipeline.link_rates import LEAST_BYTES, LinkRates
from node.pipeline.outbox import Outbox
from node.pipeline.stage import StageRunner
from node.pipeline.stages import Stages
from node.swarm.base import LANES, Arrival, Lane, Swarm
from node.wire.frames import Accepted, Close, Failed, Frame, Probe, ProbeReply, Progress, Route, Sampled, Step
from node.wire.ids import NodeId

if TYPE_CHECKING:
    from node.task_status import TaskStatus

log = logging.getLogger(__name__)

IDLE_CHECK_S = 30.0


class Pipeline:
    """Every request that this node is head of or a hop in."""

    def __init__(self, swarm: Swarm, stages: Stages, worker_failed: Callable[[WorkerDied], None]) -> None:
        self._swarm = swarm
        self._outbox = Outbox(swarm, self)
        self.head = Head(swarm.node_id, self._outbox, self._name_of)
        self.stage = StageRunner(
            swarm.node_id, stages, self._outbox, worker_failed, lambda node_id: node_id in swarm.members()
        )
        self.link_rates = LinkRates()

    async def run(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._outbox.run)
            nursery.start_soon(self.stage.run)
            nursery.start_soon(self._drop_idle)
            task_status.started()
            async for arrival in self._swarm.arrivals:
                if len(arrival.body) >= LEAST_BYTES:
                    own = self._swarm.members()[self._swarm.node_id]
                    rtt_ms = own.rtt_ms.get(arrival.peer, 0.0)
                    self.link_rates.add(arrival.peer, len(arrival.body), arrival.wire_ms, rtt_ms)
                self.deliver(arrival)

    def member_gone(self, peer: NodeId, reason: str) -> None:
        """A member is out of the view: everything that needs it stops now."""
        self._outbox.forget(peer, gone=True)
        self.head.member_gone(peer, reason)
        self.stage.member_gone(peer, reason)

    def link_lost(self, peer: NodeId, reason: str, lanes: Collection[Lane] = LANES) -> None:
        """Lanes of the link with a member broke. What uses them stops now, and may go on over new ones."""
        self._outbox.forget(peer, lanes)
        self.head.link_lost(peer, reason, lanes)
        self.stage.link_lost(peer, reason, lanes)

    def deliver(self, arrival: Arrival) -> None:
        """Hand a frame to the side that it concerns."""
        frame = arrival.frame
        match frame:
            case Route() | Step() | Close() | Probe():
                self.stage.handle(arrival)
            case Sampled() | Failed():
                self.stage.handle(arrival)
                self.head.handle(arrival)
            case Progress() | Accepted() | ProbeReply():
                self.head.handle(arrival)
            case _ as unreachable:
                assert_never(unreachable)

    def unsendable(self, frame: Frame, reason: str) -> None:
        """A frame of ours is larger than the wire allows: its sequences cannot go on."""
        log.warning("a frame cannot be sent: %s", reason)
        for session in _sessions_of(frame):
            self.head.fail_session(session, reason)
            self.stage.fail_session(session, reason)

    def _name_of(self, node_id: NodeId) -> str:
        record = self._swarm.members().get(node_id)
        return record.name if record else node_id[-8:]

    async def _drop_idle(self) -> None:
        while True:
            await trio.sleep(IDLE_CHECK_S)
            self.stage.drop_idle()


def _sessions_of(frame: Frame) -> list[str]:
    if isinstance(frame, Step | Sampled):
        return [part.session for part in frame.parts]
    return [frame.sequence.session if isinstance(frame, Route) else frame.session]
