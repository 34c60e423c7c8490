"""Frames on their way out: two queues and two sender tasks per neighbour, so that a slow one never stops the engine.

What streams goes on one lane, prompts and routes on the other: a decode step never waits behind another request's
prompt. Each lane is in order, and breaks alone. Frames to ourselves take the same path without a link. Knows no
sessions: a lost neighbour is reported to the receiver.

What waits may be dropped, where the neighbour reads too little or the link to it breaks. A `Close` never is: nothing
else tells a node that lives on to free what it holds for us.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

import trio
from msgspec.structs import replace

from node.errors import BadWireData, LinkClosed
from node.pipeline.credit import INBOX_BYTES
from node.swarm.base import LANES, Arrival, Lane, Swarm
from node.wire.frames import Buffer, Close, Frame, Sampled, Step
from node.wire.ids import NodeId

if TYPE_CHECKING:
    from node.task_status import TaskStatus

QUEUED_BYTES = INBOX_BYTES
"""For one neighbour, both lanes together. It sets no more than that aside for all that may come to it, so one for which
more waits has stopped reading, or never told that it had no room."""

HEADER_BYTES = 512
"""That a waiting frame is counted with, beside its body."""

MOST_CLOSES = 4096
"""That outlive a lost link: of sequences that the neighbour may still hold. Many times as many as it takes."""

CLOSE_AGAIN_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Pauses between tries to send them where no link can be had; then the neighbour frees its sequences by itself."""


class Receiver(Protocol):
    """Who hears what becomes of frames."""

    def deliver(self, arrival: Arrival) -> None:
        """A frame to ourselves."""

    def link_lost(self, peer: NodeId, reason: str, lanes: Collection[Lane] = LANES) -> None:
        """A neighbour cannot be reached on these lanes, or does not read."""

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
class _Queue:
    """What waits for one peer on one lane."""

    waiting: deque[_Outgoing] = field(default_factory=deque)
    news: trio.Event = field(default_factory=trio.Event)
    size_bytes: int = 0
    """What is being sent included."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    def add(self, outgoing: _Outgoing) -> None:
        self.size_bytes += outgoing.size_bytes
        self.waiting.append(outgoing)
        self.news.set()

    def begin_anew(self, outgoing: Iterable[_Outgoing]) -> None:
        """Nothing but this waits."""
        self.waiting = deque(outgoing)
        self.size_bytes = sum(each.size_bytes for each in self.waiting)
        self.news = trio.Event()

    def closes(self) -> list[_Outgoing]:
        """Of each sequence the last word, the newest ones."""
        last: dict[str, _Outgoing] = {}
        for outgoing in self.waiting:
            if isinstance(frame := outgoing.frame, Close):
                former = last.pop(frame.session, None)
                kept = former is not None and isinstance(former.frame, Close) and former.frame.attempt > frame.attempt
                last[frame.session] = former if former is not None and kept else outgoing
        return list(last.values())[-MOST_CLOSES:]


class Outbox:
    """Sends frames to members. `run` owns the sender tasks; `post` never waits."""

    def __init__(self, swarm: Swarm, receiver: Receiver, queued_bytes: int = QUEUED_BYTES) -> None:
        self._swarm, self._receiver, self._most_bytes = swarm, receiver, queued_bytes
        self._queues: dict[tuple[NodeId, Lane], _Queue] = {}
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
        outgoing = _Outgoing(frame, body)
        waiting = self.waiting_bytes(peer)
        if waiting + outgoing.size_bytes > self._most_bytes and not isinstance(frame, Close):
            self.forget(peer)
            self._receiver.link_lost(peer, f"it does not read: {waiting} bytes wait for it")
            return
        self._queue(peer, lane).add(outgoing)

    def waiting_bytes(self, peer: NodeId) -> int:
        """For a peer, what is being sent included."""
        return sum(queue.size_bytes for lane in LANES if (queue := self._queues.get((peer, lane))) is not None)

    def forget(self, peer: NodeId, lanes: Collection[Lane] = LANES, *, gone: bool = False) -> None:
        """Drop what still waits for a peer on these lanes, the frame that is being sent included; all of it where the
        peer is gone, else all but what closes sequences."""
        for lane in lanes:
            queue = self._queues.pop((peer, lane), None)
            if queue is None:
                continue
            queue.scope.cancel()
            if not gone:
                for outgoing in queue.closes():
                    self._queue(peer, lane).add(outgoing)

    def _queue(self, peer: NodeId, lane: Lane) -> _Queue:
        queue = self._queues.get((peer, lane))
        if queue is None:
            if self._nursery is None:
                raise RuntimeError("Outbox.run has not been started")
            queue = self._queues[peer, lane] = _Queue()
            self._nursery.start_soon(self._send_all, peer, lane, queue)
        return queue

    async def _send_all(self, peer: NodeId, lane: Lane, queue: _Queue) -> None:
        with queue.scope:
            pauses_s = iter(CLOSE_AGAIN_S)
            while True:
                try:
                    await self._send_lane(peer, lane, queue)
                except LinkClosed as error:
                    closes = queue.closes()
                    lost = len(queue.waiting) > sum(isinstance(each.frame, Close) for each in queue.waiting)
                    queue.begin_anew(closes)
                    if lost:
                        self._receiver.link_lost(peer, error.reason, (lane,))
                    if not closes or (pause_s := next(pauses_s, None)) is None:
                        break
                    with trio.move_on_after(pause_s):
                        await queue.news.wait()
            if self._queues.get((peer, lane)) is queue:
                del self._queues[peer, lane]

    async def _send_lane(self, peer: NodeId, lane: Lane, queue: _Queue) -> None:
        while True:
            while queue.waiting:
                outgoing = queue.waiting[0]
                link = await self._swarm.link(peer, lane)
                frame = outgoing.frame
                if isinstance(frame, Step | Sampled):
                    frame = replace(frame, sent_s=perf_counter())
                try:
                    await link.send(frame, outgoing.body)
                except BadWireData as error:
                    self._receiver.unsendable(frame, str(error))
                queue.waiting.popleft()
                queue.size_bytes -= outgoing.size_bytes
            queue.news = trio.Event()
            await queue.news.wait()
