"""What is said to have a third member carry a lane: the origin to it, it to the target, and its answer to the origin.

A message is a u32 length (little-endian) and that many bytes of msgpack. What follows on the stream is Noise between
origin and target, of which the third sees nothing and can change nothing.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from node.wire.records import Id

CIRCUIT_LIMIT_BYTES = 1024

LaneName = Literal["steps", "bulk"]


class Through(Struct, frozen=True, tag="through"):
    """Origin to relay: carry a lane of mine to this member, whom you reach directly."""

    target: Id
    lane: LaneName


class Introduced(Struct, frozen=True, tag="introduced"):
    """Relay to target: what comes is from that member, who proves it."""

    origin: Id
    lane: LaneName


class Reached(Struct, frozen=True, tag="reached"):
    """Relay to origin: go on, the target hears you."""


class NotReached(Struct, frozen=True, tag="not reached"):
    """Relay to origin: it cannot or will not."""

    reason: Annotated[str, Meta(max_length=256)]


Answer = Reached | NotReached
