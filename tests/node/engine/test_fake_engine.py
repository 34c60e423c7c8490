"""The toy engine is itself tested: other rooms' tests rest on it."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
import trio

from node.engine.base import Buffer, Engine, Stage, StageSpec, Step
from node.errors import EngineError, OutOfKV, WorkerDied
from node.wire.frames import Sampling
from node.wire.models import Dtype
from tests.fakes.engine import FakeEngine, expected_tokens

PROMPT = [5, 200, 17, 4]


async def generate(
    engine: Engine, cuts: list[int], count: int, *, dtype: Dtype = "float32", chunk: int = 3, session: str = "s"
) -> list[int]:
    stages: list[Stage] = [
        await engine.load(StageSpec("toy", start, end, dtype, 1 << 16)) for start, end in pairwise(cuts)
    ]
    for stage in stages:
        await stage.reserve(session, len(PROMPT) + count)
    answer: list[int] = []
    waiting, position = list(PROMPT), 0
    while len(answer) < count:
        part, waiting = waiting[:chunk], waiting[chunk:]
        data: Buffer = struct.pack(f"<{len(part)}i", *part)
        kind: Dtype | None = None
        result = None
        for stage in stages:
            sampling = Sampling() if stage is stages[-1] and not waiting else None
            result = await stage.run(Step(session, position, len(part), data, kind, sampling))
            data, kind = result.data, dtype
        position += len(part)
        if not waiting:
            assert result is not None
            assert result.token is not None
            answer.append(result.token)
            waiting = [result.token]
    return answer


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


def test_it_fails_on_demand_and_refuses_what_a_real_stage_refuses() -> None:
    async def main() -> None:
        engine = FakeEngine(layers=2)
        stage = await engine.load(StageSpec("toy", 0, 1, "float32", kv_bytes=80))
        with pytest.raises(OutOfKV):
            await stage.reserve("a", 11)
        await stage.reserve("a", 10)
        with pytest.raises(EngineError, match="position"):
            await stage.run(Step("a", 1, 1, bytes(4), None, None))
        engine.refuse_next()
        with pytest.raises(EngineError, match="on demand"):
            await stage.run(Step("a", 0, 1, bytes(4), None, None))
        await stage.run(Step("a", 0, 1, bytes(4), None, None))
        assert engine.live_sessions == 1
        await stage.free("a")
        await stage.free("a")
        assert engine.live_sessions == 0
        engine.die()
        with pytest.raises(WorkerDied):
            await stage.reserve("b", 1)

    trio.run(main)
