"""Ranges in workers of their own: one for each, under another interpreter, which end with their range."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from node.engine.base import StageSpec
from node.engine.environments import EngineWithEnvironments, with_environments
from node.engine.process import open_engine
from node.errors import LoadFailed
from tests.node.engine.driving import KV_BYTES, Part, generate, save_tiny, tiny_llama


@asynccontextmanager
async def engine_with(**pythons: str) -> AsyncIterator[EngineWithEnvironments]:
    async with open_engine(threads=1, device="cpu") as own, with_environments(own, pythons, "cpu", 1) as engine:
        yield engine


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> StageSpec:
    folder = tmp_path_factory.mktemp("apart")
    save_tiny(tiny_llama(), folder)
    return StageSpec(str(folder), 0, 6, "float32", KV_BYTES, "torch")


def pids(engine: EngineWithEnvironments) -> set[int]:
    return {other.pid for other in engine._others}


def test_a_range_apart_answers_as_one_in_the_first_worker(spec: StageSpec) -> None:
    async def main() -> None:
        async with engine_with(torch=sys.executable) as engine:
            first, second = replace(spec, end=3), replace(spec, start=3)
            chain = [Part(await engine.load(part), part.start, part.end) for part in (first, second)]
            assert len(pids(engine)) == 2
            apart = await generate(chain, [3, 4, 5], 6)
            await engine.set_threads(2)
            for part in chain:
                await part.stage.drop()
            assert not pids(engine)
            assert not engine.died.is_set()
        async with engine_with() as engine:
            stage = await engine.load(spec)
            assert not pids(engine)
            assert await generate([Part(stage, 0, 6)], [3, 4, 5], 6) == apart

    trio.run(main)


def test_the_death_of_one_is_the_engines(spec: StageSpec) -> None:
    async def main() -> None:
        async with engine_with(torch=sys.executable) as engine:
            await engine.load(spec)
            (pid,) = pids(engine)
            os.kill(pid, signal.SIGKILL)
            with trio.fail_after(30):
                await engine.died.wait()
            assert engine.death is not None

    trio.run(main)


def test_what_cannot_be_loaded_there_is_told_and_leaves_no_worker(spec: StageSpec, tmp_path: Path) -> None:
    async def main() -> None:
        async with engine_with(torch=sys.executable, mlx=str(tmp_path / "python")) as engine:
            with pytest.raises(LoadFailed, match="the model has 6 layers"):
                await engine.load(replace(spec, end=9))
            with pytest.raises(LoadFailed, match="No such file"):
                await engine.load(replace(spec, backend="mlx"))
            assert not engine.died.is_set()
            assert not pids(engine)
            assert (await engine.load(replace(spec, end=2))).info.backend == "torch"

    trio.run(main)
