"""The toy engine is itself tested: other rooms' tests rest on it."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
import trio

from node.engine.base import Batch, Engine, Slot, Stage, StageSpec
from node.errors import EngineError, OutOfKV, WorkerDied
from node.wire.frames import Buffer, Sampling, Want
from node.wire.models import Dtype
from tests.fakes.engine import FakeEngine, expected_tokens

PROMPT = [5, 200, 17, 4]


async def generate(
    engine: Engine, cuts: list[int], count: int, *, dtype: Dtype = "float32", chunk: int = 3, session: str = "s"
) -> list[int]:
    parts: list[tuple[Stage, int, int]] = [
        (await engine.load(StageSpec("toy", start, end, dtype, 1 << 16)), start, end) for start, end in pairwise(cuts)
    ]
    for stage, start, end in parts:
        await stage.open(session, start, end, Sampling(), len(PROMPT) + count)
    answer: list[int] = []
    waiting, position = list(PROMPT), 0
    while len(answer) < count:
        now, waiting = waiting[:chunk], waiting[chunk:]
        data: Buffer = struct.pack(f"<{len(now)}i", *now)
        kind: Dtype | None = None
        tokens: tuple[int, ...] = ()
        for stage, _, end in parts:
            want: Want = "token" if end == cuts[-1] and not waiting else "nothing"
            result = await stage.run(Batch((Slot(session, position, len(now), want),), data, kind))
            assert result.slots[0].problem == ""
            data, kind, tokens = result.data, dtype, result.slots[0].tokens
        position += len(now)
        if not waiting:
            answer += tokens
            waiting = list(tokens)
    return answer


def ids(*slots: tuple[str, int, list[int], Want]) -> Batch:
    rows = [token for _, _, tokens, _ in slots for token in tokens]
    named = tuple(Slot(name, position, len(tokens), want) for name, position, tokens, want in slots)
    return Batch(named, struct.pack(f"<{len(rows)}i", *rows), None)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("cuts", [[0, 6], [0, 2, 6], [0, 1, 5, 6]])
@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_every_split_gives_the_expected_tokens(cuts: list[int], dtype: Dtype, chunk: int) -> None:
    answer = trio.run(lambda: generate(FakeEngine(layers=6), cuts, 5, dtype=dtype, chunk=chunk))
    assert answer == expected_tokens(PROMPT, 6, 5)


def test_a_skipped_exchanged_or_missing_layer_changes_the_tokens() -> None:
    right = expected_tokens(PROMPT, 6, 5)
    assert right != expected_tokens(PROMPT, 5, 5)
    assert right != expected_tokens(PROMPT[1:], 6, 5)
    assert right != expected_tokens(PROMPT[::-1], 6, 5)
    assert right != expected_tokens(PROMPT, 6, 5, sampling=Sampling(temperature=1.0, seed=3))


def test_it_verifies_drafts_and_goes_back_beside_a_neighbour() -> None:
    right = expected_tokens(PROMPT, 6, 5)

    async def main() -> None:
        stage = await FakeEngine(layers=6).load(StageSpec("toy", 0, 6, "float32", 1 << 16))
        for name in ("a", "b"):
            await stage.open(name, 0, 6, Sampling(), 30)
        both = await stage.run(ids(("a", 0, PROMPT, "token"), ("b", 0, PROMPT[:2], "nothing")))
        assert [slot.tokens for slot in both.slots] == [(right[0],), ()]
        draft = [right[0], right[1], 249, 248]
        verified = await stage.run(ids(("b", 2, PROMPT[2:], "token"), ("a", 4, draft, "each")))
        assert verified.slots[0].tokens == (right[0],)
        assert verified.slots[1].tokens[:2] == tuple(right[1:3])
        await stage.rewind("a", 6)
        again = await stage.run(ids(("a", 6, right[2:4], "each")))
        assert again.slots[0].tokens == tuple(right[3:5])

    trio.run(main)


def test_it_fails_on_demand_and_refuses_what_a_real_stage_refuses() -> None:
    async def main() -> None:
        engine = FakeEngine(layers=2)
        stage = await engine.load(StageSpec("toy", 0, 1, "float32", kv_bytes=80))
        with pytest.raises(OutOfKV):
            await stage.open("a", 0, 1, None, 11)
        with pytest.raises(EngineError, match="layers"):
            await stage.open("a", 0, 2, None, 1)
        await stage.open("a", 0, 1, None, 10)
        refused = await stage.run(ids(("a", 1, [0], "nothing")))
        assert "position" in refused.slots[0].problem
        await stage.rewind("a", 0)
        engine.refuse_next()
        with pytest.raises(EngineError, match="on demand"):
            await stage.run(ids(("a", 0, [0], "nothing")))
        await stage.run(ids(("a", 0, [0], "nothing")))
        assert engine.live_sessions == 1
        await stage.close("a")
        await stage.close("a")
        assert engine.live_sessions == 0
        engine.die()
        with pytest.raises(WorkerDied):
            await stage.open("b", 0, 1, None, 1)

    trio.run(main)
