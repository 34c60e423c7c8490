"""What travels between hops: a checked header, and for rows the raw tensor bytes behind it.

What a sequence *is* (`Sequence`) is told apart from where it goes (`Route`), which may be told again: the attempt
counts the routes of one sequence. Rows are ordered by (session, attempt, step). A repeated step is recognised by its
number; a position may fall, where what lies behind it is to be forgotten. One frame carries steps of many sequences.

On the link a frame is: u32 header length, u32 body length (both little-endian), header (msgpack), body.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from node.wire.models import Count, Dtype
from node.wire.records import Id, Layer, make_printable

HEADER_LIMIT_BYTES = 256 * 1024
"""A `Route` along 1,000 hops is about 100 KiB."""

BODY_LIMIT_BYTES = 64 * 1024 * 1024
"""A prefill chunk of 512 tokens, 16,384 wide, in fp32 is 32 MiB."""

MOST_PARTS = 256
"""Sequences in one frame."""

MOST_BLOCKS = 4096
"""Of a prefix: 262,144 tokens."""

BlockName = Annotated[bytes, Meta(min_length=16, max_length=16)]
"""Of a block of 64 tokens and all before it, on the layers and in the arithmetic that they were computed with."""

Session = Annotated[str, Meta(min_length=32, max_length=32, pattern="^[0-9a-f]{32}$")]
REASON_LIMIT = 1024
Reason = Annotated[str, Meta(max_length=REASON_LIMIT)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
HopIndex = Annotated[int, Meta(ge=0, le=1023)]
"""A place in the chain: one node may be several hops of it."""
Attempt = Annotated[int, Meta(ge=1, le=1_000_000)]
"""Which route of a sequence, counted from 1."""
StepNumber = Annotated[int, Meta(ge=0, le=2**53)]
"""Which of the sequence's steps on this route, counted from 0: prompt chunks, then what follows them."""
Rows = Annotated[int, Meta(ge=1, le=8192)]
Want = Literal["nothing", "token", "each"]
"""What the tail shall make of a step's rows: no token, one after the last, or one after each, as where a draft is
verified."""
Buffer = bytes | bytearray | memoryview
"""A body: raw tensor bytes, or a view of some."""


Bias = Annotated[float, Meta(ge=-1000, le=1000)]


class Hop(Struct, frozen=True):
    """One stage of a route's chain: layers [start, end) on one node."""

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
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Tokens less probable than so much of the most probable one are left out; 0 keeps all."""
    typical_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """Of the rest only those nearest to the expected surprise stay, until they have that much together; 1 keeps all."""
    logit_bias: Annotated[tuple[tuple[TokenId, Bias], ...], Meta(max_length=1024)] = ()
    """Added to tokens' logits before anything else; each token once."""


class Sequence(Struct, frozen=True):
    """What a sequence is, wherever it goes."""

    session: Session
    head: Id
    weights: Annotated[str, Meta(max_length=1024)]
    """Digest and dtype of the model's weights: a range of another model is not taken for this one's."""
    max_tokens: Annotated[int, Meta(ge=1, le=100_000_000)]
    """Prompt and answer together, at most. KV room is taken as it grows."""
    prompt_tokens: Annotated[int, Meta(ge=1, le=100_000_000)]
    max_new_tokens: Annotated[int, Meta(ge=1, le=100_000_000)]
    stop_tokens: Annotated[tuple[TokenId, ...], Meta(max_length=64)]
    """The tail ends the sequence on any of these."""
    sampling: Sampling
    feed: Literal["ring", "head"] = "ring"
    """Where the first stage's next input comes from once the prompt is through: straight from the tail, or from the
    head, which may have it verify a draft."""


class Route(Struct, frozen=True, tag="route"):
    """Head to first stage, then handed from stage to stage: this is where the sequence goes from now on.

    A stage that has no KV of it opens it; one that has goes on with what it has. A higher attempt replaces a lower one.
    """

    sequence: Sequence
    attempt: Attempt
    chain: Annotated[tuple[Hop, ...], Meta(min_length=1, max_length=1024)]
    hop: HopIndex
    """The receiver's place in the chain."""
    input_tokens: Annotated[int, Meta(ge=1, le=100_000_000)]
    """Of the sequence, when it takes this route: what the head feeds. What stands behind them streams."""
    position: Count = 0
    """Of the first row that will come: keys and values from there on are to be forgotten. Above 0 only where every
    stage has kept those before it."""
    prefix: Annotated[tuple[BlockName, ...], Meta(max_length=MOST_BLOCKS)] = ()
    """Names of the blocks that it begins with, where stages may hold them: the first row comes when all have said how
    much they do."""


class HopTiming(Struct, frozen=True, array_like=True):
    """Where one hop's time went for one step. Whose it is tells its place: hops stand in the order of the chain."""

    wire_ms: float
    """From the sender's write to our read, by the clock offset that heartbeats measure."""
    queue_ms: float
    """Waiting for the engine."""
    compute_ms: float
    """Inside the engine worker; of the whole batch, where the step shared one."""
    serialise_ms: float
    """Around the worker: copying in and out, packing the frame."""

    def __post_init__(self) -> None:
        for each in (self.wire_ms, self.queue_ms, self.compute_ms, self.serialise_ms):
            if not 0 <= each <= 1e9:  # NaN is neither
                raise ValueError(f"timing: {each} ms cannot be")


