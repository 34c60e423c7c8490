"""What two nodes say on the control stream of a connection: first the proof that both belong, then heartbeats and news.

A message is a u32 length (little-endian) and that many bytes of msgpack.
"""

from __future__ import annotations

import math
from typing import Annotated

from msgspec import Meta, Struct

from node.wire.models import Count
from node.wire.records import Envelope, Id

ADMISSION_LIMIT_BYTES = 1024
"""A stranger may make us read this much at once, no more."""

CONTROL_LIMIT_BYTES = 256 * 1024
"""A `Told` is closed at half of this, or holds one envelope alone, which is at most 192 KiB."""

Nonce = Annotated[bytes, Meta(min_length=32, max_length=32)]
PingNumber = Annotated[int, Meta(ge=0, le=2**53)]


class Hello(Struct, frozen=True, tag="hello"):
    """The first message in both directions. Its shape never changes, so that unequal versions can tell."""

    wire_version: Annotated[int, Meta(ge=0, le=2**31)]
    nonce: Nonce
    """Fresh for this connection; the proofs are made of both."""
    life: Nonce
    """Random, made when the process started: a second connection of another life means that the first one is dead."""


class Proof(Struct, frozen=True, tag="proof"):
    """HMAC-SHA256 under the swarm's secret; see `node.swarm.admission`."""

    mac: Annotated[bytes, Meta(min_length=32, max_length=32)]


class Ping(Struct, frozen=True, tag="ping"):
    """Answered at once. The sender remembers when it sent which number."""

    number: PingNumber


class Pong(Struct, frozen=True, tag="pong"):
    """The answer, with the answerer's clock in seconds when the ping came and when this left."""

    number: PingNumber
    received_s: float
    sent_s: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.received_s) and math.isfinite(self.sent_s)):
            raise ValueError("pong: the clock must be a finite number")


class Told(Struct, frozen=True, tag="told"):
    """Signed statements of members, by themselves or passed on."""

    envelopes: Annotated[tuple[Envelope, ...], Meta(max_length=4096)]
    welcome: bool = False
    """The first one on a connection: all that the sender knows, the plan of an author who is gone included."""
    your_seq: Count = 0
    """In a welcome: the highest number that the sender has seen on a record of the receiver, who must outdo it."""


class Leave(Struct, frozen=True):
    """The payload of a `leave` envelope: every record of this node up to `seq` is void."""

    node_id: Id
    seq: Count


Admission = Hello | Proof
Control = Ping | Pong | Told
