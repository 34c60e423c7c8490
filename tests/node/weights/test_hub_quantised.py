"""Quantised checkpoints stand for the numbers that their methods define. The packing here is done number by number."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from node.errors import DamagedModel, UnsupportedModel
from node.weights.base import Weights
from node.weights.blocks import Blocks, floats
from node.weights.folder import open_weights
from node.weights.hub_methods import method_of
from node.weights.hub_quantised import FP8
from tests.node.weights.small_models import make_model

ROWS, COLUMNS = 64, 96
NAME = "model.layers.0.mlp.gate_proj"
RANDOM = np.random.default_rng(3)


def write(folder: Path, tensors: dict[str, np.ndarray], quantisation: dict[str, Any]) -> Weights:
    """A folder with these tensors in the place of one matrix."""
    config = {
        "model_type": "llama",
        "num_hidden_layers": 1,
        "hidden_size": COLUMNS,
        "num_attention_heads": 4,
        "quantization_config": quantisation,
    }
    (folder / "config.json").write_text(json.dumps(config))
    everything = {"model.embed_tokens.weight": np.zeros((8, COLUMNS), np.float32), **tensors}
    save_file(everything, folder / "model.safetensors")
    return open_weights(folder)


def packed(numbers: np.ndarray, bits: int, axis: int, order: tuple[int, ...] | None = None) -> np.ndarray:
    """32-bit words of numbers along an axis."""
    numbers = np.moveaxis(numbers, axis, -1)
    per = 32 // bits
    words = np.zeros((*numbers.shape[:-1], -(-numbers.shape[-1] // per)), np.uint32)
    for place in np.ndindex(numbers.shape):
        slot = place[-1] % per if order is None else order[place[-1] % per]
        words[(*place[:-1], place[-1] // per)] |= np.uint32(int(numbers[place]) << (bits * slot))
    return np.moveaxis(words, -1, axis).view(np.int32).copy()


def numbers_of(bits: int, group: int, *, least_zero: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Quants (N, K), scales and zero points (N, G), and what they stand for."""
    groups = COLUMNS // group
    quants = RANDOM.integers(0, 1 << bits, (ROWS, COLUMNS))
    scales = RANDOM.uniform(0.001, 0.1, (ROWS, groups)).astype(np.float16)
    zeros = RANDOM.integers(least_zero, 1 << bits, (ROWS, groups))
    wide = scales.astype(np.float32).repeat(group, axis=1)
    return quants, scales, zeros, (quants - zeros.repeat(group, axis=1)).astype(np.float32) * wide


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("group", [32, 96])
def test_gptq(tmp_path: Path, bits: int, form: str, group: int) -> None:
    quants, scales, zeros, expected = numbers_of(bits, group, least_zero=0)
    stored = (zeros - 1) % (1 << bits) if form == "gptq" else zeros
    tensors = {
        f"{NAME}.qweight": packed(quants.T, bits, 0),
        f"{NAME}.qzeros": packed(stored.T, bits, 1),
        f"{NAME}.scales": scales.T.copy(),
        f"{NAME}.g_idx": (np.arange(COLUMNS) // group).astype(np.int32),
    }
    weights = write(
        tmp_path, tensors, {"quant_method": "gptq", "bits": bits, "group_size": group, "checkpoint_format": form}
    )
    found = weights.matrix(0, "ffn_gate")
    assert isinstance(found, Blocks)
    assert found.block == 32
    assert weights.stored(0, "ffn_gate") == f"gptq-{bits}"
    np.testing.assert_array_equal(found.values(), expected)


def test_gptq_with_columns_in_the_order_of_their_activations(tmp_path: Path) -> None:
    quants, scales, zeros, _ = numbers_of(4, 32)
    groups = RANDOM.permutation(np.arange(COLUMNS) // 32)
    tensors = {
        f"{NAME}.qweight": packed(quants.T, 4, 0),
        f"{NAME}.qzeros": packed(((zeros - 1) % 16).T, 4, 1),
        f"{NAME}.scales": scales.T.copy(),
        f"{NAME}.g_idx": groups.astype(np.int32),
    }
    weights = write(tmp_path, tensors, {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True})
    expected = (quants - zeros[:, groups]).astype(np.float32) * scales.astype(np.float32)[:, groups]
    np.testing.assert_array_equal(floats(weights.matrix(0, "ffn_gate")), expected)


def test_awq(tmp_path: Path) -> None:
    quants, scales, zeros, expected = numbers_of(4, 32)
    order = (0, 4, 1, 5, 2, 6, 3, 7)  # the n-th number's place in its word: words hold 0 2 4 6 1 3 5 7
    tensors = {
        f"{NAME}.qweight": packed(quants.T, 4, 1, order),
        f"{NAME}.qzeros": packed(zeros.T, 4, 1, order),
        f"{NAME}.scales": scales.T.copy(),
    }
    weights = write(tmp_path, tensors, {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"})
    found = weights.matrix(0, "ffn_gate")
    assert isinstance(found, Blocks)
    np.testing.assert_array_equal(found.values(), expected)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, 96])
def test_compressed_tensors_packed(tmp_path: Path, bits: int, symmetric: bool, group: int) -> None:
    quants, scales, zeros, expected = numbers_of(bits, group)
    middle = 1 << (bits - 1)
    tensors = {
        f"{NAME}.weight_packed": packed(quants, bits, 1),
        f"{NAME}.weight_scale": scales,
        f"{NAME}.weight_shape": np.array([ROWS, COLUMNS], np.int64),
    }
    if symmetric:
        expected = (quants - middle).astype(np.float32) * scales.astype(np.float32).repeat(group, axis=1)
    else:
        tensors[f"{NAME}.weight_zero_point"] = packed(zeros, bits, 0)
    weights = write(tmp_path, tensors, compressed("pack-quantized", bits, "int", symmetric))
    np.testing.assert_array_equal(floats(weights.matrix(0, "ffn_gate")), expected)


def compressed(form: str, bits: int, kind: str, symmetric: bool = True) -> dict[str, Any]:
    scheme = {"num_bits": bits, "type": kind, "symmetric": symmetric, "strategy": "group", "group_size": 32}
    groups = {"group_0": {"targets": ["Linear"], "weights": scheme}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}


@pytest.mark.parametrize("scales_shape", [(ROWS, 1), (1,), (ROWS, 3)])
def test_compressed_tensors_integers(tmp_path: Path, scales_shape: tuple[int, ...]) -> None:
    numbers = RANDOM.integers(-128, 128, (ROWS, COLUMNS)).astype(np.int8)
    scales = RANDOM.uniform(0.001, 0.1, scales_shape).astype(np.float32)
    tensors = {f"{NAME}.weight": numbers, f"{NAME}.weight_scale": scales}
    weights = write(tmp_path, tensors, compressed("int-quantized", 8, "int"))
    wide = scales.repeat(COLUMNS // scales.shape[-1], axis=-1) if scales.ndim > 1 else scales
    np.testing.assert_array_equal(floats(weights.matrix(0, "ffn_gate")), numbers.astype(np.float32) * wide)


def test_every_eight_bit_float_is_torchs() -> None:
    import torch

    theirs = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(FP8, theirs)


@pytest.mark.parametrize("shape", [(2, 3), (200, 1), (), (1,)])
def test_fp8_with_scales_of_squares_rows_and_matrices(tmp_path: Path, shape: tuple[int, ...]) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    values = torch.randn(200, 300).to(torch.float8_e4m3fn)
    scales = torch.rand(shape) + 0.1
    write(tmp_path, {}, {"quant_method": "fp8"})
    save_torch(
        {"model.embed_tokens.weight": torch.zeros(8, 96), f"{NAME}.weight": values, f"{NAME}.weight_scale_inv": scales},
        tmp_path / "model.safetensors",
    )
    weights = open_weights(tmp_path)
    wide = scales.repeat_interleave(128, 0)[:200].repeat_interleave(128, 1)[:, :300] if shape == (2, 3) else scales
    np.testing.assert_array_equal(floats(weights.matrix(0, "ffn_gate")), (values.float() * wide).numpy())


def test_mxfp4_experts_are_those_that_transformers_reads(tmp_path: Path) -> None:
    import torch
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    model = make_model("gpt_oss")
    model.save_pretrained(tmp_path)
    from safetensors.numpy import load_file

    tensors = load_file(tmp_path / "model.safetensors")
    expected = {}
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, columns, rows = tensors.pop(name).shape
        blocks = RANDOM.integers(0, 256, (experts, rows, columns // 32, 16)).astype(np.uint8)
        scales = RANDOM.integers(120, 130, (experts, rows, columns // 32)).astype(np.uint8)
        tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = blocks, scales
        whole = convert_moe_packed_tensors(torch.from_numpy(blocks), torch.from_numpy(scales), dtype=torch.float32)
        expected[name] = whole.numpy().swapaxes(-1, -2)  # (E, rows, columns)
    save_file(tensors, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "mxfp4"}}))
    weights = open_weights(tmp_path)
    joined = expected["model.layers.1.mlp.experts.gate_up_proj"]
    for role, values in (
        ("ffn_gate_exps", joined[:, 0::2]),
        ("ffn_up_exps", joined[:, 1::2]),
        ("ffn_down_exps", expected["model.layers.1.mlp.experts.down_proj"]),
    ):
        found = weights.matrix(1, role)
        assert isinstance(found, Blocks)
        np.testing.assert_array_equal(found.values(), values)


def test_what_is_not_quantised_beside_it_is_read_as_it_is(tmp_path: Path) -> None:
    plain = RANDOM.standard_normal((COLUMNS, ROWS)).astype(np.float16)
    weights = write(tmp_path, {"model.layers.0.mlp.down_proj.weight": plain}, {"quant_method": "awq", "bits": 4})
    assert weights.stored(0, "ffn_down") == "F16"
    np.testing.assert_array_equal(weights.matrix(0, "ffn_down"), plain)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("quantisation", "what"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "aqlm"}, "aqlm"),
        ({"quant_method": "gptq", "bits": 3}, "gptq with 3 bits"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "awq, version gemv"),
        ({"load_in_8bit": True}, "of an unknown method"),
        (compressed("marlin-24", 4, "int"), "compressed-tensors, marlin-24 with 4 bits"),
        (compressed("nvfp4-pack-quantized", 4, "float"), "nvfp4-pack-quantized"),
    ],
)
def test_a_method_that_cannot_be_read_is_refused_by_name(quantisation: dict[str, Any], what: str) -> None:
    with pytest.raises(UnsupportedModel, match=what):
        method_of({"quantization_config": quantisation}, "here")


@pytest.mark.parametrize("quantisation", ["awq", {"quant_method": "gptq"}, {"quant_method": "gptq", "bits": "four"}])
def test_a_description_without_sense_is_damage(quantisation: Any) -> None:
    with pytest.raises(DamagedModel):
        method_of({"quantization_config": quantisation}, "here")


Spoil = Callable[[dict[str, np.ndarray]], None]


@pytest.mark.parametrize("part", ["qweight", "qzeros", "scales", "g_idx"])
@pytest.mark.parametrize("how", ["gone", "short", "wide"])
def test_parts_that_do_not_fit_together_are_damage(tmp_path: Path, part: str, how: str) -> None:
    quants, scales, zeros, _ = numbers_of(4, 32)
    tensors = {
        f"{NAME}.qweight": packed(quants.T, 4, 0),
        f"{NAME}.qzeros": packed(zeros.T, 4, 1),
        f"{NAME}.scales": scales.T.copy(),
        f"{NAME}.g_idx": np.zeros(COLUMNS, np.int32),
    }
    name = f"{NAME}.{part}"
    if how == "gone":
        if part in ("qweight", "g_idx"):
            pytest.skip("without the one there is no matrix, the other is not needed")
        del tensors[name]
    elif how == "short":
        tensors[name] = tensors[name][:-1].copy()
    else:
        tensors[name] = np.concatenate([tensors[name], tensors[name]])
    weights = write(tmp_path, tensors, {"quant_method": "gptq", "bits": 4})
    with pytest.raises(DamagedModel, match="gate_proj"):
        weights.matrix(0, "ffn_gate")
