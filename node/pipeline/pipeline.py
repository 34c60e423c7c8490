"""Joins the two sides of this node, head and stage, to the swarm's frames."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, assert_never

import trio

from node.errors import WorkerDied
from node.pipeline.head import Head
from node.pipeline.link_rates import LEAST_BYTES, LinkRates
from node.pipeline.outbox import Outbox
from node.pipeline.stage import StageLookup, StageRunner
from node.swarm.base import Arrival, Swarm
from node.wire.frames import Activations, Close, Failed, Frame, Open, Progress, Sampled, Tokens
from node.wire.ids import NodeId

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # libp2p brings trio-stubs, which hide trio's own types

log = logging.getLogger(__name__)

IDLE_CHECK_S = 30.0


class Pipeline:
    """Every request that this node is head of or a hop in."""

    def __init__(self, swarm: Swarm, lookup: StageLookup, worker_failed: Callable[[WorkerDied], None]) -> None:
        self._swarm = swarm
        self.head = Head(swarm.node_id, self._name_of)
        self.stage = StageRunner(swarm.node_id, lookup, worker_failed, lambda node_id: node_id in swarm.members())
        self.link_rates = LinkRates()
        self._outbox = Outbox(swarm, self._deliver, self.lost, self._unsendable)
        self.head.attach(self._outbox)
        self.stage.attach(self._outbox)

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
                self._deliver(arrival)

    def lost(self, peer: NodeId, reason: str) -> None:
        """A member is gone or unreachable: everything that needs it ends now."""
        self._outbox.forget(peer)
        self.head.lost(peer, reason)
        self.stage.drop_all_with(peer, reason)

    def _deliver(self, arrival: Arrival) -> None:
        frame = arrival.frame
        match frame:
            case Open() | Tokens() | Activations() | Close():
                self.stage.handle(arrival)
            case Sampled():
                if frame.finish is None:
                    self.stage.handle(arrival)
                self.head.handle(arrival)
            case Progress() | Failed():
                self.head.handle(arrival)
            case _ as unreachable:
                assert_never(unreachable)

    def _unsendable(self, frame: Frame, reason: str) -> None:
        log.warning("a frame cannot be sent: %s", reason)
        self.head.fail_session(frame.session, reason)
        self.stage.fail_session(frame.session, reason)

    def _name_of(self, node_id: NodeId) -> str:
        record = self._swarm.members().get(node_id)
        return record.name if record else node_id[-8:]

    async def _drop_idle(self) -> None:
        while True:
            await trio.sleep(IDLE_CHECK_S)
            self.stage.drop_idle()
