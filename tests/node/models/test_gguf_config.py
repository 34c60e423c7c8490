"""config.json says what transformers reads from the same GGUF file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from transformers import AutoConfig

from node.errors import UnsupportedModel
from node.models.gguf_folder import make_folder
from node.models.progress import ignore_progress


@pytest.fixture
def folder_of(tmp_path: Path) -> Callable[[Path], Path]:
    """Makes a model folder around a GGUF file."""

    def make(gguf: Path) -> Path:
        out = tmp_path / "out"
        out.mkdir()
        make_folder(gguf, out, ignore_progress)
        return out

    return make


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_configs_say_what_transformers_reads_from_the_same_file(
    make_gguf: Callable[..., Path], folder_of: Callable[[Path], Path], arch: str
) -> None:
    gguf = make_gguf(arch, pre="smollm" if arch == "llama" else "qwen2")
    ours = AutoConfig.from_pretrained(folder_of(gguf))
    theirs = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    for key in (
        *("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "vocab_size", "max_position_embeddings", "tie_word_embeddings"),
        *("hidden_act",),
    ):
        assert getattr(ours, key, None) == getattr(theirs, key, getattr(ours, key, None)), key
    assert ours.head_dim == 16  # transformers' loader overlooks it for qwen3 and takes 128
    assert ours.rms_norm_eps == pytest.approx(theirs.rms_norm_eps, rel=1e-6)
    assert ours.rope_parameters["rope_theta"] == theirs.rope_parameters["rope_theta"]


@pytest.mark.parametrize(("kind", "dtype"), [("F16", "float16"), ("BF16", "bfloat16"), ("Q8_0", "float32")])
def test_the_dtype_is_the_one_that_loses_nothing(
    make_gguf: Callable[..., Path], folder_of: Callable[[Path], Path], kind: str, dtype: str
) -> None:
    import torch

    assert AutoConfig.from_pretrained(folder_of(make_gguf("llama", kind=kind))).dtype == getattr(torch, dtype)


def llama3_factors(head_dim: int, theta: float, factor: float) -> np.ndarray:
    """As llama.cpp's converter writes them."""
    frequencies = 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    factors = []
    for wavelength in 2 * np.pi / frequencies:
        smooth = (8192 / wavelength - 1.0) / 3.0
        middle = 1 / ((1 - smooth) / factor + smooth)
        factors.append(1.0 if wavelength < 2048 else factor if wavelength > 8192 else middle)
    return np.array(factors, dtype=np.float32)


def test_llama3_rope_scaling_is_recovered_from_its_frequencies(
    make_gguf: Callable[..., Path], folder_of: Callable[[Path], Path]
) -> None:
    def add(writer: GGUFWriter) -> None:
        writer.add_tensor("rope_freqs.weight", llama3_factors(16, 10000.0, 8.0))

    rope = AutoConfig.from_pretrained(folder_of(make_gguf("llama", extra=add))).rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["original_max_position_embeddings"]) == ("llama3", 8.0, 8192)


def test_other_rope_frequencies_are_refused(make_gguf: Callable[..., Path], tmp_path: Path) -> None:
    def add(writer: GGUFWriter) -> None:
        writer.add_tensor("rope_freqs.weight", np.linspace(1, 3, 8, dtype=np.float32))

    with pytest.raises(UnsupportedModel, match="rope_freqs"):
        make_folder(make_gguf("llama", extra=add), tmp_path, ignore_progress)
