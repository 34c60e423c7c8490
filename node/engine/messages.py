"""What travels over the pipes between a node and its engine worker. No I/O.

One message is: u32 header length, u32 body length (both little-endian), header (msgpack), body (raw tensor bytes).
Every request carries a number, and the reply to it carries the same one: a caller that gave up waiting leaves a reply
that nobody expects, never one that another caller takes for its own.
"""

from __future__ import annotations

import struct
from typing import Annotated, Literal, assert_never

import msgspec
from msgspec import Meta, Struct

from node.engine.base import BackendInfo, DeviceChoice, Slot, SlotResult, StageInfo, StageSpec
from node.engine.shared_rows import PLACES
from node.errors import BadWireData, EngineError
from node.wire.frames import BODY_LIMIT_BYTES, MOST_BLOCKS, BlockName, Buffer, Sampling
from node.wire.layer_range import layer_range
from node.wire.models import Count, Dtype
from node.wire.records import Hardware

HEADER_LIMIT_BYTES = 256 * 1024
"""256 slots, each with a name of up to 256 bytes and some figures, or 8,192 tokens with a few bytes each."""

TEXT_LIMIT = 4000
"""Characters of an error's text."""

PREFIX = struct.Struct("<II")
"""Header length, body length."""

Number = Annotated[int, Meta(ge=0)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]


Prefix = Annotated[tuple[BlockName, ...], Meta(max_length=MOST_BLOCKS)]


class Start(Struct, frozen=True, tag="hello"):
    """The first request: choose the device and measure it."""

    number: Number
    device: DeviceChoice
    threads: Annotated[int, Meta(ge=1)]
    shared_rows: str = ""
    """Where memory lies that both see (`shared_rows`); empty: there is none."""
    hardware: Hardware | None = None
    """As an earlier worker of this node measured it: it need not be measured again."""


class Load(Struct, frozen=True, tag="load"):
    """Load a range and call it `stage` from then on."""

    number: Number
    stage: Number
    spec: StageSpec


class DropStage(Struct, frozen=True, tag="drop"):
    """Drop a stage, or give up loading it. Harmless when it is unknown."""

    number: Number
    stage: Number


class Open(Struct, frozen=True, tag="open"):
    """Begin a sequence on layers [start, end) of a stage, with KV room for so many tokens."""

    number: Number
    stage: Number
    sequence: Name
    start: Count
    end: Count
    sampling: Sampling | None
    kv_tokens: Count
    prefix: Prefix = ()


class Shared(Struct, frozen=True, array_like=True):
    """Rows that lie in memory which both see, in place of a body."""

    place: Annotated[int, Meta(ge=0, lt=PLACES)]
    size_bytes: Annotated[int, Meta(ge=0, le=BODY_LIMIT_BYTES)]
    """0 in a request with a body: the reply's rows alone may lie there."""


class Run(Struct, frozen=True, tag="run"):
    """One batch; its rows are the body, or shared."""

    number: Number
    stage: Number
    slots: tuple[Slot, ...]
    dtype: Dtype | None
    shared: Shared | None = None


class Rewind(Struct, frozen=True, tag="rewind"):
    """Forget a sequence's keys and values at a position and after it."""

    number: Number
    stage: Number
    sequence: Name
    position: Count


class Close(Struct, frozen=True, tag="close"):
    """Forget a sequence. Harmless when it is unknown."""

    number: Number
    stage: Number
    sequence: Name
    keep: Prefix = ()


class SetThreads(Struct, frozen=True, tag="threads"):
    """Use that many processor threads from the next batch on."""

    number: Number
    threads: Annotated[int, Meta(ge=1)]


class Ping(Struct, frozen=True, tag="ping"):
    """Are you there? The thread that reads answers, whatever the one that computes is at."""

    number: Number


class Ready(Struct, frozen=True, tag="ready"):
    """Reply to `Start`."""

    number: Number
    hardware: Hardware
    backends: tuple[BackendInfo, ...]
    shares_rows: bool = False
    """It has the memory that `Start` named."""


class LoadGoesOn(Struct, frozen=True, tag="loading"):
    """Told while a load is under way, some times a second at most. The reply to the load is still to come."""

    number: Number
    share: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    """Of its bytes, that is there."""


