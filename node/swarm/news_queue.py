"""News between the swarm and its one reader. Bounded by what it holds: of each member only what still matters.

A reader that is slow finds each member's newest record, and before it that the member was gone or its link lost in the
meantime: what must be undone is never left out. Of plans only the last heard matters, for each outranked the one
before.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import trio

from node.swarm.base import LANES, LinkLost, MemberGone, MemberSeen, Misbehaved, PlanHeard, SwarmNews
from node.wire.ids import NodeId


@dataclass(slots=True)
class _Pending:
    misbehaved: Misbehaved | None = None
    gone: MemberGone | None = None
    link_lost: LinkLost | None = None
    seen: MemberSeen | None = None
    plan: PlanHeard | None = None

    def items(self) -> list[SwarmNews]:
        """In the order in which they must be read."""
        all_of_them = (self.misbehaved, self.gone, self.link_lost, self.seen, self.plan)
        return [item for item in all_of_them if item is not None]


class NewsQueue(trio.abc.ReceiveChannel[SwarmNews]):
    """Filled without waiting, read by one task. What waits longest is read first."""

    def __init__(self) -> None:
        self._pending: dict[NodeId | None, _Pending] = {}
        """By member; None is the plan's place."""
        self._ready: deque[SwarmNews] = deque()
        """Taken out for the reader and not yet read."""
        self._is_closed = False
        self._stirred = trio.Event()

    def put(self, item: SwarmNews) -> None:
        """Tell something; nothing after `close`."""
        if self._is_closed:
            return
        match item:
            case MemberSeen(record=record):
                self._of(record.id).seen = item
            case MemberGone(node_id=node_id):
                pending = self._of(node_id)
                pending.gone, pending.link_lost, pending.seen = pending.gone or item, None, None
            case LinkLost(node_id=node_id, reason=reason, lanes=lanes):
                pending = self._of(node_id)
                former = pending.link_lost.lanes if pending.link_lost is not None else ()
                both = tuple(lane for lane in LANES if lane in lanes or lane in former)
                pending.link_lost = LinkLost(node_id, reason, both)
            case PlanHeard():
                self._of(None).plan = item
            case Misbehaved(node_id=node_id):
                self._of(node_id).misbehaved = item
        self._stirred.set()

    def close(self) -> None:
        """Nothing more will come; what is here can still be read."""
        self._is_closed = True
        self._stirred.set()

    def receive_nowait(self) -> SwarmNews:
        """The next item; raises trio.WouldBlock or trio.EndOfChannel where there is none."""
        if not self._ready and self._pending:
            self._ready.extend(self._pending.pop(next(iter(self._pending))).items())
        if self._ready:
            return self._ready.popleft()
        raise trio.EndOfChannel if self._is_closed else trio.WouldBlock

    async def receive(self) -> SwarmNews:
        """The next item, as soon as there is one; raises trio.EndOfChannel after `close`."""
        await trio.lowlevel.checkpoint()
        while True:
            try:
                return self.receive_nowait()
            except trio.WouldBlock:
                self._stirred = trio.Event()
                await self._stirred.wait()

    async def aclose(self) -> None:
        """The reader is gone."""
        self.close()
        await trio.lowlevel.checkpoint()

    def _of(self, key: NodeId | None) -> _Pending:
        return self._pending.setdefault(key, _Pending())
