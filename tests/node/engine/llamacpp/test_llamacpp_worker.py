"""A worker process with llama.cpp's stages: serves, and its library's crash is its own death alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio

from node.engine.base import StageSpec
from node.engine.process import open_engine
from node.errors import LoadFailed
from node.wire.frames import Sampling
from tests.node.engine.driving import KV_BYTES, Part, generate
from tests.node.engine.llamacpp.chains import Chain


def test_a_chain_in_workers_gives_the_tokens_of_the_whole_in_this_process(smollm2: Path, tiny_folder: Path) -> None:
    sampling = Sampling(temperature=1.2, seed=4)
    whole = Chain(smollm2, [0, 30])
    expected = whole.generate("x", list(range(5, 30)), 8, sampling)
    whole.drop()

    async def main() -> None:
        with trio.fail_after(300):
            async with open_engine(threads=1, device="cpu") as first, open_engine(threads=1, device="cpu") as second:
                spec = StageSpec(str(smollm2), 0, 13, "float32", KV_BYTES, backend="llamacpp")
                chain = [
                    Part(await first.load(spec), 0, 13),
                    Part(await second.load(replace(spec, start=13, end=30)), 13, 30),
                ]
                info = chain[1].stage.info
                assert (info.backend, info.quantisation) == ("llamacpp", "Q4_1")
                assert info.drift_class == chain[0].stage.info.drift_class
                assert await generate(chain, list(range(5, 30)), 8, sampling=sampling) == expected
                assert await generate(chain, list(range(5, 30)), 8, sampling=sampling, chunk=9) == expected
                with pytest.raises(LoadFailed, match="the model is in safetensors, which torch runs"):
                    await first.load(StageSpec(str(tiny_folder), 0, 6, "float32", KV_BYTES, backend="llamacpp"))
                await chain[0].stage.drop()

    trio.run(main)