class Loaded(Struct, frozen=True, tag="loaded"):
    """Reply to `Load`."""

    number: Number
    info: StageInfo


class Ran(Struct, frozen=True, tag="ran"):
    """Reply to `Run`; the stage's output is the body, or shared, at the request's place."""

    number: Number
    slots: tuple[SlotResult, ...]
    compute_ms: float
    head_ms: float
    free_kv_tokens: int
    shared_bytes: Annotated[int, Meta(ge=0, le=BODY_LIMIT_BYTES)] = 0


class Opened(Struct, frozen=True, tag="opened"):
    """Reply to `Open`."""

    number: Number
    held_tokens: Count
    """That the sequence begins with."""


class Done(Struct, frozen=True, tag="done"):
    """Reply to requests that ask for nothing back."""

    number: Number


class Pong(Struct, frozen=True, tag="pong"):
    """Reply to `Ping`."""

    number: Number
    running: str
    """What the thread that computes is at; empty where it waits for requests."""
    since_s: float
    """How long."""


class Refused(Struct, frozen=True, tag="refused"):
    """Reply to any request that could not be served; becomes the error of its kind on the node's side."""

    number: Number
    kind: Literal["engine", "load", "kv", "long"]
    text: str
    layers: str = ""
    """For `load`."""
    needed_tokens: int = 0
    """For `kv` and `long`."""
    free_tokens: int = 0
    """For `kv`; for `long` the most that there may be."""


Request = Start | Load | DropStage | Open | Run | Rewind | Close | SetThreads | Ping
Reply = Ready | LoadGoesOn | Loaded | Opened | Ran | Done | Pong | Refused


def text_of(request: Request) -> str:
    """What a request has done, for people: `a batch of 3 rows of 2 sequences`."""
    match request:
        case Start():
            return "choosing the device and measuring it"
        case Load(spec=spec):
            return f"loading layers {layer_range(spec.start, spec.end)}"
        case Run(slots=slots):
            rows = sum(slot.count for slot in slots)
            return f"a batch of {rows} row{'s'[: rows != 1]} of {len(slots)} sequence{'s'[: len(slots) != 1]}"
        case Open():
            return "opening a sequence"
        case Rewind():
            return "rewinding a sequence"
        case Close():
            return "closing a sequence"
        case DropStage():
            return "dropping a stage"
        case SetThreads():
            return "changing the number of threads"
        case Ping():
            return "answering a ping"
        case _:
            assert_never(request)


_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def pack_head(message: Request | Reply, body_bytes: int) -> bytes:
    """Prefix and header; `body_bytes` of body must follow.

    Raises:
        EngineError: the other side would refuse it for its size.
    """
    header = _encoder.encode(message)
    if len(header) > HEADER_LIMIT_BYTES or body_bytes > BODY_LIMIT_BYTES:
        raise EngineError(
            f"a message of {len(header)} + {body_bytes} bytes for the engine's pipe, at most {HEADER_LIMIT_BYTES} + "
            f"{BODY_LIMIT_BYTES} are allowed; use shorter prefill chunks"
        )
    return PREFIX.pack(len(header), body_bytes) + header


def unpack_prefix(prefix: Buffer) -> tuple[int, int]:
    """Header and body length.

    Raises:
        BadWireData: longer than any message of ours: this is not our protocol.
    """
    header_bytes, body_bytes = PREFIX.unpack(prefix)
    if header_bytes > HEADER_LIMIT_BYTES or body_bytes > BODY_LIMIT_BYTES:
        raise BadWireData("engine pipe", f"a header of {header_bytes} bytes and a body of {body_bytes}: not a message")
    return header_bytes, body_bytes


def unpack_request(header: Buffer) -> Request:
    """A request out of its header. Raises BadWireData."""
    try:
        return _requests.decode(header)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadWireData("engine pipe, to the worker", str(error)) from error


def unpack_reply(header: Buffer) -> Reply:
    """A reply out of its header. Raises BadWireData."""
    try:
        return _replies.decode(header)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadWireData("engine pipe, to the node", str(error)) from error
