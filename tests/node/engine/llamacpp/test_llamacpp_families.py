"""Parts of tiny random models of many families against the whole model: the same bits, whatever the cut."""

from __future__ import annotations

from collections.abc import Generator
from itertools import pairwise

import numpy as np
import pytest

from node.engine.llamacpp.context import Context, Piece
from node.engine.llamacpp.cutting import WholeModel, cut, refuse_range
from node.engine.llamacpp.families import FAMILIES
from node.engine.llamacpp.library import open_library
from node.engine.llamacpp.model import Model, Placement, load_part, load_whole
from node.engine.llamacpp.reading import Embedding, embedding_scale, read_whole
from node.engine.llamacpp.streams import Shape
from node.errors import LoadFailed
from tests.node.engine.llamacpp.headers import whole_of
from tests.node.engine.llamacpp.tiny_models import EXPERTS, LATENT, Value, save_tiny

WINDOW: dict[str, Value] = {"attention.sliding_window": 16}
LINEAR: dict[str, Value] = {
    "ssm.inner_size": 64,
    "ssm.conv_kernel": 4,
    "ssm.state_size": 16,
    "ssm.time_step_rank": 4,
    "ssm.group_count": 2,
    "full_attention_interval": 3,
}
SECTIONS: dict[str, Value] = {"rope.dimension_sections": (2, 2, 2, 2)}
SCALES: dict[str, Value] = {"logit_scale": 2.0, "residual_scale": 0.5, "embedding_scale": 3.0, "attention.scale": 0.1}

CASES: dict[str, tuple[str, dict[str, Value]]] = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "gemma2": ("gemma2", {**WINDOW, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}),
    "gemma3": ("gemma3", WINDOW),
    "gemma3, its pattern as a number": ("gemma3", {**WINDOW, "attention.sliding_window_pattern": 3}),
    "gemma3, its pattern as a list": (
        "gemma3",
        {**WINDOW, "attention.sliding_window_pattern": (True, False, True, True, False, True)},
    ),
    "phi3": ("phi3", {}),
    "qwen3moe": ("qwen3moe", EXPERTS),
    "gpt-oss": ("gpt-oss", {**EXPERTS, **WINDOW}),
    "deepseek2": ("deepseek2", {**EXPERTS, **LATENT, "leading_dense_block_count": 2}),
    "deepseek2 without a latent query": (
        "deepseek2",
        {**EXPERTS, **LATENT, "attention.q_lora_rank": 0, "leading_dense_block_count": 1},
    ),
    "glm4moe": ("glm4moe", {**EXPERTS, "leading_dense_block_count": 1}),
    "minimax-m2": ("minimax-m2", EXPERTS),
    "olmo2 with windows": ("olmo2", WINDOW),
    "cohere2": ("cohere2", {**WINDOW, "logit_scale": 0.5}),
    "granite": ("granite", SCALES),
    "qwen2vl": ("qwen2vl", SECTIONS),
    "qwen3next": ("qwen3next", {**EXPERTS, **LINEAR}),
    "qwen35": ("qwen35", {**LINEAR, **SECTIONS}),
}
SHAPE = Shape(2, 256)
IDS = np.random.default_rng(0).integers(3, 128, 40).astype(np.int32)
PROMPT = 37


class Part:
    """A model and a context on it."""

    def __init__(self, model: Model, *, hidden: bool, enter: str = "") -> None:
        self.model = model
        self.context = Context(open_library(), model, SHAPE, 4, 1, hidden=hidden, enter=enter)

    def free(self) -> None:
        self.context.free()
        self.model.free()


@pytest.fixture(scope="module", params=CASES)
def whole(request: pytest.FixtureRequest, library: None, tmp_path_factory: pytest.TempPathFactory) -> WholeModel:
    architecture, changes = CASES[request.param]
    folder = tmp_path_factory.mktemp("family")
    save_tiny(folder, architecture, **{key.replace(".", "__"): value for key, value in changes.items()})
    found = read_whole(folder)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def expected(whole: WholeModel) -> list[np.ndarray]:
    """Logits of the whole model after a prompt longer than the windows, and after each of some decode steps."""
    part = Part(finished(load_whole(open_library(), whole, Placement(), "all")), hidden=False)
    logits = [part.context.run(ids, [piece]).copy() for ids, piece in steps()]
    part.free()
    assert logits[0].std() > 0.1
    return logits