Timings = Annotated[tuple[HopTiming, ...], Meta(max_length=1024)]


class StepPart(Struct, frozen=True, array_like=True):
    """One sequence's rows in a `Step`."""

    session: Session
    attempt: Attempt
    hop: HopIndex
    """The receiver's."""
    step: StepNumber
    position: Count
    """Index of the first row in the sequence. Below the end of what came before: the rest is forgotten."""
    count: Rows
    want: Want
    timings: Timings
    """Of the hops before the receiver."""
    replay: bool = False
    """The rows were steps of an answer once, and are computed one after another as they were then."""


class Step(Struct, frozen=True, tag="step"):
    """Rows of several sequences, for the next hop of each. Body: the rows of all parts in order.

    From a head to a first stage: int32 token ids, little-endian. From stage to stage: hidden states, each of `width`
    elements of `dtype`, row-major, little-endian.
    """

    parts: Annotated[tuple[StepPart, ...], Meta(min_length=1, max_length=MOST_PARTS)]
    width: Annotated[int, Meta(ge=1, le=1_000_000)]
    """1 for token ids."""
    dtype: Dtype | None
    """None: token ids."""
    sent_s: float
    """The sender's clock; the link subtracts its offset to ours."""


class SampledPart(Struct, frozen=True, array_like=True):
    """One sequence's tokens in a `Sampled`."""

    session: Session
    attempt: Attempt
    step: StepNumber
    """Of the rows that they follow from."""
    position: Count
    """Index of the first of the tokens in the sequence."""
    tokens: Annotated[tuple[TokenId, ...], Meta(min_length=1, max_length=8192)]
    """One, or one for each row where that was wanted."""
    finish: Literal["stop", "length"] | None
    timings: Timings


class Sampled(Struct, frozen=True, tag="sampled"):
    """Tail to first stage (which starts the next step at once) and to the head (which streams it)."""

    parts: Annotated[tuple[SampledPart, ...], Meta(min_length=1, max_length=MOST_PARTS)]
    sent_s: float


class Accepted(Struct, frozen=True, tag="accepted"):
    """A stage to the head: it has room for the sequence, and for so many of its rows under way at a time."""

    session: Session
    attempt: Attempt
    hop: HopIndex
    rows: Annotated[int, Meta(ge=1, le=100_000_000)]
    """The head's credit: of rows whose way through the chain it has not heard the end of."""
    held_tokens: Count = 0
    """Of the prefix that the route named: it holds their keys and values."""


class Progress(Struct, frozen=True, tag="progress"):
    """Tail to head: prompt tokens below `position` are through; lets the head send another chunk."""

    session: Session
    attempt: Attempt
    position: Count


class Probe(Struct, frozen=True, tag="probe"):
    """Head to every stage of a chain that is silent: how far are you?"""

    session: Session
    attempt: Attempt


class ProbeReply(Struct, frozen=True, tag="probe_reply"):
    """The answer to a `Probe`, one for each hop that the node is."""

    session: Session
    attempt: Attempt
    hop: HopIndex
    steps: Count
    """Done and sent on."""
    waiting: Count
    """Steps that are here and not done yet. 0, where nothing has come."""


class Close(Struct, frozen=True, tag="close"):
    """Head to a stage: free the sequence's KV, whatever of its attempts up to this one it was for. May be repeated, and
    may come before the `Route` that it belongs to."""

    session: Session
    attempt: Attempt
    reason: Reason
    keep: Annotated[tuple[BlockName, ...], Meta(max_length=MOST_BLOCKS)] = ()
    """Names of the blocks that its keys and values begin with: they may be kept for what comes later."""

    def __post_init__(self) -> None:
        make_printable(self, reason=REASON_LIMIT)


class Failed(Struct, frozen=True, tag="failed"):
    """A stage to the head: it cannot go on with this route. A stage that cannot reach the head tells its neighbours in
    the chain, who pass it on."""

    session: Session
    attempt: Attempt
    reason: Reason
    kind: Literal["lost", "link", "overloaded", "refused", "wrong", "forgotten", "unfit"] = "lost"
    """What is gone: the stage's engine or its layers; a link or a member; room; the will; trust in what the suspect
    sent; the keys and values that were to have been kept; any hope, since it asks for what no stage can do."""
    suspect: Id | None = None
    """The node that is at fault, where it is not the sender: its link is lost, or its frames cannot be."""
    other_end: Id | None = None
    """Of a link that is lost: whom the suspect cannot reach, where that is not the sender."""
    preempted: bool = False
    """It was `overloaded` in the middle: the sequence made room for another one, and can be taken up again."""

    def __post_init__(self) -> None:
        make_printable(self, reason=REASON_LIMIT)


Frame = Route | Step | Sampled | Accepted | Progress | Probe | ProbeReply | Close | Failed
