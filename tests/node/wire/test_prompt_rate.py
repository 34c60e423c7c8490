"""What a prompt takes is told by nodes that measure it, and its absence read from those that do not."""

from __future__ import annotations

import msgspec

from node.wire.parts import Status, status_of
from tests.fakes.swarms import DESK, record


def test_a_status_of_an_older_version_tells_no_prompts_time() -> None:
    status = status_of(record(DESK, prompt_row_ms=0.25), profile_seq=0, trips_seq=0)
    assert status.prompt_row_ns == 250_000
    older = msgspec.msgpack.encode(msgspec.to_builtins(status)[:-1])
    assert msgspec.msgpack.decode(older, type=Status).prompt_row_ns is None
