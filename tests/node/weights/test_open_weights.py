"""One set of roles for every family, whether it came as safetensors or as GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from node.weights.base import Weights
from node.weights.blocks import Blocks, floats
from node.weights.folder import open_weights
from tests.node.weights.small_models import LAYERS, gguf_tensors, make_model, numbers, rotated_rows, write_gguf_of


@pytest.fixture
def gguf(model: Any, tmp_path: Path) -> Path:
    return write_gguf_of(model, tmp_path / "model.gguf")


def split_tensors(model: Any) -> dict[tuple[int | None, str, str], np.ndarray]:
    """What each role must be, told by the GGUF file that llama.cpp's converter would make."""
    config = model.config
    wanted: dict[tuple[int | None, str, str], np.ndarray] = {}
    for name, values in gguf_tensors(model).items():
        words = name.split(".")
        layer = int(words[1]) if words[0] == "blk" else None
        role, part = words[-2], words[-1]
        if role == "attn_qkv":
            ends = [config.num_attention_heads * 16, config.num_attention_heads * 16 + config.num_key_value_heads * 16]
            for one, rows in zip(("attn_q", "attn_k", "attn_v"), np.split(values, ends), strict=True):
                wanted[layer, one, part] = rows
        elif role == "ffn_up" and config.model_type == "phi3":
            wanted[layer, "ffn_gate", part], wanted[layer, "ffn_up", part] = np.split(values, 2)
        elif role == "post_attention_norm" and config.model_type in ("gpt_oss", "glm4_moe"):
            wanted[layer, "ffn_norm", part] = values
        else:
            wanted[layer, role, part] = values
    return wanted


def given(weights: Weights, layer: int | None, role: str, part: str) -> np.ndarray:
    is_norm = role.endswith("norm") and part == "weight"
    reading = weights.vector if is_norm else weights.matrix
    return floats(reading(layer, role, part))  # type: ignore[arg-type]


def test_a_gguf_file_gives_each_role_its_tensor(model: Any, gguf: Path) -> None:
    weights = open_weights(gguf)
    assert weights.layers == LAYERS
    assert weights.tied_head == model.config.tie_word_embeddings
    for (layer, role, part), values in split_tensors(model).items():
        assert weights.has(layer, role, part)  # type: ignore[arg-type]
        np.testing.assert_array_equal(given(weights, layer, role, part), values, err_msg=f"{layer} {role} {part}")


def test_a_folder_gives_the_same_roles_the_same_numbers(model: Any, published: Path) -> None:
    weights = open_weights(published)
    assert weights.layers == LAYERS
    assert weights.tied_head == model.config.tie_word_embeddings
    assert weights.family == model.config.model_type
    config = model.config
    for (layer, role, part), values in split_tensors(model).items():
        if role in ("attn_q", "attn_k") and config.model_type in ("llama", "mistral"):
            heads = config.num_attention_heads if role == "attn_q" else config.num_key_value_heads
            found = rotated_rows(given(weights, layer, role, part), heads)  # the file itself has transformers' order
        else:
            found = given(weights, layer, role, part)
        np.testing.assert_array_equal(found, values, err_msg=f"{layer} {role} {part}")


def test_a_folder_with_joined_experts_is_read_as_well(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, save_original_format=False)
    weights = open_weights(tmp_path)
    for (layer, role, part), values in split_tensors(model).items():
        if role.endswith("_exps"):
            np.testing.assert_array_equal(given(weights, layer, role, part), values)


def test_what_is_not_there_is_said_by_name(model: Any, gguf: Path, published: Path) -> None:
    for weights in (open_weights(gguf), open_weights(published)):
        for layer, role in ((0, "ssm_a"), (LAYERS, "attn_q"), (None, "attn_q"), (0, "token_embd")):
            assert not weights.has(layer, role)
            with pytest.raises(KeyError, match=role):
                weights.matrix(layer, role)


def test_rows_of_the_embedding_are_looked_up(model: Any, gguf: Path, published: Path) -> None:
    table = numbers(model)["model.embed_tokens.weight"]
    for weights in (open_weights(gguf), open_weights(published)):
        np.testing.assert_array_equal(weights.embedding_rows([5, 0, 159, 5]), table[[5, 0, 159, 5]])
        assert weights.embedding_rows([]).shape == (0, table.shape[1])
        for bad in ([160], [-1], [3, 2**40]):
            with pytest.raises(ValueError, match="160 ids"):
                weights.embedding_rows(bad)


def test_sizes_are_those_of_the_files(model: Any, gguf: Path, published: Path) -> None:
    total = sum(values.nbytes for values in gguf_tensors(model).values())
    for weights in (open_weights(gguf), open_weights(published)):
        parts = [weights.layer_bytes(layer) for layer in range(LAYERS)]
        outer = [weights.outer_bytes(role) for role in ("token_embd", "output_norm", "output")]
        assert sum(parts) + sum(outer) == total


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "F16", "BF16", "MXFP4"])
def test_a_quantised_matrix_stays_as_it_is_stored(tmp_path: Path, kind: str) -> None:
    from gguf import GGMLQuantizationType, quants

    model = make_model("qwen3_moe")
    weights = open_weights(write_gguf_of(model, tmp_path / "q.gguf", kind))
    for role in ("attn_q", "ffn_down_exps"):
        values = gguf_tensors(model)[f"blk.1.{role}.weight"]
        expected = quants.dequantize(quants.quantize(values, GGMLQuantizationType[kind]), GGMLQuantizationType[kind])
        found = weights.matrix(1, role)
        assert weights.stored(1, role) == kind
        assert isinstance(found, Blocks) == (kind not in ("F16", "BF16"))
        assert found.shape == values.shape
        np.testing.assert_array_equal(floats(found), expected.reshape(values.shape))
    table = quants.quantize(gguf_tensors(model)["token_embd.weight"], GGMLQuantizationType[kind])
    np.testing.assert_array_equal(
        weights.embedding_rows([7, 3]), quants.dequantize(table, GGMLQuantizationType[kind])[[7, 3]]
    )
