"""What an MLX stage makes of weights as they are stored: MLX's own grids, GGUF's, and those that we are asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants

from node.errors import LoadFailed
from node.weights.ggml_grids import from_ggml
from tests.node.engine.driving import save_tiny, tiny_llama
from tests.node.engine.test_stage_families import FAMILIES, PROMPT
from tests.node.weights.small_models import write_gguf_of

mx = pytest.importorskip("mlx.core", reason="MLX is not installed: pip install 'parallax-tui[mlx]'")

import mlx.nn as nn
from mlx.utils import tree_flatten

from node.engine.mlx import library
from node.engine.mlx.config import read_config
from node.engine.mlx.gguf_source import as_groups, fits
from tests.node.engine.mlx.mlx_driving import load_mlx, logits_of

STEPS = [17, 90]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    save_tiny(tiny_llama(), folder)
    return folder


def write_as_mlx_does(folder: Path, target: Path, *, bits: int, group: int) -> None:
    """The same model on a grid, in the form in which mlx-lm publishes."""
    config = json.loads((folder / "config.json").read_text())
    model = library.model_of(read_config(folder, ""), "")
    model.load_weights(list(model.sanitize(mx.load(str(folder / "model.safetensors"))).items()))
    nn.quantize(model, group_size=group, bits=bits)
    target.mkdir(exist_ok=True)
    config["quantization"] = {"group_size": group, "bits": bits}
    (target / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(target / "model.safetensors"), dict(tree_flatten(model.parameters())))


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (8, 32), (6, 32)])
def test_a_model_on_mlxs_own_grid_is_served_on_it(folder: Path, tmp_path: Path, bits: int, group: int) -> None:
    write_as_mlx_does(folder, tmp_path, bits=bits, group=group)
    whole = load_mlx(tmp_path, 0, 6)
    assert whole.info.quantisation == f"{bits} bits in groups of {group}"
    assert whole.info.weight_bytes < load_mlx(folder, 0, 6).info.weight_bytes / 2
    chain = [load_mlx(tmp_path, 0, 2), load_mlx(tmp_path, 2, 6)]
    assert np.array_equal(logits_of(chain, PROMPT, STEPS), logits_of([whole], PROMPT, STEPS))


def test_multiplied_out_it_computes_with_the_numbers_of_the_grid(folder: Path, tmp_path: Path) -> None:
    write_as_mlx_does(folder, tmp_path, bits=4, group=32)
    plain, grid = load_mlx(tmp_path, 0, 6, quantise="none"), load_mlx(tmp_path, 0, 6)
    assert plain.info.quantisation == "float32"
    assert np.allclose(*(logits_of([stage], PROMPT, STEPS) for stage in (plain, grid)), rtol=0, atol=1e-3)


@pytest.mark.parametrize("quantise", ["int8", "int4"])
def test_floats_are_put_on_a_grid_where_that_is_asked_for(folder: Path, quantise: str) -> None:
    stage, plain = load_mlx(folder, 0, 6, quantise=quantise), load_mlx(folder, 0, 6)
    assert stage.info.quantisation == f"{quantise[3:]} bits in groups of 32"
    given, expected = (logits_of([each], PROMPT, STEPS) for each in (stage, plain))
    off = np.abs(given - expected).max() / np.abs(expected).max()
    assert 0 < off < (0.1 if quantise == "int8" else 1.0)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_1", "Q8_0"])
def test_blocks_of_a_gguf_file_are_the_same_numbers_in_groups(kind: str) -> None:
    values = np.random.default_rng(2).standard_normal((8, 64)).astype(np.float32)
    raw = quants.quantize(values, GGMLQuantizationType[kind])
    blocks = from_ggml(raw, kind)
    assert blocks is not None
    assert fits(blocks)
    parts = as_groups(blocks)
    given = np.array(
        mx.dequantize(parts["weight"], parts["scales"], parts["biases"], blocks.block, blocks.bits).astype(mx.float32)
    )
    assert np.allclose(given, quants.dequantize(raw, GGMLQuantizationType[kind]), rtol=0, atol=1e-6)


GGUF_FAMILIES = ["llama", "qwen2", "qwen3 tied", "gemma3 tied", "qwen3 moe"]


def as_gguf(config: Any, tmp_path: Path, kind: str) -> tuple[Path, Any]:
    """A folder with a tiny model's config.json and its weights as a GGUF file; the model."""
    model = save_tiny(config, tmp_path / "floats")
    folder = tmp_path / kind
    folder.mkdir()
    (folder / "config.json").write_bytes((tmp_path / "floats" / "config.json").read_bytes())
    write_gguf_of(model, folder / "model.gguf", kind)
    return folder, model


