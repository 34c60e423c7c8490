"""A signed statement as it travels: who says it, of which kind it is, and its bytes, which a relay never changes.

What a node says of itself comes in parts that change at different rates, each numbered, the newest of a kind counts:

| kind | what | when |
|---|---|---|
| `profile` | who I am: name, addresses, hardware, what its owner set | when it changes |
| `status` | how I am: ranges, KV cache, load, times | when it changes, at most a few times a second |
| `trips` | whom I reach, how far they are, and whom I cannot reach | when it changes by enough |
| `beat` | I am still here, and these are the numbers of my newest parts | each second or two without another |
| `leave` | every part of mine so far is void | once |
| `plan` | who holds which layers; numbered by epoch | when a planner decides |
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from node.wire.ids import NodeId
from node.wire.models import Count

KIBIBYTE = 1024

LIMIT_BYTES = {
    "profile": 16 * KIBIBYTE,
    "status": 1 * KIBIBYTE,
    "trips": 32 * KIBIBYTE,
    "beat": 256,
    "leave": 256,
    "plan": 192 * KIBIBYTE,
}
"""The largest payload of each kind. Kinds that are not in it are a newer node's, and mean nothing here."""

ENVELOPE_LIMIT_BYTES = max(LIMIT_BYTES.values())

STATUS_SIGNED_BYTES = 200
"""A status of one range and its signature are no longer than this: each node sends one a second while it works."""


class Envelope(Struct, frozen=True, array_like=True):
    """A statement with its owner's signature over kind and payload, bound to the swarm (`node.swarm.identity`)."""

    kind: Annotated[str, Meta(min_length=1, max_length=16)]
    node_id: Annotated[str, Meta(max_length=128)]
    """Whose it is. Empty on the wire where the neighbour that sends it is its owner, who is known from the handshake;
    most of all traffic is that, and an id is half of a beat."""
    payload: Annotated[bytes, Meta(max_length=ENVELOPE_LIMIT_BYTES)]
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]

    @property
    def id(self) -> NodeId:
        return NodeId(self.node_id)


class Leave(Struct, frozen=True, array_like=True):
    """The payload of a `leave`: every part of its signer up to `seq` is void."""

    seq: Count
