"""What to generate, and what comes of it, step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from node.errors import RequestError
from node.wire.frames import Hop, HopTiming, Sampling
from node.wire.ids import NodeId


@dataclass(frozen=True, slots=True)
class Generation:
    """What to generate."""

    prompt: tuple[int, ...]
    """Token ids; at least one."""
    max_new_tokens: int
    stop_tokens: tuple[int, ...]
    sampling: Sampling
    weights: str = ""
    """Digest and dtype of the model's weights, as in the plan."""
    feed: Literal["ring", "head"] = "ring"
    """Where the next input comes from: straight from the tail, which is one hop shorter, or from the head."""

    @property
    def max_tokens(self) -> int:
        """That it may come to."""
        return len(self.prompt) + self.max_new_tokens


@dataclass(frozen=True, slots=True)
class TokenStep:
    """One token, and where its time went."""

    token: int
    position: int
    finish: Literal["stop", "length"] | None
    chain: tuple[Hop, ...]
    """The hops that it came along: another route may take over in the middle of an answer."""
    hops: tuple[HopTiming, ...]
    """One for each of them."""
    return_ms: float
    """From tail to head."""


Pair = frozenset[str]
"""Two nodes; one, where a node is told to have failed with itself."""

FailureKind = Literal["lost", "link", "refused", "full", "preempted", "silent", "wrong", "forgotten", "unfit"]
"""How a node ended a route: it is gone or its engine is; the link to it broke; it would not take it; it had no room; it
needed the room for another one; it said nothing any more; what it sent cannot be; it no longer had what it was to have
kept; it says that no node can do what is asked."""


@dataclass(frozen=True, slots=True)
class NodeFailure:
    """A node that ended a route, by its own word, by going away, or by its silence."""

    node_id: NodeId
    kind: FailureKind
    error: RequestError
    pair: Pair | None = None
    """The two nodes between which it failed, where neither alone is known to be at fault: a link broke, one says that
    the other's frames cannot be, or each says that it has done its part."""
