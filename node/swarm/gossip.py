"""What members say, who has heard it, and what to pass on. Checks signatures and numbers; does no I/O.

A record goes from its owner to everyone connected to it. Whoever hears it newer passes it to those who are not: the
owner itself says whom it reaches, in `rtt_ms`, so in a full mesh nothing is sent twice.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from node.errors import BadWireData
from node.swarm.base import MemberSeen, PlanHeard, SwarmNews
from node.swarm.identity import Identity, verify
from node.swarm.membership import Membership
from node.wire.codec import decode, encode
from node.wire.control import Leave
from node.wire.ids import NodeId, short_id
from node.wire.plan_size import PLAN_LIMIT_BYTES
from node.wire.plans import Plan
from node.wire.records import RECORD_LIMIT_BYTES, Envelope, NodeRecord

log = logging.getLogger(__name__)

CLOCK_AHEAD_LIMIT_MS = 86_400_000
"""How far a former life's clock may have been ahead of ours. A number beyond that is a lie of whoever tells it, and one
near the largest that a record takes would leave us none to go on with."""


@dataclass(slots=True)
class Heard:
    """What an envelope led to."""

    news: list[SwarmNews] = field(default_factory=list)
    spread: bool = False
    """Whether it was new to us, and so may be to others."""
    released: Envelope | None = None
    """A plan that was held back until this was heard: likewise new to others."""


class Gossip:
    """One node's knowledge of its swarm, its own record included."""

    def __init__(self, identity: Identity, record: NodeRecord) -> None:
        self.record = record
        self.plan: Plan | None = None
        """The highest plan heard or published."""
        self._identity = identity
        self._published_unix_ms = 0
        self._membership = Membership(identity.node_id)
        self._statements: dict[NodeId, Envelope] = {}
        self._plan_envelope: Envelope | None = None
        self._orphan: tuple[Plan, Envelope] | None = None
        """A plan that no member we know has made or follows; a record that tells otherwise may be under way."""

    def members(self) -> dict[NodeId, NodeRecord]:
        """Every live member's newest record, our own included."""
        return {self.record.id: self.record} | self._membership.members()

    def is_member(self, node_id: NodeId) -> bool:
        """Whether it is live now."""
        return node_id == self.record.id or self._membership.is_member(node_id)

    def seq_of(self, node_id: NodeId) -> int:
        """The highest record number seen of it."""
        return self._membership.seq_of(node_id)

    def publish(self, changes: Mapping[str, object], unix_ms: int) -> tuple[Envelope, list[SwarmNews]]:
        """Our next record, signed. News where it is the first (its draft has the number 0) or something changed.

        Raises:
            BadWireData: a change that others would refuse.
            TypeError: a field that records do not have.
        """
        before, self._published_unix_ms = self.record, unix_ms
        seq = max(unix_ms, before.seq + 1)
        draft: NodeRecord = msgspec.structs.replace(before, **changes, seq=seq)
        payload = encode(draft)
        self.record = decode(payload, NodeRecord, where="our own record", limit_bytes=RECORD_LIMIT_BYTES)
        envelope = self._statements[self.record.id] = self._identity.sign("record", payload)
        is_news = before.seq == 0 or msgspec.structs.replace(before, seq=self.record.seq) != self.record
        return envelope, [MemberSeen(self.record)] if is_news else []

    def outdo(self, seq: int) -> bool:
        """Have our next record outdo `seq`, which a former life of ours reached; True if it would not have.

        A clock that was set back between two lives would otherwise make us old news until it has caught up. One that
        was ahead by more than `CLOCK_AHEAD_LIMIT_MS` does: the others forget that life within `membership.MEMORY_S`.
        """
        if seq < self.record.seq or seq > self._published_unix_ms + CLOCK_AHEAD_LIMIT_MS:
            return False
        self.record = msgspec.structs.replace(self.record, seq=seq)
        return True

    def publish_plan(self, plan: Plan) -> Envelope | None:
        """Our plan, signed; None where a higher one is known already.

        Raises:
            BadWireData: it is not ours, or too large for an envelope.
        """
        if plan.author != self.record.node_id:
            raise BadWireData("plan", f"its author is {plan.author}, not this node")
        payload = encode(plan)
        decode(payload, Plan, where="our own plan", limit_bytes=PLAN_LIMIT_BYTES)
        if not plan.outranks(self.plan):
            return None
        self.plan, self._plan_envelope = plan, self._identity.sign("plan", payload)
        return self._plan_envelope

    def leave(self) -> Envelope:
        """Our goodbye."""
        self.record = msgspec.structs.replace(self.record, seq=self.record.seq + 1)
        return self._identity.sign("leave", encode(Leave(self.record.node_id, self.record.seq)))

    def welcome(self) -> tuple[Envelope, ...]:
        """All that a new neighbour should know."""
        plan = (self._plan_envelope,) if self._plan_envelope else ()
        return (*self._statements.values(), *plan)

    def targets(self, envelope: Envelope, via: NodeId | None, neighbours: Iterable[NodeId]) -> list[NodeId]:
        """Whom to tell. `via` is who told us, None for our own statements."""
        reached: Iterable[NodeId] = ()
        if envelope.kind == "record" and via is not None:
            record = self._membership.members().get(NodeId(envelope.node_id))
            reached = (NodeId(peer) for peer in record.rtt_ms) if record else ()
        done = {via, NodeId(envelope.node_id), *reached}
        return [peer for peer in neighbours if peer not in done]

    def hear(self, envelope: Envelope, via: NodeId, now: float, *, welcome: bool = False) -> Heard:
        """A statement came from the neighbour `via`.

        Raises:
            BadWireData: it is none of its owner's, or not what its kind says.
        """
        match envelope.kind:
            case "record":
                return self._hear_record(envelope, via, now)
            case "leave":
                return self._hear_leave(envelope, now)
            case "plan":
                return self._hear_plan(envelope, trusted=welcome)

    def connected(self, node_id: NodeId, now: float) -> None:
        """A proven connection stands."""
        self._membership.connected(node_id, now)

    def disconnected(self, node_id: NodeId, why: Literal["silent", "disconnected"], now: float) -> list[SwarmNews]:
        """The last connection to it is gone."""
        return self._tidy(list(self._membership.disconnected(node_id, why, now)))

    def pass_time(self, now: float, stall_s: float) -> list[SwarmNews]:
        """Forget what has expired; `stall_s` is how long this process itself stood still."""
        self._membership.forgive(stall_s)
        return self._tidy(list(self._membership.pass_time(now)))

    def _hear_record(self, envelope: Envelope, via: NodeId, now: float) -> Heard:
        record = decode(
            envelope.payload, NodeRecord, where=f"record by {short_id(via)}", limit_bytes=RECORD_LIMIT_BYTES
        )
        if record.node_id != envelope.node_id:
            raise BadWireData(f"record by {short_id(via)}", "it is about another node than its signer")
        if record.id == self.record.id:
            if record.seq > self.record.seq:
                verify(envelope)
                self.outdo(record.seq)
            return Heard()
        if not self._membership.is_newer(record):
            return Heard()
        verify(envelope)
        heard = Heard(list(self._membership.hear(record, now, direct=via == record.id)), spread=True)
        if self._membership.is_member(record.id):
            self._statements[record.id] = envelope
        if self._orphan is not None and self._vouches(record, self._orphan[0]):
            plan, plan_envelope = self._orphan
            self._orphan = None
            adopted = self._adopt(plan, plan_envelope)
            heard.news += adopted
            heard.released = plan_envelope if adopted else None
        return heard

    def _hear_leave(self, envelope: Envelope, now: float) -> Heard:
        leave = decode(envelope.payload, Leave, where="leave", limit_bytes=1024)
        node_id = NodeId(envelope.node_id)
        if leave.node_id != node_id:
            raise BadWireData("leave", "it is about another node than its signer")
        if node_id == self.record.id or not self._membership.is_leave_new(node_id, leave.seq):
            return Heard()
        verify(envelope)
        return Heard(self._tidy(list(self._membership.hear_leave(node_id, leave.seq, now))), spread=True)

    def _hear_plan(self, envelope: Envelope, *, trusted: bool) -> Heard:
        plan = decode(envelope.payload, Plan, where="plan", limit_bytes=PLAN_LIMIT_BYTES)
        if plan.author != envelope.node_id:
            raise BadWireData("plan", "its author is another node than its signer")
        if not plan.may_follow(self.plan):
            return Heard()
        verify(envelope)
        author = NodeId(plan.author)
        known = trusted or author == self.record.id or self._membership.is_remembered(author)
        if known or any(self._vouches(record, plan) for record in self._membership.members().values()):
            return Heard(self._adopt(plan, envelope), spread=True)
        if self._orphan is None or plan.may_follow(self._orphan[0]):
            self._orphan = (plan, envelope)
        return Heard()

    def _vouches(self, record: NodeRecord, plan: Plan) -> bool:
        """Whether this member made the plan or follows it: its author may be long gone."""
        return record.node_id == plan.author or record.plan_epoch >= plan.epoch

    def _adopt(self, plan: Plan, envelope: Envelope) -> list[SwarmNews]:
        if not plan.may_follow(self.plan):
            return []
        self.plan, self._plan_envelope = plan, envelope
        return [PlanHeard(plan)]

    def _tidy(self, news: list[SwarmNews]) -> list[SwarmNews]:
        """Only the living are told of."""
        for node_id in [n for n in self._statements if not self.is_member(n)]:
            del self._statements[node_id]
        return news
