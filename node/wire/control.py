"""What two nodes say on the control stream of a connection: first the proof that both belong, then heartbeats and news.

A message is a u32 length (little-endian) and that many bytes of msgpack.
"""

from __future__ import annotations

import math
from typing import Annotated

from msgspec import Meta, Struct

from node.wire.ids import NodeId
from node.wire.models import Count
from node.wire.peer_figures import MARK_BYTES, Mark, mark_of
from node.wire.statements import Envelope

ADMISSION_LIMIT_BYTES = 1024
"""A stranger may make us read this much at once, no more."""

CONTROL_LIMIT_BYTES = 256 * 1024
"""`Envelopes` are closed at half of this, or holds one envelope alone, which is at most 192 KiB."""

Nonce = Annotated[bytes, Meta(min_length=32, max_length=32)]
PingNumber = Annotated[int, Meta(ge=0, le=2**53)]
Version = Annotated[int, Meta(ge=0, le=2**31)]

MOST_KNOWN = 1024
SEQ_BYTES = 8


class Hello(Struct, frozen=True, tag="hello"):
    """The first message in both directions. What it has never changes, so that unequal versions can tell."""

    wire_version: Version
    """The highest that the sender speaks."""
    nonce: Nonce
    """Fresh for this connection; the proofs are made of both."""
    life: Nonce
    """Random, made when the process started: a second connection of another life means that the first one is dead."""
    least_version: Version | None = None
    """The lowest that it speaks; without this, the highest alone."""

    @property
    def versions(self) -> tuple[int, int]:
        """(least, most)."""
        return (self.wire_version if self.least_version is None else self.least_version, self.wire_version)


class Proof(Struct, frozen=True, tag="proof"):
    """HMAC-SHA256 under the swarm's secret; see `node.swarm.admission`."""

    mac: Annotated[bytes, Meta(min_length=32, max_length=32)]


class Ping(Struct, frozen=True, array_like=True, tag=0):
    """Answered at once. The sender remembers when it sent which number."""

    number: PingNumber


class Pong(Struct, frozen=True, array_like=True, tag=1):
    """The answer, with the answerer's clock in seconds when the ping came and when this left."""

    number: PingNumber
    received_s: float
    sent_s: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.received_s) and math.isfinite(self.sent_s)):
            raise ValueError("pong: the clock must be a finite number")


class Envelopes(Struct, frozen=True, array_like=True, tag=2):
    """Signed statements of members, by themselves or passed on."""

    envelopes: Annotated[tuple[Envelope, ...], Meta(max_length=4096)]


class Welcome(Struct, frozen=True, array_like=True, tag=3):
    """The first on a connection: what the sender knows, by number, so that the receiver can ask for what it lacks."""

    your_seq: Count
    """The highest number that the sender has seen on a statement of the receiver, who must outdo it."""
    known: Annotated[bytes, Meta(max_length=MOST_KNOWN * (MARK_BYTES + SEQ_BYTES))]
    """The mark of each live member and its highest number, big-endian."""
    plan_epoch: Count = 0
    """Of the plan in force; 0 for none."""
    plan_author: Annotated[str, Meta(max_length=128)] = ""

    def __post_init__(self) -> None:
        if len(self.known) % (MARK_BYTES + SEQ_BYTES):
            raise ValueError("welcome.known is no whole number of entries")

    def seqs(self) -> dict[Mark, int]:
        """By mark."""
        width = MARK_BYTES + SEQ_BYTES
        return {
            self.known[at : at + MARK_BYTES]: int.from_bytes(self.known[at + MARK_BYTES : at + width], "big")
            for at in range(0, len(self.known), width)
        }


class Ask(Struct, frozen=True, array_like=True, tag=4):
    """The sender lacks something that the receiver has."""

    marks: Annotated[bytes, Meta(max_length=MOST_KNOWN * MARK_BYTES)]
    """Of members, of whom every part is wanted."""
    plan: bool = False

    def __post_init__(self) -> None:
        if len(self.marks) % MARK_BYTES:
            raise ValueError("ask.marks is no whole number of names")


def pack_known(seqs: dict[NodeId, int]) -> bytes:
    """For `Welcome.known`."""
    return b"".join(mark_of(node_id) + seq.to_bytes(SEQ_BYTES, "big") for node_id, seq in seqs.items())


Admission = Hello | Proof
News = Envelopes | Welcome | Ask
Control = Ping | Pong | Envelopes | Welcome | Ask