def gguf_config(family: str) -> Any:
    config = FAMILIES[family]()
    if family == "qwen3 moe":
        config.mlp_only_layers = []  # llama.cpp's converter knows no dense layers in it
    return config


@pytest.mark.parametrize("family", GGUF_FAMILIES)
def test_a_gguf_file_gives_the_numbers_that_transformers_gives(family: str, tmp_path: Path) -> None:
    folder, model = as_gguf(gguf_config(family), tmp_path, "F32")
    with torch.inference_mode():
        exact = model(torch.tensor([[*PROMPT, *STEPS]])).logits[0, len(PROMPT) - 1 :].numpy()
    given = logits_of([load_mlx(folder, 0, 6)], PROMPT, STEPS)
    assert np.allclose(given, exact, rtol=0, atol=3e-4 * np.abs(exact).max())


@pytest.mark.parametrize("family", GGUF_FAMILIES)
def test_a_gguf_files_blocks_are_served_as_they_are(family: str, tmp_path: Path) -> None:
    folder, _ = as_gguf(gguf_config(family), tmp_path, "Q8_0")
    on_grid, plain = load_mlx(folder, 0, 6), load_mlx(folder, 0, 6, quantise="none")
    assert "8 bits in groups of 32" in on_grid.info.quantisation
    chain = [load_mlx(folder, 0, 2), load_mlx(folder, 2, 6)]
    given = logits_of([on_grid], PROMPT, STEPS)
    assert np.array_equal(logits_of(chain, PROMPT, STEPS), given)
    plain_logits = logits_of([plain], PROMPT, STEPS)
    assert np.allclose(given, plain_logits, rtol=0, atol=1e-3 * np.abs(given).max())


def test_blocks_of_sixteen_are_multiplied_out() -> None:
    """MLX has no such group."""
    blocks = from_ggml(np.random.default_rng(3).integers(0, 256, (4, 210), dtype=np.uint8), "Q6_K")
    assert blocks is not None
    assert not fits(blocks)


def test_a_gguf_family_without_names_is_refused(tmp_path: Path) -> None:
    folder, _ = as_gguf(FAMILIES["olmo2"](), tmp_path, "Q8_0")
    with pytest.raises(LoadFailed, match="a GGUF file of olmo2 in the MLX backend, which reads those of gemma"):
        load_mlx(folder, 0, 6)


def test_the_table_of_families_is_the_librarys_own() -> None:
    """It stands in a module of theirs that we do not import when we serve."""
    import subprocess
    import sys

    code = "import json, mlx_lm.utils; print(json.dumps(mlx_lm.utils.MODEL_REMAPPING))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == library.MODULE_OF


def test_a_name_from_a_file_imports_nothing_but_models(tmp_path: Path) -> None:
    for name in ("..utils", "os", "llama.Model", "", "cache/../llama"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": name}))
        with pytest.raises(LoadFailed, match="mlx-lm has no model"):
            library.model_of(read_config(tmp_path, ""), "")


@pytest.mark.parametrize(
    "rotary",
    [{"rope_type": "dynamic", "factor": 2.0}, {"rope_type": "longrope", "factor": 2.0}],
    ids=["dynamic", "long"],
)
def test_tables_that_depend_on_the_texts_length_are_refused(tmp_path: Path, rotary: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "rope_scaling": rotary}))
    with pytest.raises(LoadFailed, match="depends on the text's length"):
        read_config(tmp_path, "")
