"""The narrow edge between a swarm and those who use it: members, links, plans. No libp2p below this line of imports.

`pipeline` and `main` are written against these protocols; tests use the in-memory swarm of `tests/fakes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, Unpack

import trio

from node.swarm.record_changes import RecordChanges
from node.wire.frames import Buffer, Frame
from node.wire.ids import NodeId
from node.wire.plans import Plan
from node.wire.records import NodeRecord

Lane = Literal["steps", "bulk"]
"""Each lane of a link keeps its own order and nothing waits for the other: `bulk` carries prompts, `steps` all that
somebody waits for. On one connection, `steps` goes first."""

LANES: tuple[Lane, ...] = ("steps", "bulk")


class Link(Protocol):
    """One lane to a neighbour, directly or through a third member."""

    peer: NodeId
    lane: Lane

    async def send(self, frame: Frame, body: Buffer = b"") -> None:
        """Send one frame; frames of one link arrive in order, whole, once.

        Safe to call from several tasks: each frame is written as one piece.

        Raises:
            LinkClosed: the neighbour is gone; nothing more can be sent on this link.
            BadWireData: the frame is larger than the wire allows. Nothing was sent, and the link stays as it is.
        """


@dataclass(frozen=True, slots=True)
class Arrival:
    """A frame from a member whose identity the link has proven."""

    peer: NodeId
    frame: Frame
    body: Buffer
    """Counted against the neighbour for as long as it is referred to; while it holds too much, no more is read."""
    received_s: float
    """Our monotonic clock (`time.perf_counter`) when the last byte was read."""
    wire_ms: float
    """From the sender's `sent_s` to `received_s` by the measured clock offset; 0 for frames without a stamp."""


@dataclass(frozen=True, slots=True)
class MemberSeen:
    """A member joined or its record changed."""

    record: NodeRecord


@dataclass(frozen=True, slots=True)
class MemberGone:
    """A member is out of the view: it said goodbye, fell silent, or its connection ended."""

    node_id: NodeId
    name: str
    why: Literal["left", "silent", "disconnected"]


@dataclass(frozen=True, slots=True)
class LinkLost:
    """A link with a member broke, in either direction, while the member stays.

    Frames that were under way may be lost and never come again, so whoever waits for one must not wait any longer. Both
    ends are told, each when it notices. `Swarm.link` opens a new link.
    """

    node_id: NodeId
    reason: str
    lanes: tuple[Lane, ...] = LANES
    """Those that broke."""


@dataclass(frozen=True, slots=True)
class PlanHeard:
    """A validly signed plan by a member, not yet judged against ours."""

    plan: Plan


@dataclass(frozen=True, slots=True)
class Misbehaved:
    """A member did what none may do, and was disconnected for it; told once a minute at most."""

    node_id: NodeId
    what: str
    """A sentence for people, with its name."""


SwarmNews = MemberSeen | MemberGone | LinkLost | PlanHeard | Misbehaved


class Swarm(Protocol):
    """This node's place among its peers."""

    node_id: NodeId
    arrivals: trio.MemoryReceiveChannel[Arrival]
    """Frames from all links; has one reader, which must never wait long: it keeps every link alive."""

    @property
    def news(self) -> trio.abc.ReceiveChannel[SwarmNews]:
        """Membership and plans; of each member in order, and what is outdated may be left out. Has one reader."""

    def members(self) -> dict[NodeId, NodeRecord]:
        """Every live member's newest record, our own included."""

    async def update(self, **changes: Unpack[RecordChanges]) -> None:
        """Change fields of our own record; it is numbered, signed and spread (at most a few times a second)."""

    async def publish_plan(self, plan: Plan) -> bool:
        """Sign a plan of ours and spread it, to members that join later too; False where one known here outranks it."""

    def set_aside(self, author: NodeId, aside: bool) -> None:
        """Neither take nor spread plans of this author, and forget the one known if it is theirs; or do so again."""

    async def link(self, peer: NodeId, lane: Lane = "steps") -> Link:
        """One lane of the link to a member, opened on first use; through a third member where there is no direct way.

        Raises:
            LinkClosed: the peer is no live member, or neither we nor a member that we know can reach it.
        """

    def invitation(self) -> str:
        """A token that admits its bearer: one word, no spaces."""
