"""Frames on their way out: two queues and two sender tasks per neighbour, so that a slow one never stops the engine.

What streams goes on one lane, prompts and routes on the other: a decode step never waits behind another request's
prompt. Each lane is in order. Frames to ourselves take the same path without a link. Knows no sessions: a lost
neighbour is reported to the receiver.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

import trio
from msgspec.structs import replace

from node.errors import BadWireData, LinkClosed
from node.pipeline.credit import INBOX_BYTES
from node.swarm.base import Arrival, Lane, Swarm
from node.wire.frames import Buffer, Frame, Sampled, Step
from node.wire.ids import NodeId

if TYPE_CHECKING:
    from node.task_status import TaskStatus

QUEUED_BYTES = INBOX_BYTES
"""For one neighbour, both lanes together. It sets no more than that aside for all that may come to it, so one for which
more waits has stopped reading, or never told that it had no room."""

HEADER_BYTES = 512
"""That a waiting frame is counted with, beside its body."""


class Receiver(Protocol):
    """Who hears what becomes of frames."""

    def deliver(self, arrival: Arrival) -> None:
        """A frame to ourselves."""

    def link_lost(self, peer: NodeId, reason: str) -> None:
        """A neighbour cannot be reached, or does not read."""

    def unsendable(self, frame: Frame, reason: str) -> None:
        """A frame is larger than the wire allows."""


@dataclass(frozen=True, slots=True)
class _Outgoing:
    frame: Frame
    body: Buffer

    @property
    def size_bytes(self) -> int:
        return HEADER_BYTES + len(self.body)


@dataclass(slots=True, eq=False)
class _Neighbour:
    """What waits for one peer."""

    lanes: dict[Lane, deque[_Outgoing]] = field(default_factory=lambda: {"steps": deque(), "bulk": deque()})
    news: dict[Lane, trio.Event] = field(default_factory=lambda: {"steps": trio.Event(), "bulk": trio.Event()})
    size_bytes: int = 0
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Outbox:
    """Sends frames to members. `run` owns the sender tasks; `post` never waits."""

    def __init__(self, swarm: Swarm, receiver: Receiver, queued_bytes: int = QUEUED_BYTES) -> None:
        self._swarm, self._receiver, self._most_bytes = swarm, receiver, queued_bytes
        self._neighbours: dict[NodeId, _Neighbour] = {}
        self._nursery: trio.Nursery | None = None
        self._ended = False

    async def run(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._ended = True  # before the nursery is closed to the tasks that a post may start

    def post(self, peer: NodeId, frame: Frame, body: Buffer = b"", lane: Lane = "steps") -> None:
        """Queue one frame; frames to one peer leave in the order of their lane.

        A peer for which too much waits counts as lost. Once `run` has ended, this node is leaving: its goodbye says all
        that these frames could.
        """
        if self._ended:
            return
        if peer == self._swarm.node_id:
            self._receiver.deliver(Arrival(peer, frame, body, perf_counter(), 0.0))
            return
        neighbour = self._neighbour(peer)
        outgoing = _Outgoing(frame, body)
        if neighbour.size_bytes + outgoing.size_bytes > self._most_bytes:
            waiting = neighbour.size_bytes
            self.forget(peer)
            self._receiver.link_lost(peer, f"it does not read: {waiting} bytes wait for it")
            return
        neighbour.size_bytes += outgoing.size_bytes
        neighbour.lanes[lane].append(outgoing)
        neighbour.news[lane].set()

    def waiting_bytes(self, peer: NodeId) -> int:
        """For a peer, what is being sent included."""
        neighbour = self._neighbours.get(peer)
        return neighbour.size_bytes if neighbour is not None else 0

    def forget(self, peer: NodeId) -> None:
        """Drop all that still waits for a peer that is gone, the frame that is being sent included."""
        neighbour = self._neighbours.pop(peer, None)
        if neighbour is not None:
            neighbour.scope.cancel()

    def _neighbour(self, peer: NodeId) -> _Neighbour:
        neighbour = self._neighbours.get(peer)
        if neighbour is None:
            if self._nursery is None:
                raise RuntimeError("Outbox.run has not been started")
            neighbour = self._neighbours[peer] = _Neighbour()
            self._nursery.start_soon(self._send_all, peer, neighbour)
        return neighbour

    async def _send_all(self, peer: NodeId, neighbour: _Neighbour) -> None:
        closed: LinkClosed | None = None

        async def send_lane(lane: Lane) -> None:
            nonlocal closed
            try:
                await self._send_lane(peer, neighbour, lane)
            except LinkClosed as error:
                closed = closed or error
                neighbour.scope.cancel()

        with neighbour.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_lane, "steps")
                nursery.start_soon(send_lane, "bulk")
        if closed is not None and self._neighbours.get(peer) is neighbour:
            del self._neighbours[peer]
            self._receiver.link_lost(peer, closed.reason)

    async def _send_lane(self, peer: NodeId, neighbour: _Neighbour, lane: Lane) -> None:
        waiting = neighbour.lanes[lane]
        while True:
            while waiting:
                outgoing = waiting.popleft()
                link = await self._swarm.link(peer, lane)
                frame = outgoing.frame
                if isinstance(frame, Step | Sampled):
                    frame = replace(frame, sent_s=perf_counter())
                try:
                    await link.send(frame, outgoing.body)
                except BadWireData as error:
                    self._receiver.unsendable(frame, str(error))
                neighbour.size_bytes -= outgoing.size_bytes
            neighbour.news[lane] = trio.Event()
            await neighbour.news[lane].wait()
