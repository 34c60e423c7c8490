"""What members say, who has heard it, and what to pass on. Checks signatures, numbers and allowances; does no I/O.

A node says of itself in parts (`node.wire.statements`), and each part only when it changed. A statement goes from its
owner to everyone connected to it; who passes it on to the others is `relaying`. Whoever finds by the numbers that
something is missing asks a neighbour who has it, so nothing needs to be told twice to be safe.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import msgspec

from node.errors import BadWireData
from node.swarm.allowance import (
    ASKS_BURST,
    ASKS_PER_S,
    FAULTS_BURST,
    FAULTS_PER_S,
    HEARD_BURST,
    HEARD_PER_S,
    OWN_BURST,
    OWN_PER_S,
    RELAYED_BURST,
    RELAYED_PER_S,
    Allowance,
)
from node.swarm.base import MemberSeen, PlanHeard, SwarmNews
from node.swarm.identity import Identity, verify
from node.swarm.membership import Membership
from node.swarm.relaying import passes_on
from node.wire.codec import decode, encode
from node.wire.control import MOST_KNOWN, Ask, Welcome, pack_known
from node.wire.ids import NodeId, short_id
from node.wire.parts import PART_TYPES, Beat, Part, Profile, Status, Trips, profile_of, status_of, trips_of
from node.wire.peer_figures import mark_of, unpack_marks
from node.wire.plans import Plan, most_epoch
from node.wire.records import NodeRecord
from node.wire.statements import LIMIT_BYTES, Envelope, Leave

log = logging.getLogger(__name__)

CLOCK_AHEAD_LIMIT_MS = 86_400_000
"""How far a former life's clock may have been ahead of ours. A number beyond that is a lie of whoever tells it, and one
near the largest that a record takes would leave us none to go on with."""

ASK_AGAIN_S = 3.0
"""What was asked for is given this long to come before another neighbour is asked."""

LATE_PLAN_S = 3.0
"""A plan that a member follows is under way for no longer than this; then it is asked for."""


@dataclass(slots=True)
class Effects:
    """What an envelope led to."""

    news: list[SwarmNews] = field(default_factory=list)
    spread: bool = False
    """Whether it was new to us, and so may be to others."""
    released: Envelope | None = None
    """A plan that was held back until this was heard: likewise new to others."""
    ask: Ask | None = None
    """What we lack, by what this says; for the neighbour that told it."""


class Flood(BadWireData):
    """A neighbour goes on for too long over what one member may make others do."""


class Gossip:
    """One node's knowledge of its swarm, its own record included."""

    def __init__(self, identity: Identity, record: NodeRecord, swarm_mark: bytes) -> None:
        self.record = record
        self.plan: Plan | None = None
        """The highest plan heard or published."""
        self._identity, self._swarm_mark = identity, swarm_mark
        self._published_unix_ms = 0
        self._membership = Membership(identity.node_id)
        self._profile: Profile | None = None
        self._status: Status | None = None
        self._trips: Trips | None = None
        self._figures: tuple[object, ...] = ()
        """What our trips were made of."""
        self._statements: dict[str, Envelope] = {}
        """Our own newest, by kind."""
        self._plan_envelope: Envelope | None = None
        self._aside: set[NodeId] = set()
        """Authors whose plans are not taken."""
        self._orphan: tuple[Plan, Envelope] | None = None
        """A plan that no member we know has made or follows; a record that tells otherwise may be under way."""
        self._plans_of: dict[NodeId, tuple[int, str]] = {}
        """By neighbour: (epoch, author) of the newest plan that it has shown to know."""
        self._asked_s: dict[bytes, float] = {}
        self._late_plan_s: float | None = None
        """Since when some member follows a plan that we have not heard."""
        self._heard = Allowance[NodeId](HEARD_PER_S, HEARD_BURST)
        self._own = Allowance[NodeId](OWN_PER_S, OWN_BURST)
        self._relayed = Allowance[NodeId](RELAYED_PER_S, RELAYED_BURST)
        self._faults = Allowance[NodeId](FAULTS_PER_S, FAULTS_BURST)
        self._asks = Allowance[NodeId](ASKS_PER_S, ASKS_BURST)

    def members(self) -> dict[NodeId, NodeRecord]:
        """Every live member's record, our own included."""
        return {self.record.id: self.record} | self._membership.members()

    def is_member(self, node_id: NodeId) -> bool:
        """Whether it is live now."""
        return node_id == self.record.id or self._membership.is_member(node_id)

    # our own words

    def publish(self, changes: Mapping[str, object], unix_ms: int) -> tuple[list[Envelope], list[SwarmNews]]:
        """Our next statements, signed: each part that changed, or a beat. News where it is the first time (the draft
        has the number 0) or something changed.

        Raises:
            BadWireData: a change that others would refuse.
            TypeError: a field that records do not have.
        """
        before, self._published_unix_ms = self.record, unix_ms
        seq = max(unix_ms, before.seq + 1)
        draft = changed(before, {**changes, "seq": seq})
        envelopes: list[Envelope] = []
        profile = profile_of(draft)
        if self._profile is None or msgspec.structs.replace(profile, seq=self._profile.seq) != self._profile:
            self._profile = profile
            envelopes.append(self._sign("profile", profile))
            seq += 1
        figures = draft.rtt_ms, draft.mbps, draft.unreachable
        if self._trips is None or figures != self._figures:
            self._trips, self._figures = trips_of(msgspec.structs.replace(draft, seq=seq)), figures
            envelopes.append(self._sign("trips", self._trips))
            seq += 1
        draft = msgspec.structs.replace(draft, seq=seq)
        status = status_of(draft, profile_seq=self._profile.seq, trips_seq=self._trips.seq)
        if self._status is None or _numberless(status) != _numberless(self._status):
            self._status = status
            envelopes.append(self._sign("status", status))
        elif envelopes:
            seq -= 1
        else:
            ago = seq - self._profile.seq, seq - self._status.seq, seq - self._trips.seq
            envelopes.append(self._sign("beat", Beat(seq, *ago)))
        self.record = msgspec.structs.replace(draft, seq=seq)
        is_news = before.seq == 0 or msgspec.structs.replace(before, seq=seq) != self.record
        return envelopes, [MemberSeen(self.record)] if is_news else []

    def outdo(self, seq: int) -> bool:
        """Have our next statement outdo `seq`, which a former life of ours reached; True if it would not have.

        A clock that was set back between two lives would otherwise make us old news until it has caught up. One that
        was ahead by more than `CLOCK_AHEAD_LIMIT_MS` does: the others forget that life within `membership.MEMORY_S`.
        """
        if seq < self.record.seq or seq > self._published_unix_ms + CLOCK_AHEAD_LIMIT_MS:
            return False
        self.record = msgspec.structs.replace(self.record, seq=seq)
        self._profile = self._status = self._trips = None  # all parts anew: theirs of that life had higher numbers
        return True

    def publish_plan(self, plan: Plan) -> Envelope | None:
        """Our plan, signed; None where a higher one is known already.

        Raises:
            BadWireData: it is not ours, or too large for an envelope.
        """
        if plan.author != self.record.node_id:
            raise BadWireData("plan", f"its author is {plan.author}, not this node")
        payload = encode(plan)
        decode(payload, Plan, where="our own plan", limit_bytes=LIMIT_BYTES["plan"])
        if not plan.outranks(self.plan):
            return None
        self.plan = plan
        self._plan_envelope = self._identity.sign("plan", payload, self._swarm_mark)
        return self._plan_envelope

    def set_aside(self, author: NodeId, aside: bool) -> None:
        """Neither take nor spread plans of this author, and forget the one known if it is theirs; or do so again."""
        if not aside:
            self._aside.discard(author)
            return
        self._aside.add(author)
        if self.plan is not None and self.plan.author == author:
            self.plan, self._plan_envelope = None, None
        if self._orphan is not None and self._orphan[0].author == author:
            self._orphan = None

    def leave(self) -> Envelope:
        """Our goodbye."""
        self.record = msgspec.structs.replace(self.record, seq=self.record.seq + 1)
        return self._identity.sign("leave", encode(Leave(self.record.seq)), self._swarm_mark)

    # with one neighbour

    def welcome(self, peer: NodeId) -> tuple[Welcome, list[Envelope]]:
        """The first words to a new neighbour: what we know, by number, and all that we say of ourselves."""
        seqs = dict(list(self._membership.seqs().items())[:MOST_KNOWN])
        plan = self.plan
        welcome = Welcome(
            self._membership.seq_of(peer),
            pack_known(seqs),
            plan.epoch if plan is not None else 0,
            plan.author if plan is not None else "",
        )
        return welcome, list(self._statements.values())

    def hear_welcome(self, welcome: Welcome, via: NodeId, now: float) -> Ask | None:
        """A neighbour has told what it knows: what of it we lack."""
        wanted = [
            mark
            for mark in welcome.seqs()
            if (node_id := self._membership.name_of(mark)) is None
            or (node_id not in (self.record.id, via) and self._membership.lacks(node_id))
        ]
        self._note_plan(via, welcome.plan_epoch, welcome.plan_author)
        return self._ask(wanted, now, plan=self._outranks_ours(welcome.plan_epoch, welcome.plan_author))

    def answer(self, ask: Ask, via: NodeId, now: float) -> list[Envelope]:
        """What a neighbour has asked for, as far as we have it.

        Raises:
            Flood: it asks for too much, for too long.
        """
        if not self._asks.take(via, now):
            if self._asks.is_flood(via):
                raise Flood(f"questions of {short_id(via)}", "it asks without pause")
            return []
        found = [self._plan_envelope] if ask.plan and self._plan_envelope is not None else []
        for mark in unpack_marks(ask.marks):
            node_id = self._membership.name_of(mark)
            if node_id is not None:
                found += self._membership.statements(node_id)
        return found

    def targets(self, envelope: Envelope, via: NodeId | None, neighbours: Iterable[NodeId]) -> list[NodeId]:
        """Whom to tell. `via` is who told us, None for our own statements."""
        owner = envelope.id
        if envelope.kind == "plan" and self.plan is not None:
            mark = self.plan.epoch, self.plan.author
            neighbours = [peer for peer in neighbours if self._plans_of.get(peer) != mark]
        if via is None:
            return [peer for peer in neighbours if peer != owner]
        ours, theirs, reach = mark_of(self.record.node_id), mark_of(owner), self._membership.reach_of(owner)
        apart = [peer for peer in neighbours if mark_of(peer) not in reach and peer not in (via, owner)]
        return [
            peer for peer in apart if passes_on(ours, theirs, reach, mark_of(peer), self._membership.reach_of(peer))
        ]

    # what comes

    def hear(self, envelope: Envelope, via: NodeId, now: float, unix_s: float) -> Effects:
        """A statement came from the neighbour `via`.

        Raises:
            Flood: `via` sends more than a member may, for too long.
            BadWireData: the statement is none of its owner's, or not what its kind says.
        """
        if not self._heard.take(via, now):
            if self._heard.is_flood(via):
                raise Flood(f"statements of {short_id(via)}", "it repeats what is known without pause")
            return Effects()
        match envelope.kind:
            case "profile" | "status" | "trips" | "beat":
                return self._hear_part(envelope, via, now, unix_s)
            case "leave":
                return self._hear_leave(envelope, via, now)
            case "plan":
                return self._hear_plan(envelope, via, now, unix_s)
            case _:
                return Effects()  # a newer node's; nobody who knows it needs us to pass it on

    def fault(self, via: NodeId, now: float) -> None:
        """The neighbour passed on what its owner did not sign, or what cannot be read.

        Raises:
            Flood: too often for one that means well and is of another version.
        """
        if not self._faults.take(via, now):
            raise Flood(f"statements passed on by {short_id(via)}", "too many are badly signed or cannot be read")

    def connected(self, node_id: NodeId, now: float) -> None:
        """A proven connection stands."""
        self._membership.connected(node_id, now)

    def disconnected(
        self, node_id: NodeId, why: Literal["silent", "disconnected"], now: float, *, for_good: bool = False
    ) -> list[SwarmNews]:
        """The last connection to it is gone; `for_good`: and so is all that it held."""
        self._plans_of.pop(node_id, None)
        return list(self._membership.disconnected(node_id, why, now, for_good=for_good))

    def pass_time(self, now: float, stall_s: float) -> list[SwarmNews]:
        """Forget what has expired; `stall_s` is how long this process itself stood still."""
        self._membership.forgive(stall_s)
        self._asked_s = {mark: asked_s for mark, asked_s in self._asked_s.items() if now - asked_s < ASK_AGAIN_S}
        return list(self._membership.pass_time(now))

    def is_known_by_hearsay(self, neighbours: Iterable[NodeId]) -> bool:
        """Whether some live member is not among our neighbours: it knows us by hearsay alone."""
        connected = set(neighbours)
        return any(node_id not in connected for node_id in self._membership.seqs())

    def _hear_part(self, envelope: Envelope, via: NodeId, now: float, unix_s: float) -> Effects:
        where = f"{envelope.kind} by {short_id(via)}"
        part = _read(envelope, PART_TYPES[envelope.kind], where)
        assert isinstance(part, Part)
        owner = envelope.id
        if owner == self.record.id:
            if part.seq > self.record.seq and self._is_allowed(envelope, via, now):
                self.outdo(part.seq)
            return Effects()
        if not self._membership.is_newer(owner, envelope.kind, part.seq) or not self._is_allowed(envelope, via, now):
            return Effects()
        if isinstance(part, Status) and part.plan_epoch > most_epoch(unix_s):
            part = msgspec.structs.replace(part, plan_epoch=0)  # no planning has led there, so it follows nothing
        heard = Effects(list(self._membership.hear(envelope, part, now, direct=via == owner)), spread=True)
        record = self._membership.record(owner)
        if record is not None and self._orphan is not None and self._vouches(record, self._orphan[0]):
            plan, plan_envelope = self._orphan
            self._orphan = None
            adopted = self._adopt(plan, plan_envelope, unix_s)
            heard.news += adopted
            heard.released = plan_envelope if adopted else None
        lacking = [mark_of(owner)] if self._membership.lacks(owner) and not isinstance(part, Profile) else []
        heard.ask = self._ask(lacking, now, plan=isinstance(part, Status) and self._is_plan_late(part, now))
        return heard

    def _hear_leave(self, envelope: Envelope, via: NodeId, now: float) -> Effects:
        leave = _read(envelope, Leave, "leave")
        owner = envelope.id
        if owner == self.record.id or not self._membership.is_leave_new(owner, leave.seq):
            return Effects()
        if not self._is_allowed(envelope, via, now):
            return Effects()
        return Effects(list(self._membership.hear_leave(owner, leave.seq, now)), spread=True)

    def _hear_plan(self, envelope: Envelope, via: NodeId, now: float, unix_s: float) -> Effects:
        plan = _read(envelope, Plan, "plan")
        if plan.author != envelope.node_id:
            raise BadWireData("plan", "its author is another node than its signer")
        author = envelope.id
        self._note_plan(via, plan.epoch, plan.author)
        if author in self._aside or not plan.may_follow(self.plan, unix_s) or not self._is_allowed(envelope, via, now):
            return Effects()
        trusted = self._asked_s.pop(_PLAN, None) is not None  # we asked: its author may be long gone
        known = trusted or author == self.record.id or self._membership.is_remembered(author)
        if known or any(self._vouches(record, plan) for record in self._membership.members().values()):
            return Effects(self._adopt(plan, envelope, unix_s), spread=True)
        if self._orphan is None or plan.outranks(self._orphan[0]):
            self._orphan = (plan, envelope)
        return Effects()

    def _is_allowed(self, envelope: Envelope, via: NodeId, now: float) -> bool:
        """Whether this statement is its owner's, and within what that owner, and who passes it on, may make us do.

        A signature is checked before its owner is charged: nobody may use up the allowance of another.

        Raises:
            Flood: `via` has gone on for too long.
            BadWireData: the signature is not its owner's.
        """
        owner = envelope.id
        if owner == via:
            if not self._own.take(owner, now):
                if self._own.is_flood(owner):
                    raise Flood(f"statements of {short_id(via)}", "it speaks without pause")
                return False
            verify(envelope, self._swarm_mark)
            return True
        if not self._relayed.take(via, now):
            if self._relayed.is_flood(via):
                raise Flood(f"statements of {short_id(via)}", "it passes on more than a swarm can have to say")
            return False
        verify(envelope, self._swarm_mark)
        return self._own.take(owner, now)

    def _vouches(self, record: NodeRecord, plan: Plan) -> bool:
        """Whether this member made the plan or follows it: its author may be long gone."""
        return record.node_id == plan.author or record.plan_epoch >= plan.epoch

    def _adopt(self, plan: Plan, envelope: Envelope, unix_s: float) -> list[SwarmNews]:
        if not plan.may_follow(self.plan, unix_s):
            return []
        self.plan, self._plan_envelope, self._late_plan_s = plan, envelope, None
        return [PlanHeard(plan)]

    def _is_plan_late(self, status: Status, now: float) -> bool:
        """Whether it is time to ask for a plan that members follow and that has not come."""
        if status.plan_epoch <= (self.plan.epoch if self.plan is not None else 0):
            return False
        if self._late_plan_s is None:
            self._late_plan_s = now
        if now - self._late_plan_s < LATE_PLAN_S:
            return False
        self._late_plan_s = now
        return True

    def _outranks_ours(self, epoch: int, author: str) -> bool:
        if self.plan is None:
            return epoch > 0
        return epoch > self.plan.epoch or (epoch == self.plan.epoch and author < self.plan.author)

    def _note_plan(self, via: NodeId, epoch: int, author: str) -> None:
        self._plans_of[via] = (epoch, author)

    def _ask(self, marks: Iterable[bytes], now: float, *, plan: bool) -> Ask | None:
        fresh = [mark for mark in marks if now - self._asked_s.get(mark, -ASK_AGAIN_S) >= ASK_AGAIN_S][:MOST_KNOWN]
        plan = plan and now - self._asked_s.get(_PLAN, -ASK_AGAIN_S) >= ASK_AGAIN_S
        if not fresh and not plan:
            return None
        self._asked_s |= dict.fromkeys([*fresh, *([_PLAN] if plan else [])], now)
        return Ask(b"".join(fresh), plan)

    def _sign(self, kind: Literal["profile", "status", "trips", "beat"], part: Part) -> Envelope:
        envelope = self._identity.sign(kind, encode(part), self._swarm_mark)
        if kind != "beat":
            self._statements[kind] = envelope
        return envelope


_PLAN = b"plan"
"""Among what was asked for; a mark has eight bytes."""

RECORD_LIMIT_BYTES = 256 * 1024
"""A record with 1,024 peers. It does not travel, its parts do."""

T = TypeVar("T")


def changed(record: NodeRecord, changes: Mapping[str, object]) -> NodeRecord:
    """The record with other fields, as others would read it.

    Raises:
        BadWireData: they would refuse it.
        TypeError: there is no such field.
    """
    where = "our own record"
    try:
        draft = msgspec.structs.replace(record, **changes)
        return decode(encode(draft), NodeRecord, where=where, limit_bytes=RECORD_LIMIT_BYTES)
    except (ValueError, OverflowError) as error:
        raise BadWireData(where, str(error)) from error


def _read(envelope: Envelope, kind: type[T], where: str) -> T:
    return decode(envelope.payload, kind, where=where, limit_bytes=LIMIT_BYTES[envelope.kind])


def _numberless(status: Status) -> Status:
    return msgspec.structs.replace(status, seq=0, profile_ago=0, trips_ago=0)
