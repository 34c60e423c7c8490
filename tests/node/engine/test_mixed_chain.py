"""Stages of unlike backends in one chain: their rows mean the same, in type, order and place."""

from __future__ import annotations

from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import pytest

from node.engine.backend import BACKENDS
from node.engine.base import BackendName, Batch, Slot, StageSpec
from node.wire.frames import Sampling
from node.wire.models import Dtype
from tests.node.engine.driving import KV_BYTES, generate_here, load_here, pack_ids, save_tiny
from tests.node.engine.test_stage_families import FAMILIES

CUTS = [0, 2, 4, 6]
PROMPT, COUNT = [3, 41, 5, 92, 17, 60, 33, 8, 19, 71, 2, 88], 6
ORDERS = list(permutations(("torch", "ort", "mlx")))


@pytest.fixture(scope="module", params=["llama", "qwen3 tied", "gemma3 tied"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    save_tiny(FAMILIES[request.param](), folder)
    return folder


def load(folder: Path, backend: BackendName, start: int, end: int) -> Any:
    """A range on a backend, in this process; in float32 whatever it prefers."""
    spec = StageSpec(str(folder), start, end, "float32", KV_BYTES, backend, "none")
    progress = BACKENDS[backend].open("cpu").load(spec)
    while True:
        try:
            next(progress)
        except StopIteration as finished:
            return finished.value


@pytest.mark.parametrize("order", ORDERS, ids=["-".join(order) for order in ORDERS])
def test_a_chain_of_unlike_stages_gives_the_tokens_of_one(folder: Path, order: tuple[BackendName, ...]) -> None:
    """A prompt, then steps."""
    for name in order:
        if not BACKENDS[name].is_installed:
            pytest.skip(f"{name} is not installed: {BACKENDS[name].how_to_install}")
    expected = generate_here([load_here(folder, 0, 6)], PROMPT, COUNT)
    chain = [load(folder, name, start, end) for name, (start, end) in zip(order, pairwise(CUTS), strict=True)]
    for stage, (start, end) in zip(chain, pairwise(CUTS), strict=True):
        stage.open("s", start, end, Sampling() if end == 6 else None, len(PROMPT) + COUNT)
    answer: list[int] = []
    waiting, position = PROMPT, 0
    while len(answer) < COUNT:
        data: Any = pack_ids(waiting)
        dtype: Dtype | None = None
        for stage in chain:
            want = "token" if stage is chain[-1] else "nothing"
            result = stage.run(Batch((Slot("s", position, len(waiting), want),), data, dtype))  # type: ignore[arg-type]
            assert result.slots[0].problem == ""
            data, dtype = result.data, stage.info.dtype
        position += len(waiting)
        answer += result.slots[0].tokens
        waiting = [answer[-1]]
    assert answer == expected