def steps() -> list[tuple[np.ndarray, Piece]]:
    prompt = (IDS[:PROMPT], Piece(0, 0, PROMPT, 1))
    return [prompt, *((IDS[at : at + 1], Piece(0, at, 1, 1)) for at in range(PROMPT, len(IDS)))]


@pytest.mark.parametrize("cuts", [[0, 3, 6], [0, 1, 4, 6], [0, 2, 5, 6], [0, 1, 2, 3, 4, 5, 6]], ids=str)
def test_parts_give_the_bits_of_the_whole_model(whole: WholeModel, expected: list[np.ndarray], cuts: list[int]) -> None:
    family = FAMILIES[whole.architecture]
    parts: list[Part] = []
    try:
        for start, end in pairwise(cuts):
            if why := refusal(whole.architecture, start, end):
                with pytest.raises(LoadFailed, match=why):
                    refuse_range(whole, start, end)
                return
            refuse_range(whole, start, end)
            model = load_now(whole, start, end)
            parts.append(Part(model, hidden=end < 6, enter=family.rows_enter_at if start else ""))
        embedding = Embedding(whole, embedding_scale(whole, family.scaled_embedding))
        for (ids, piece), logits in zip(steps(), expected, strict=True):
            rows = embedding.rows(ids)
            for part in parts:
                rows = part.context.run(rows, [piece])
            assert np.array_equal(rows, logits)
    finally:
        for part in parts:
            part.free()


def refusal(architecture: str, start: int, end: int) -> str:
    """Why some parts of the cases above cannot be."""
    if architecture in ("qwen3next", "qwen35") and end - start < 3:
        return "has at least 3 layers"
    return "without a window" if (architecture, start, end) == ("cohere2", 3, 4) else ""


def load_now(whole: WholeModel, start: int, end: int) -> Model:
    return finished(load_part(open_library(), cut(whole, start, end), Placement(), f"{start} to {end}"))


def finished(progress: Generator[None, None, Model]) -> Model:
    """What a load comes to."""
    while True:
        try:
            next(progress)
        except StopIteration as end:
            model: Model = end.value
            return model


@pytest.mark.parametrize(
    ("architecture", "changes", "layers", "match"),
    [
        ("smollm3", {}, (2, 6), "must begin at a multiple of 4 layers"),
        ("cohere2", {**WINDOW, "logit_scale": 0.5}, (3, 4), "no part of a cohere2 model without a window"),
        ("qwen3next", {**EXPERTS, **LINEAR}, (0, 2), "has at least 3 layers"),
        ("gpt2", {}, (0, 3), "gpt2 models can only be held whole here; assign all layers"),
        ("llama", {}, (4, 9), "the model has 6 layers"),
        ("gemma2", {**WINDOW, "block_count": 46}, (0, 3), "this one can only be held whole"),
        ("deepseek2", {**EXPERTS, **LATENT, "block_count": 30}, (0, 27), "assign one layer more or less"),
    ],
)
def test_a_cut_that_the_library_would_compute_otherwise_is_refused(
    architecture: str, changes: dict[str, Value], layers: tuple[int, int], match: str
) -> None:
    with pytest.raises(LoadFailed, match=match):
        refuse_range(whole_of(architecture, **changes), *layers)


def test_layers_that_predict_further_tokens_are_no_layers_of_ours() -> None:
    whole = whole_of("glm4moe", **{**EXPERTS, "block_count": 7, "nextn_predict_layers": 1})
    assert whole.layers == 6
    entries = {entry.key: entry.value for entry in cut(whole, 3, 6).entries}
    assert entries["glm4moe.block_count"] == 3
    assert "glm4moe.nextn_predict_layers" not in entries
