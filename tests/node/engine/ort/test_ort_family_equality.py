"""Windows, sinks, softcaps, latent attention and experts too: the same bits alone and in company, in one stage and in
several. Experts in float32 are the exception that `experts.py` names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from node.engine.base import Quantise, Slot
from node.engine.ort.stage import OrtStage
from tests.node.engine.driving import batch_of, save_tiny
from tests.node.engine.ort.driving import cut, ids_at, load_ort, open_all, rows, run_all
from tests.node.engine.ort.test_ort_families import FAMILIES

NAMES = ["gemma2", "gemma3 tied", "olmo2", "smollm3", "qwen3 tied", "mistral, sliding"]
MIXED = ["qwen3 moe", "glm4 moe, groups", "minimax m2", "gpt-oss", "deepseek v3"]
CASES: list[tuple[str, Quantise]] = [
    *((name, how) for name in NAMES for how in ("none", "int8")),  # type: ignore[misc]
    *((name, "int8") for name in MIXED),  # type: ignore[misc]
]
PROMPTS = {"a": 21, "b": 6, "c": 13}
STEPS = 5


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}, {case[1]}")
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    name, how = request.param
    folder = tmp_path_factory.mktemp("equal")
    save_tiny(FAMILIES[name](), folder)
    return folder, how


def ids_of(name: str) -> list[int]:
    return [3 + (7 * place + ord(name)) % 120 for place in range(PROMPTS[name] + STEPS)]


def alone(stages: list[OrtStage], name: str) -> np.ndarray:
    """Its prompt in one piece, then its steps."""
    open_all(stages, name)
    ids, prompt = ids_of(name), PROMPTS[name]
    given = [run_all(stages, batch_of((name, 0, ids[:prompt], "nothing"))).data]
    given += [
        run_all(stages, batch_of((name, place, [ids[place]], "nothing"))).data for place in range(prompt, len(ids))
    ]
    for stage in stages:
        stage.close(name)
    return np.concatenate([np.frombuffer(data, np.float32).reshape(-1, 64) for data in given])


def test_a_sequence_gets_the_same_bits_whoever_is_beside_it(made: tuple[Path, Any]) -> None:
    folder, how = made
    stage = load_ort(folder, 0, 5, quantise=how)
    together: dict[str, list[np.ndarray]] = {name: [] for name in PROMPTS}
    for name, prompt in PROMPTS.items():
        open_all([stage], name)
        together[name].append(rows(stage.run(batch_of((name, 0, ids_of(name)[:prompt], "nothing"))), 64))
    for step in range(STEPS):
        slots = [Slot(name, prompt + step, 1) for name, prompt in PROMPTS.items()]
        given = rows(stage.run(ids_at(*slots, ids=[ids_of(slot.sequence)[slot.position] for slot in slots])), 64)
        for slot, row in zip(slots, given, strict=True):
            together[slot.sequence].append(row[None])
    for name in PROMPTS:
        stage.close(name)
    for name in PROMPTS:
        assert np.array_equal(np.concatenate(together[name]), alone([stage], name)), name


def test_a_chain_gives_the_bits_of_one_stage(made: tuple[Path, Any]) -> None:
    folder, how = made
    whole = alone([load_ort(folder, 0, 5, quantise=how)], "a")
    assert np.array_equal(alone(cut(folder, [0, 2, 5], quantise=how), "a"), whole)
    assert np.array_equal(alone(cut(folder, [0, 1, 4, 5], quantise=how), "a"), whole)
