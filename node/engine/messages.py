"""What travels over the pipes between a node and its engine worker. No I/O.

One message is: u32 header length, u32 body length (both little-endian), header (msgpack), body (raw tensor bytes).
Every request carries a number, and the reply to it carries the same one: a caller that gave up waiting leaves a reply
that nobody expects, never one that another caller takes for its own.
"""

from __future__ import annotations

import struct
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from node.engine.base import Buffer, StageInfo, StageSpec
from node.errors import BadWireData, EngineError
from node.wire.frames import BODY_LIMIT_BYTES, Sampling
from node.wire.models import Count, Dtype
from node.wire.records import Hardware

HEADER_LIMIT_BYTES = 64 * 1024
"""The longest header is an error with its text, a few KiB."""

TEXT_LIMIT = 4000
"""Characters of an error's text."""

PREFIX = struct.Struct("<II")
"""Header length, body length."""

DeviceChoice = Literal["auto", "cpu", "cuda", "mps"]
Number = Annotated[int, Meta(ge=0)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]


class Start(Struct, frozen=True, tag="hello"):
    """The first request: open the backend and measure the hardware."""

    number: Number
    device: DeviceChoice
    threads: Annotated[int, Meta(ge=1)]


class Load(Struct, frozen=True, tag="load"):
    """Load a range and call it `stage` from then on."""

    number: Number
    stage: Number
    spec: StageSpec


class CloseStage(Struct, frozen=True, tag="close"):
    """Drop a stage, or give up loading it. Harmless when it is unknown."""

    number: Number
    stage: Number


class Reserve(Struct, frozen=True, tag="reserve"):
    """Set KV room aside for a new sequence."""

    number: Number
    stage: Number
    session: Name
    tokens: Count


class Run(Struct, frozen=True, tag="run"):
    """One step; its tensor is the body."""

    number: Number
    stage: Number
    session: Name
    position: Count
    count: Count
    dtype: Dtype | None
    sampling: Sampling | None


class Free(Struct, frozen=True, tag="free"):
    """Forget a sequence. Harmless when it is unknown."""

    number: Number
    stage: Number
    session: Name


class SetThreads(Struct, frozen=True, tag="threads"):
    """Use that many processor threads from the next step on."""

    number: Number
    threads: Annotated[int, Meta(ge=1)]


class Ready(Struct, frozen=True, tag="ready"):
    """Reply to `Start`."""

    number: Number
    hardware: Hardware


class Loaded(Struct, frozen=True, tag="loaded"):
    """Reply to `Load`."""

    number: Number
    info: StageInfo


class Ran(Struct, frozen=True, tag="ran"):
    """Reply to `Run`; the stage's output is the body."""

    number: Number
    token: int | None
    compute_ms: float
    head_ms: float


class Done(Struct, frozen=True, tag="done"):
    """Reply to requests that ask for nothing back."""

    number: Number


class Refused(Struct, frozen=True, tag="refused"):
    """Reply to any request that could not be served; becomes the error of its kind on the node's side."""

    number: Number
    kind: Literal["engine", "load", "kv"]
    text: str
    layers: str = ""
    """For `load`."""
    needed_tokens: int = 0
    """For `kv`."""
    free_tokens: int = 0
    """For `kv`."""


Request = Start | Load | CloseStage | Reserve | Run | Free | SetThreads
Reply = Ready | Loaded | Ran | Done | Refused

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
