"""Statements for tests: a whole record as its owner would sign it, all parts under the record's number."""

from __future__ import annotations

from node.swarm.identity import Identity
from node.wire.codec import encode
from node.wire.parts import Part, profile_of, status_of, trips_of
from node.wire.plans import Plan
from node.wire.records import NodeRecord
from node.wire.statements import Envelope, Leave

MARK = b"a swarm's mark"


def parts_of(record: NodeRecord) -> dict[str, Part]:
    """By kind, in the order in which they are told."""
    return {
        "profile": profile_of(record),
        "trips": trips_of(record),
        "status": status_of(record, profile_seq=record.seq, trips_seq=record.seq),
    }


def told_by(who: Identity, record: NodeRecord, mark: bytes = MARK) -> tuple[Envelope, ...]:
    """Everything that `who` says with this record."""
    return tuple(who.sign(kind, encode(part), mark) for kind, part in parts_of(record).items())  # type: ignore[arg-type]


def plan_of(who: Identity, plan: Plan, mark: bytes = MARK) -> Envelope:
    return who.sign("plan", encode(plan), mark)


def leave_of(who: Identity, seq: int, mark: bytes = MARK) -> Envelope:
    return who.sign("leave", encode(Leave(seq)), mark)
