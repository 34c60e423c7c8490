"""The pipe's messages: there and back, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.engine.base import BackendInfo, Slot, SlotResult, StageInfo, StageSpec
from node.engine.messages import (
    HEADER_LIMIT_BYTES,
    PREFIX,
    Close,
    Done,
    DropStage,
    Load,
    Loaded,
    LoadGoesOn,
    Open,
    Ping,
    Pong,
    Ran,
    Ready,
    Refused,
    Reply,
    Request,
    Rewind,
    Run,
    SetThreads,
    Start,
    pack_head,
    text_of,
    unpack_prefix,
    unpack_reply,
    unpack_request,
)
from node.errors import BadWireData, EngineError
from node.wire.frames import BODY_LIMIT_BYTES, Sampling
from node.wire.records import Hardware

CPU = Hardware("cpu", "AMD EPYC", 1 << 34, 3e10, 1.5e11, 2)
TORCH = BackendInfo("torch", "torch 2.13.0, transformers 5.23.0", ("float32", "bfloat16"))

REQUESTS: list[Request] = [
    Start(1, "auto", 2),
    Start(1, "cpu", 2, "/proc/1/fd/9", CPU),
    Load(2, 7, StageSpec("/models/x", 0, 15, "bfloat16", 1 << 30)),
    DropStage(3, 7),
    Open(4, 7, "sequence", 0, 15, None, 100),
    Open(4, 7, "sequence", 0, 15, Sampling(0.5, 0.9, 40, 2**63 - 1), 100),
    Run(5, 7, (Slot("a", 0, 3), Slot("b", 17, 1, "token"), Slot("c", 4, 5, "each")), None),
    Run(6, 7, (Slot("a", 3, 1),), "float32"),
    Rewind(7, 7, "sequence", 3),
    Close(8, 7, "sequence"),
    SetThreads(9, 4),
    Ping(10),
]
REPLIES: list[Reply] = [
    Ready(1, CPU, (TORCH,)),
    LoadGoesOn(2),
    Loaded(2, StageInfo(100, 10, 5, 0.5, 576, "float32")),
    Ran(5, (SlotResult(), SlotResult((4,)), SlotResult(problem="full")), 0.25, 0.0, 100),
    Done(7),
    Pong(8, "a batch of 3 rows", 0.5),
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


def test_the_largest_batch_fits_into_a_header() -> None:
    slots = tuple(Slot(f"{number:0256}", 10**8, 8192, "each") for number in range(256))
    pack_head(Run(2**40, 2**40, slots, "bfloat16"), 0)
    pack_head(Ran(2**40, (SlotResult(tuple([2**31 - 1] * 8192)),), 1.0, 1.0, 2**60), 0)


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (REQUESTS[0], "choosing the device and measuring it"),
        (REQUESTS[2], "loading layers 0–14"),
        (REQUESTS[6], "a batch of 9 rows of 3 sequences"),
        (REQUESTS[7], "a batch of 1 row of 1 sequence"),
    ],
)
def test_a_request_is_told_to_people(request_: Request, text: str) -> None:
    assert text_of(request_) == text


@pytest.mark.parametrize("request_", REQUESTS)
def test_every_request_has_words(request_: Request) -> None:
    assert text_of(request_)
