"""What travels between hops: a checked header, and for activations the raw tensor bytes behind it.

Every frame of a session carries (session, epoch, position), so that a repeated frame is recognised and an out-of-order
one refused. On the link a frame is: u32 header length, u32 body length (both little-endian), header (msgpack), body.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from node.wire.models import Count, Dtype
from node.wire.records import Id, Layer, Milliseconds

HEADER_LIMIT_BYTES = 256 * 1024
"""An `Open` along 1,000 hops is about 100 KiB."""

BODY_LIMIT_BYTES = 64 * 1024 * 1024
"""A prefill chunk of 512 tokens, 16,384 wide, in fp32 is 32 MiB."""

Session = Annotated[str, Meta(min_length=32, max_length=32, pattern="^[0-9a-f]{32}$")]
Reason = Annotated[str, Meta(max_length=1024)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
HopIndex = Annotated[int, Meta(ge=0, le=1023)]
"""The receiver's place in the chain: one node may be several hops of it."""


class Hop(Struct, frozen=True):
    """One stage of a session's chain: layers [start, end) on one node."""

    node_id: Id
    start: Layer
    end: Layer


class Sampling(Struct, frozen=True):
    """How the tail turns logits into a token. Random numbers depend on (seed, position) alone."""

    temperature: Annotated[float, Meta(ge=0, le=100)] = 0.0
    """0 is greedy."""
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    """0 keeps all."""
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0


class HopTiming(Struct, frozen=True):
    """Where one hop's time went for one step."""

    node_id: Id
    start: Layer
    end: Layer
    wire_ms: Milliseconds
    """From the sender's write to our read, by the clock offset that heartbeats measure."""
    queue_ms: Milliseconds
    """Waiting for the engine."""
    compute_ms: Milliseconds
    """Inside the engine worker."""
    serialise_ms: Milliseconds
    """Around the worker: copying in and out, packing the frame."""


Timings = Annotated[tuple[HopTiming, ...], Meta(max_length=1024)]


class Open(Struct, frozen=True, tag="open"):
    """Head to first stage, then handed from stage to stage: a sequence begins, reserve its KV."""

    session: Session
    epoch: Count
    head: Id
    chain: Annotated[tuple[Hop, ...], Meta(min_length=1, max_length=1024)]
    hop: HopIndex
    weights: Annotated[str, Meta(max_length=1024)]
    """Digest and dtype of the model's weights: a range of another model is not taken for this one's."""
    max_tokens: Annotated[int, Meta(ge=1, le=100_000_000)]
    """Prompt and answer together: the KV to reserve."""
    max_new_tokens: Annotated[int, Meta(ge=1, le=100_000_000)]
    stop_tokens: Annotated[tuple[TokenId, ...], Meta(max_length=64)]
    """The tail ends the sequence on any of these."""
    sampling: Sampling


class Tokens(Struct, frozen=True, tag="tokens"):
    """Head to first stage: a chunk of the prompt. Body: int32 token ids, little-endian."""

    session: Session
    epoch: Count
    position: Count
    """Index of the first token in the sequence."""
    count: Annotated[int, Meta(ge=1, le=8192)]
    final: bool
    """The prompt's last chunk: the tail samples after it."""
    sent_s: float
    """The sender's clock; the link subtracts its offset to ours."""


class Activations(Struct, frozen=True, tag="activations"):
    """Stage to next stage. Body: `count` rows of `width` elements of `dtype`, row-major, little-endian."""

    session: Session
    epoch: Count
    position: Count
    count: Annotated[int, Meta(ge=1, le=8192)]
    width: Annotated[int, Meta(ge=1, le=1_000_000)]
    dtype: Dtype
    hop: HopIndex
    final: bool
    sent_s: float
    timings: Timings


class Sampled(Struct, frozen=True, tag="sampled"):
    """Tail to first stage (which starts the next step at once) and to the head (which streams it)."""

    session: Session
    epoch: Count
    position: Count
    """Index of this token in the sequence."""
    token: TokenId
    finish: Literal["stop", "length"] | None
    sent_s: float
    timings: Timings


class Progress(Struct, frozen=True, tag="progress"):
    """Tail to head: prompt tokens below `position` are through; lets the head send another chunk."""

    session: Session
    epoch: Count
    position: Count


class Close(Struct, frozen=True, tag="close"):
    """Head to every stage: free the sequence's KV. Harmless when repeated."""

    session: Session
    epoch: Count
    reason: Reason


class Failed(Struct, frozen=True, tag="failed"):
    """A stage to the head: it cannot go on, and has freed the sequence."""

    session: Session
    epoch: Count
    reason: Reason
    kind: Literal["lost", "overloaded", "refused"] = "lost"
    unreachable: Id | None = None
    """The node of the chain that the stage has lost, where that is why: that one is to be gone around."""


Frame = Open | Tokens | Activations | Sampled | Progress | Close | Failed
