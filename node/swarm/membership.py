"""Who is a member now: a state machine of parts, goodbyes, connections and time. No I/O, no clock, no signatures.

A member is a node that has said who it is and that it is still here. How long its word lasts depends on how we know it:
- connected: the heartbeat decides, and the dead go at once; what it says of itself may be late for a while;
- connected no more, but others still are: it stays while one of them says so and it is heard of, since two members that
  cannot reach one another are both members;
- by hearsay: `HEARSAY_LIFE_S`. Owners speak every second while somebody may know them by hearsay alone, so that is two
  misses, and the dead are out of every view in less than 3 s even where nobody of us was connected to them.

What brings the dead back is worse than what loses the living for a second: only a number higher than the highest we
saw counts, and right after a connection broke hearsay does not count at all, since it may have been under way. What
such hearsay says is kept all the same: it is told once, and is true when its owner speaks again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import msgspec

from node.swarm.base import MemberGone, MemberSeen
from node.wire.ids import NodeId
from node.wire.parts import KEPT_KINDS, Beat, Part, Profile, Status, Trips, record_of
from node.wire.peer_figures import Mark, mark_of, unpack_figures, unpack_marks
from node.wire.records import NodeRecord
from node.wire.statements import Envelope

HEARSAY_LIFE_S = 2.5
HOLD_DOWN_S = 1.0
"""After a broken connection: longer than a statement is under way, no longer than its owner takes to speak again."""

CONNECTED_GRACE_S = 10.0
"""Beyond `ttl_s`, for a member that we are connected to: longer than the heartbeat bears any silence."""

MEMORY_S = 60.0
"""How long the number of a lost member's last statement is remembered; nothing is passed on for nearly as long."""

MEMBER_LIMIT = 1024
"""As many as a node's trips take. Members beyond are refused: a member gone bad may invent any number of them."""

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
    void_seq: int = -1
    """It said goodbye to everything up to this."""
    profile: Profile | None = None
    status: Status | None = None
    trips: Trips | None = None
    envelopes: dict[str, Envelope] = field(default_factory=dict)
    """By kind, the newest, as they were signed."""
    named_seqs: dict[str, int] = field(default_factory=dict)
    """Of its newest parts by kind, as its newest statement names them."""
    record: NodeRecord | None = None
    """Set while it is a member."""
    naming: int = -1
    """How many names had come when the peers in `record` were looked up."""
    dies_s: float = 0.0
    held_down_until_s: float = 0.0
    lost: Literal["silent", "disconnected"] | None = None
    """How we lost our last connection to it, while others have one still."""

    def seq_of(self, kind: str) -> int:
        """Of the newest part of that kind, -1 for none."""
        part: Part | None = {"profile": self.profile, "status": self.status, "trips": self.trips}.get(kind)
        return part.seq if part is not None else -1

    def lacks(self, kind: str) -> bool:
        """Whether its owner has told a newer part of that kind than we have heard."""
        return self.named_seqs.get(kind, -1) > self.seq_of(kind)


