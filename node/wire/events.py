"""Everything that happens, as numbered events. `node.journal` folds them into the state that HTTP and the TUI show."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from node.wire.frames import Hop
from node.wire.ids import NodeId, RequestId
from node.wire.plans import Plan
from node.wire.records import NodeRecord
from node.wire.text import printable

NOTICE_LIMIT = 2048
"""Characters."""


class HopLatency(Struct, frozen=True):
    """Mean time per decode step that one hop of a request took, split into its parts; all in milliseconds."""

    node_id: str
    name: str
    start: int
    end: int
    wire_ms: float
    queue_ms: float
    compute_ms: float
    serialise_ms: float

    @property
    def total_ms(self) -> float:
        return self.wire_ms + self.queue_ms + self.compute_ms + self.serialise_ms


class NodeSeen(Struct, frozen=True, tag="node_seen"):
    """A member joined, or its record changed."""

    record: NodeRecord


class NodeGone(Struct, frozen=True, tag="node_gone"):
    """A member is out of the view."""

    node_id: NodeId
    name: str
    why: Literal["left", "silent", "disconnected"]


class PlanAdopted(Struct, frozen=True, tag="plan_adopted"):
    """This node follows a new plan."""

    plan: Plan


class PlanImpossible(Struct, frozen=True, tag="plan_impossible"):
    """The pool cannot hold the model; `reason` says what is missing. An empty reason takes it back."""

    reason: str


class ModelProgress(Struct, frozen=True, tag="model_progress"):
    """Getting a model ready on this node. `total` is 0 where it is not known."""

    model: str
    phase: Literal["fetch", "convert", "load", "ready", "failed"]
    done_bytes: int = 0
    total_bytes: int = 0
    text: str = ""


class NodeAvoided(Struct, frozen=True, tag="node_avoided"):
    """This node, as a head, keeps away from another one for a while, for what it did to a request; 0 seconds take it
    back, since an answer came through it."""

    node_id: NodeId
    name: str
    reason: Annotated[str, Meta(max_length=512)]
    for_s: float


class RequestWaiting(Struct, frozen=True, tag="request_waiting"):
    """A request that this node is head of waits: for a chain, for room, or for another one after a failure. Told again
    when what it waits for changes."""

    request_id: RequestId
    prompt_tokens: int
    reason: Annotated[str, Meta(max_length=512)]


class RequestStarted(Struct, frozen=True, tag="request_started"):
    """A request that this node is head of takes a chain; or, told again, another one."""

    request_id: RequestId
    prompt_tokens: int
    chain: tuple[Hop, ...]


class RequestProgress(Struct, frozen=True, tag="request_progress"):
    """At most four times a second while a request runs: tokens so far, and the hops' mean times of the last steps."""

    request_id: RequestId
    tokens: int
    hops: tuple[HopLatency, ...]
    return_ms: float
    """Tail to head."""


class RequestFinished(Struct, frozen=True, tag="request_finished"):
    """A request has its answer."""

    request_id: RequestId
    tokens: int
    reason: Literal["stop", "length", "cancelled"]
    ttft_ms: float
    """Time to first token."""
    tpot_ms: float
    """Time per output token after the first; 0 with one token."""
    hops: tuple[HopLatency, ...]
    return_ms: float


class RequestFailed(Struct, frozen=True, tag="request_failed"):
    """A request ended in an error."""

    request_id: RequestId
    error: str


class Notice(Struct, frozen=True, tag="notice"):
    """A sentence for the person at the terminal."""

    level: Literal["info", "warning", "error"]
    text: Annotated[str, Meta(max_length=NOTICE_LIMIT)]
    at_s: float = 0.0
    """Unix time of its event, set where it is put into a state; 0 for one that is in none yet."""

    @classmethod
    def of(cls, level: Literal["info", "warning", "error"], text: str) -> Notice:
        """One that may be shown and is cut where it is too long: an engine's or a library's words may be pages."""
        return cls(level, printable(text, NOTICE_LIMIT))


Event = (
    NodeSeen
    | NodeGone
    | PlanAdopted
    | PlanImpossible
    | NodeAvoided
    | ModelProgress
    | RequestWaiting
    | RequestStarted
    | RequestProgress
    | RequestFinished
    | RequestFailed
    | Notice
)


class Numbered(Struct, frozen=True):
    """An event with its place in this node's journal."""

    seq: int
    at_s: float
    """Unix time."""
    event: Event
