"""Who is a member now: a state machine of records, goodbyes, connections and time. No I/O, no clock, no signatures.

A member is a node with a live record. How long a record lives depends on how we know its owner:
- connected: as long as the record says (`ttl_s`); the heartbeat notices a dead owner long before, and it goes at once;
- by hearsay: `HEARSAY_LIFE_S`. Owners speak every second, so that is two misses, and the dead are out of every view in
  less than 3 s even where nobody of us was connected to them.

What brings the dead back is worse than what loses the living for a second: only a record newer than the newest we saw
counts, and right after a connection broke hearsay does not count at all, since it may have been under way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import msgspec

from node.swarm.base import MemberGone, MemberSeen
from node.wire.ids import NodeId
from node.wire.records import NodeRecord

HEARSAY_LIFE_S = 2.5
HOLD_DOWN_S = 1.0
"""After a broken connection: longer than a record is under way, no longer than its owner takes to speak again."""

MEMORY_S = 60.0
"""How long the number of a lost member's last record is remembered; nothing is passed on for nearly as long."""

MEMBER_LIMIT = 1024
"""As many as a record's `rtt_ms` takes. Members beyond are refused: a member gone bad may invent any number of them."""

REMEMBERED_LIMIT = 4 * MEMBER_LIMIT

News = MemberSeen | MemberGone
Why = Literal["left", "silent", "disconnected"]


@dataclass(slots=True)
class _Known:
    """What is remembered of one node, member or not."""

    seq: int
    """The highest number seen."""
    told_s: float
    """When that was."""
    record: NodeRecord | None = None
    """Set while it is a member."""
    dies_s: float = 0.0
    held_down_until_s: float = 0.0


class Membership:
    """One node's view of the others; its own record is not in it. Every `now` is seconds of one monotonic clock."""

    def __init__(self, own_id: NodeId) -> None:
        self._own_id = own_id
        self._known: dict[NodeId, _Known] = {}
        self._connected: set[NodeId] = set()

    def members(self) -> dict[NodeId, NodeRecord]:
        """Every other live member's newest record."""
        return {node_id: known.record for node_id, known in self._known.items() if known.record is not None}

    def is_member(self, node_id: NodeId) -> bool:
        """Whether its record is live."""
        known = self._known.get(node_id)
        return known is not None and known.record is not None

    def is_remembered(self, node_id: NodeId) -> bool:
        """Whether it is a member or was one in the last minute."""
        return node_id in self._known

    def seq_of(self, node_id: NodeId) -> int:
        """The highest record number seen of it, 0 for a stranger."""
        known = self._known.get(node_id)
        return known.seq if known else 0

    def is_newer(self, record: NodeRecord) -> bool:
        """Whether `hear` would take it in: asked before the costly check of its signature."""
        if record.id == self._own_id:
            return False
        known = self._known.get(record.id)
        if known is None:
            return len(self._known) < REMEMBERED_LIMIT
        return record.seq > known.seq

    def hear(self, record: NodeRecord, now: float, *, direct: bool) -> list[News]:
        """A record whose signature is right, from its owner (`direct`) or from another member."""
        if not self.is_newer(record):
            return []
        known = self._known.setdefault(record.id, _Known(0, now))
        known.seq, known.told_s = record.seq, now
        if not direct and now < known.held_down_until_s:
            return []
        before = known.record
        if before is None and len(self.members()) >= MEMBER_LIMIT:
            return []
        known.record, known.dies_s = record, now + self._life_s(record)
        return [MemberSeen(record)] if before is None or _differ(before, record) else []

    def hear_leave(self, node_id: NodeId, seq: int, now: float) -> list[News]:
        """A signed goodbye: records up to `seq` are void, also those that still travel."""
        known = self._known.get(node_id)
        if node_id == self._own_id or known is None or seq < known.seq:
            return []
        known.seq, known.told_s = seq, now
        return self._drop(node_id, "left")

    def is_leave_new(self, node_id: NodeId, seq: int) -> bool:
        """Whether `hear_leave` would change anything: asked before the costly check of its signature."""
        known = self._known.get(node_id)
        return known is not None and (seq > known.seq or (seq == known.seq and known.record is not None))

    def connected(self, node_id: NodeId, now: float) -> None:
        """A proven connection to it stands; its record comes over it at once."""
        self._connected.add(node_id)
        if (known := self._known.get(node_id)) and known.record is not None:
            known.dies_s = now + known.record.ttl_s

    def disconnected(self, node_id: NodeId, why: Literal["silent", "disconnected"], now: float) -> list[News]:
        """The last connection to it is gone; it is out of the view until it speaks again."""
        self._connected.discard(node_id)
        if known := self._known.get(node_id):
            known.held_down_until_s = now + HOLD_DOWN_S
        return self._drop(node_id, why)

    def pass_time(self, now: float) -> list[News]:
        """Forget what has expired. To be called a few times a second."""
        news: list[News] = []
        for node_id, known in list(self._known.items()):
            if known.record is not None and now >= known.dies_s:
                news += self._drop(node_id, "silent")
            elif known.record is None and now - known.told_s >= MEMORY_S:
                del self._known[node_id]
        return news

    def forgive(self, stall_s: float) -> None:
        """This process itself stood still that long: nobody's record has aged by it."""
        for known in self._known.values():
            known.dies_s += stall_s

    def _life_s(self, record: NodeRecord) -> float:
        return record.ttl_s if record.id in self._connected else min(record.ttl_s, HEARSAY_LIFE_S)

    def _drop(self, node_id: NodeId, why: Why) -> list[News]:
        known = self._known.get(node_id)
        if known is None or known.record is None:
            return []
        name, known.record = known.record.name, None
        return [MemberGone(node_id, name, why)]


def _differ(one: NodeRecord, other: NodeRecord) -> bool:
    """Whether anything but the number changed: an owner who only says "still here" is no news."""
    return msgspec.structs.replace(one, seq=other.seq) != other


def newest(records: Iterable[NodeRecord]) -> dict[NodeId, NodeRecord]:
    """The newest record of each node: what any order of hearing them must lead to."""
    best: dict[NodeId, NodeRecord] = {}
    for record in records:
        if record.id not in best or record.seq > best[record.id].seq:
            best[record.id] = record
    return best