class Membership:
    """One node's view of the others; its own record is not in it. Every `now` is seconds of one monotonic clock."""

    def __init__(self, own_id: NodeId) -> None:
        self._own_id = own_id
        self._known: dict[NodeId, _Known] = {}
        self._connected: set[NodeId] = set()
        self._names: dict[Mark, NodeId] = {mark_of(own_id): own_id}
        """Of all that are remembered, and our own: what the marks in trips stand for."""
        self._naming = 0
        """Counts the names that came."""
        self._living = 0

    def members(self) -> dict[NodeId, NodeRecord]:
        """Every other live member's record."""
        return {node_id: self._named(known) for node_id, known in self._known.items() if known.record is not None}

    def is_member(self, node_id: NodeId) -> bool:
        """Whether its record is live."""
        known = self._known.get(node_id)
        return known is not None and known.record is not None

    def is_remembered(self, node_id: NodeId) -> bool:
        """Whether it is a member or was one in the last minute."""
        return node_id in self._known

    def record(self, node_id: NodeId) -> NodeRecord | None:
        """Of a live member."""
        known = self._known.get(node_id)
        return self._named(known) if known is not None and known.record is not None else None

    def seqs(self) -> dict[NodeId, int]:
        """Every live member's highest number."""
        return {node_id: known.seq for node_id, known in self._known.items() if known.record is not None}

    def seq_of(self, node_id: NodeId) -> int:
        """The highest number seen of it, 0 for a stranger."""
        known = self._known.get(node_id)
        return known.seq if known else 0

    def reach_of(self, node_id: NodeId) -> dict[Mark, float]:
        """Whom it reaches by its own word, and how far that is."""
        known = self._known.get(node_id)
        return known.trips.reach if known is not None and known.trips is not None else {}

    def name_of(self, mark: Mark) -> NodeId | None:
        """Which node a mark stands for, if it is remembered."""
        return self._names.get(mark)

    def statements(self, node_id: NodeId) -> list[Envelope]:
        """The newest of each kind that we have of a live member."""
        return list(self._known[node_id].envelopes.values()) if self.is_member(node_id) else []

    def lacks(self, node_id: NodeId) -> bool:
        """Whether there is a newer part of it than we have, by its own numbers, or we do not know who it is."""
        known = self._known.get(node_id)
        return known is None or known.profile is None or any(known.lacks(kind) for kind in KEPT_KINDS)

    def is_newer(self, node_id: NodeId, kind: str, seq: int) -> bool:
        """Whether `hear` would take it in: asked before the costly check of its signature."""
        if node_id == self._own_id:
            return False
        known = self._known.get(node_id)
        if known is None:
            return len(self._known) < REMEMBERED_LIMIT
        if seq <= known.void_seq:
            return False
        return seq > (known.seq if kind == "beat" else known.seq_of(kind))

    def hear(self, envelope: Envelope, part: Part, now: float, *, direct: bool) -> list[News]:
        """A part whose signature is right, from its owner (`direct`) or from another member."""
        node_id = envelope.id
        if not self.is_newer(node_id, envelope.kind, part.seq):
            return []
        known = self._remember(node_id, now)
        is_news_of_life = part.seq > known.seq
        known.seq, known.told_s = max(known.seq, part.seq), now
        known.envelopes[envelope.kind] = envelope
        match part:
            case Profile():
                known.profile = part
            case Status():
                known.status = part
                known.named_seqs |= {"profile": part.seq - part.profile_ago, "trips": part.seq - part.trips_ago}
            case Trips():
                known.trips, known.naming = part, -1
            case Beat():
                known.named_seqs = {
                    "profile": part.seq - part.profile_ago,
                    "status": part.seq - part.status_ago,
                    "trips": part.seq - part.trips_ago,
                }
        if not direct and now < known.held_down_until_s:
            return []
        if is_news_of_life:
            known.dies_s = now + self._life_s(node_id, known)
        if isinstance(part, Beat) and known.record is not None:
            if not known.lacks("status"):
                known.record = msgspec.structs.replace(known.record, seq=known.seq)
            return []
        return self._show(node_id, known, now)

    def hear_leave(self, node_id: NodeId, seq: int, now: float) -> list[News]:
        """A signed goodbye: parts up to `seq` are void, also those that still travel."""
        known = self._known.get(node_id)
        if node_id == self._own_id or known is None or seq < known.seq:
            return []
        known.seq, known.told_s, known.void_seq = seq, now, seq
        news = self._drop(node_id, "left")
        known.profile = known.status = known.trips = None
        known.envelopes, known.named_seqs, known.dies_s = {}, {}, now
        return news

    def is_leave_new(self, node_id: NodeId, seq: int) -> bool:
        """Whether `hear_leave` would change anything: asked before the costly check of its signature."""
        known = self._known.get(node_id)
        return known is not None and seq > known.void_seq and seq >= known.seq

    def connected(self, node_id: NodeId, now: float) -> None:
        """A proven connection to it stands; its parts come over it at once."""
        self._connected.add(node_id)
        if (known := self._known.get(node_id)) and known.record is not None:
            known.dies_s, known.lost = now + known.record.ttl_s, None

    def disconnected(
        self, node_id: NodeId, why: Literal["silent", "disconnected"], now: float, *, for_good: bool = False
    ) -> list[News]:
        """The last connection to it is gone: it is out of the view until it speaks again, unless others reach it.

        `for_good`: it is known to be gone, whatever others say.
        """
        self._connected.discard(node_id)
        known = self._known.get(node_id)
        if known is None:
            return []
        known.held_down_until_s = now + HOLD_DOWN_S
        if for_good or known.record is None or not self._is_reached(node_id):
            known.dies_s = now
            return self._drop(node_id, why)
        known.lost, known.dies_s = why, now + HOLD_DOWN_S + HEARSAY_LIFE_S
        return []

    def pass_time(self, now: float) -> list[News]:
        """Forget what has expired. To be called a few times a second."""
        news: list[News] = []
        for node_id, known in list(self._known.items()):
            grace_s = CONNECTED_GRACE_S if node_id in self._connected else 0.0
            if known.record is not None and known.lost is not None and not self._is_reached(node_id):
                known.held_down_until_s, known.dies_s = now + HOLD_DOWN_S, now
                news += self._drop(node_id, known.lost)
            elif known.record is not None and now >= known.dies_s + grace_s:
                news += self._drop(node_id, "silent")
            elif known.record is None and now - known.told_s >= MEMORY_S:
                del self._known[node_id]
                self._names.pop(mark_of(node_id), None)
        return news

    def forgive(self, stall_s: float) -> None:
        """This process itself stood still that long: nobody's word has aged by it."""
        if stall_s > 0:
            for known in self._known.values():
                known.dies_s += stall_s

    def _remember(self, node_id: NodeId, now: float) -> _Known:
        known = self._known.get(node_id)
        if known is None:
            known = self._known[node_id] = _Known(-1, now)
            self._names.setdefault(mark_of(node_id), node_id)
            self._naming += 1
        return known

    def _show(self, node_id: NodeId, known: _Known, now: float) -> list[News]:
        """Bring the view up to what is known."""
        before = known.record
        if known.profile is None or now >= known.dies_s or (before is None and self._living >= MEMBER_LIMIT):
            return []
        known.record = self._compose(node_id, known)
        self._living += before is None
        return [MemberSeen(known.record)] if before is None or _differ(before, known.record) else []

    def _compose(self, node_id: NodeId, known: _Known) -> NodeRecord:
        """The view. It is as its owner was at the highest number, unless we have not heard how it was then."""
        assert known.profile is not None
        seq = max(known.seq_of("profile"), known.seq_of("status")) if known.lacks("status") else known.seq
        if known.record is not None and known.naming == self._naming:
            figures = known.record.rtt_ms, known.record.mbps, known.record.unreachable
        else:
            figures, known.naming = self._figures(known.trips), self._naming
        return record_of(node_id, seq, known.profile, known.status, *figures)

    def _named(self, known: _Known) -> NodeRecord:
        """The record with the peers that have become known since it was made."""
        assert known.record is not None
        if known.naming != self._naming:
            rtt_ms, mbps, unreachable = self._figures(known.trips)
            known.naming = self._naming
            if (rtt_ms, unreachable) != (known.record.rtt_ms, known.record.unreachable) or mbps != known.record.mbps:
                known.record = msgspec.structs.replace(known.record, rtt_ms=rtt_ms, mbps=mbps, unreachable=unreachable)
        return known.record

    def _figures(self, trips: Trips | None) -> tuple[dict[str, float], dict[str, float], tuple[str, ...]]:
        if trips is None:
            return {}, {}, ()
        names = self._names
        rtt_ms: dict[str, float] = {names[mark]: ms for mark, ms in trips.reach.items() if mark in names}
        mbps: dict[str, float] = {names[mark]: r for mark, r in unpack_figures(trips.mbps).items() if mark in names}
        unreachable = tuple(sorted(names[mark] for mark in unpack_marks(trips.unreachable) if mark in names))
        return rtt_ms, mbps, unreachable

    def _is_reached(self, node_id: NodeId) -> bool:
        """Whether a member whom we hear directly says that it is connected to this one."""
        mark = mark_of(node_id)
        return any(
            other.trips is not None and mark in other.trips.reach
            for other_id in self._connected - {node_id}
            if (other := self._known.get(other_id)) is not None and other.record is not None
        )

    def _life_s(self, node_id: NodeId, known: _Known) -> float:
        ttl_s = known.profile.ttl_s if known.profile is not None else HEARSAY_LIFE_S
        return ttl_s if node_id in self._connected else min(ttl_s, HEARSAY_LIFE_S)

    def _drop(self, node_id: NodeId, why: Why) -> list[News]:
        known = self._known.get(node_id)
        if known is None or known.record is None:
            return []
        name, known.record, known.lost = known.record.name, None, None
        self._living -= 1
        return [MemberGone(node_id, name, why)]


def _differ(one: NodeRecord, other: NodeRecord) -> bool:
    """Whether anything but the number changed: an owner who only says "still here" is no news."""
    return msgspec.structs.replace(one, seq=other.seq) != other
