"""The pipe's messages: there and back, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.engine.base import StageInfo, StageSpec
from node.engine.messages import (
    HEADER_LIMIT_BYTES,
    PREFIX,
    CloseStage,
    Done,
    Free,
    Load,
    Loaded,
    Ran,
    Ready,
    Refused,
    Reply,
    Request,
    Reserve,
    Run,
    SetThreads,
    Start,
    pack_head,
    unpack_prefix,
    unpack_reply,
    unpack_request,
)
from node.errors import BadWireData, EngineError
from node.wire.frames import BODY_LIMIT_BYTES, Sampling
from node.wire.records import Hardware

REQUESTS: list[Request] = [
    Start(1, "auto", 2),
    Load(2, 7, StageSpec("/models/x", 0, 15, "bfloat16", 1 << 30)),
    CloseStage(3, 7),
    Reserve(4, 7, "session", 100),
    Run(5, 7, "session", 0, 3, None, None),
    Run(6, 7, "session", 3, 1, "float32", Sampling(0.5, 0.9, 40, 2**63 - 1)),
    Free(7, 7, "session"),
    SetThreads(8, 4),
]
REPLIES: list[Reply] = [
    Ready(1, Hardware("cpu", "AMD EPYC", 1 << 34, 3e10, 1.5e11, 2)),
    Loaded(2, StageInfo(100, 10, 5, 0.5, 576, "float32")),
    Ran(5, None, 0.25, 0.0),
    Ran(6, 17, 12.5, 1.5),
    Done(7),
    Refused(9, "kv", "full", needed_tokens=10, free_tokens=3),
]


def header_of(packed: bytes, body_bytes: int) -> bytes:
    header_bytes, announced = unpack_prefix(packed[: PREFIX.size])
    assert announced == body_bytes
    assert len(packed) == PREFIX.size + header_bytes
    return packed[PREFIX.size :]


@pytest.mark.parametrize("request_", REQUESTS)
def test_requests_arrive_as_they_left(request_: Request) -> None:
    assert unpack_request(header_of(pack_head(request_, 12), 12)) == request_


@pytest.mark.parametrize("reply", REPLIES)
def test_replies_arrive_as_they_left(reply: Reply) -> None:
    assert unpack_reply(header_of(pack_head(reply, 0), 0)) == reply


@given(st.binary(max_size=200))
def test_garbage_is_bad_data_and_nothing_worse(data: bytes) -> None:
    for unpack in (unpack_request, unpack_reply):
        try:
            unpack(data)
        except BadWireData:
            continue


def test_sizes_are_bounded_on_both_sides() -> None:
    with pytest.raises(EngineError, match="shorter prefill chunks"):
        pack_head(Done(1), BODY_LIMIT_BYTES + 1)
    for header_bytes, body_bytes in [(HEADER_LIMIT_BYTES + 1, 0), (1, BODY_LIMIT_BYTES + 1)]:
        with pytest.raises(BadWireData, match="not a message"):
            unpack_prefix(PREFIX.pack(header_bytes, body_bytes))
