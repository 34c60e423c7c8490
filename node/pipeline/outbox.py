"""Frames on their way out: a queue and a sender task per neighbour, so that a slow one never stops the engine.

Frames to ourselves take the same path without a link. Knows no sessions: a lost neighbour is reported to `lost`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import trio
from msgspec.structs import replace

from node.errors import BadWireData, LinkClosed
from node.swarm.base import Arrival, Buffer, Swarm
from node.wire.frames import Activations, Frame, Sampled, Tokens
from node.wire.ids import NodeId

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # libp2p brings trio-stubs, which hide trio's own types

QUEUED_FRAMES = 1024
"""Heads bound the prompt chunks in flight and a decoding sequence has one frame under way, so only a neighbour that
has stopped reading fills this; 1,024 decode frames of a 16 KiB hidden state are 16 MiB."""

Stamped = (Tokens, Activations, Sampled)


@dataclass(frozen=True, slots=True)
class _Outgoing:
    frame: Frame
    body: Buffer


class Outbox:
    """Sends frames to members. `run` owns the sender tasks; `post` never waits."""

    def __init__(
        self,
        swarm: Swarm,
        deliver: Callable[[Arrival], None],
        lost: Callable[[NodeId, str], None],
        unsendable: Callable[[Frame, str], None],
    ) -> None:
        self._swarm, self._deliver, self._lost, self._unsendable = swarm, deliver, lost, unsendable
        self._queues: dict[NodeId, trio.MemorySendChannel[_Outgoing]] = {}
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

    def post(self, peer: NodeId, frame: Frame, body: Buffer = b"") -> None:
        """Queue one frame; frames to one peer leave in order. A peer whose queue is full counts as lost.

        Once `run` has ended, this node is leaving: its goodbye says all that these frames could.
        """
        if self._ended:
            return
        if peer == self._swarm.node_id:
            self._deliver(Arrival(peer, frame, body, perf_counter(), 0.0))
            return
        try:
            self._queue(peer).send_nowait(_Outgoing(frame, body))
        except trio.WouldBlock:
            self.forget(peer)
            self._lost(peer, f"{QUEUED_FRAMES} frames wait for it")
        except trio.BrokenResourceError:  # its sender was cancelled: this node is leaving
            self._queues.pop(peer, None)

    def forget(self, peer: NodeId) -> None:
        """Drop what still waits for a peer that is gone."""
        queue = self._queues.pop(peer, None)
        if queue is not None:
            queue.close()

    def _queue(self, peer: NodeId) -> trio.MemorySendChannel[_Outgoing]:
        queue = self._queues.get(peer)
        if queue is None:
            if self._nursery is None:
                raise RuntimeError("Outbox.run has not been started")
            queue, waiting = trio.open_memory_channel[_Outgoing](QUEUED_FRAMES)
            self._queues[peer] = queue
            self._nursery.start_soon(self._send_all, peer, queue, waiting)
        return queue

    async def _send_all(
        self,
        peer: NodeId,
        queue: trio.MemorySendChannel[_Outgoing],
        waiting: trio.MemoryReceiveChannel[_Outgoing],
    ) -> None:
        try:
            async with waiting:
                async for outgoing in waiting:
                    link = await self._swarm.link(peer)
                    frame = outgoing.frame
                    if isinstance(frame, Stamped):
                        frame = replace(frame, sent_s=perf_counter())
                    try:
                        await link.send(frame, outgoing.body)
                    except BadWireData as error:
                        self._unsendable(frame, str(error))
        except LinkClosed as error:
            if self._queues.get(peer) is queue:
                del self._queues[peer]
            self._lost(peer, error.reason)
