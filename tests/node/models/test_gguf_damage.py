"""Whatever a GGUF file holds, reading it ends in a model or in a ModelError, without taking the machine's memory."""

from __future__ import annotations

import resource
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from gguf import GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.errors import DamagedModel, DiskFull, ModelError, UnsupportedModel
from node.models.gguf_folder import make_folder
from node.models.progress import ignore_progress

RELAXED = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@contextmanager
def little_memory(extra_bytes: int = 600 * 1024**2) -> Iterator[None]:
    """Lets an absurd allocation fail instead of being overcommitted."""
    if sys.platform != "linux":
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + extra_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def convert_or_refuse(data: bytes, folder: Path) -> ModelError | None:
    path = folder / "damaged.gguf"
    path.write_bytes(data)
    out = folder / "out"
    out.mkdir(exist_ok=True)
    try:
        with little_memory():
            make_folder(path, out, ignore_progress)
    except ModelError as error:
        return error
    return None


@RELAXED
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(tiny_gguf: Path, tmp_path: Path, share: float) -> None:
    data = tiny_gguf.read_bytes()
    error = convert_or_refuse(data[: int(len(data) * share)], tmp_path)
    assert isinstance(error, DamagedModel)


@RELAXED
@given(flips=st.lists(st.tuples(st.integers(0, 20_000), st.integers(1, 255)), min_size=1, max_size=4))
def test_flipped_bytes_give_a_model_or_a_model_error(
    tiny_gguf: Path, tmp_path: Path, flips: list[tuple[int, int]]
) -> None:
    data = bytearray(tiny_gguf.read_bytes())
    for place, mask in flips:
        data[place % len(data)] ^= mask
    convert_or_refuse(bytes(data), tmp_path)


@RELAXED
@given(place=st.integers(8, 4000), value=st.sampled_from([0, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1]))
def test_absurd_counts_give_a_model_or_a_model_error(tiny_gguf: Path, tmp_path: Path, place: int, value: int) -> None:
    data = bytearray(tiny_gguf.read_bytes())
    struct.pack_into("<Q", data, place, value)
    convert_or_refuse(bytes(data), tmp_path)


@RELAXED
@given(rest=st.binary(max_size=400), version=st.sampled_from([1, 2, 3, 4, 0x03000000]))
def test_garbage_is_refused(tmp_path: Path, rest: bytes, version: int) -> None:
    assert convert_or_refuse(b"GGUF" + struct.pack("<I", version) + rest, tmp_path) is not None
    assert isinstance(convert_or_refuse(rest, tmp_path), DamagedModel)


def test_an_unsupported_architecture_is_named(make_gguf: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r'architecture "mamba".*llama'):
        make_folder(make_gguf("mamba"), tmp_path, ignore_progress)


def test_a_mixture_of_experts_is_refused(make_gguf: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="experts"):
        make_folder(make_gguf("llama", extra=lambda writer: writer.add_expert_count(8)), tmp_path, ignore_progress)


def test_an_unknown_pre_tokenizer_is_refused(make_gguf: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match='pre-tokenizer "viking"'):
        make_folder(make_gguf("llama", pre="viking"), tmp_path, ignore_progress)


def test_a_tensor_that_transformers_would_not_use_is_refused(make_gguf: Callable[..., Path], tmp_path: Path) -> None:
    def add(writer: GGUFWriter) -> None:
        import numpy as np

        writer.add_tensor("blk.0.attn_gate.weight", np.zeros((64, 64), dtype=np.float32))

    with pytest.raises(UnsupportedModel, match="attn_gate"):
        make_folder(make_gguf("llama", extra=add), tmp_path, ignore_progress)


def test_a_part_of_a_split_model_under_another_name_is_refused(make_gguf: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(DamagedModel, match="part 1 of 3"):
        make_folder(
            make_gguf("llama", extra=lambda writer: writer.add_uint16("split.count", 3)), tmp_path, ignore_progress
        )


def test_a_tensor_type_without_a_decoder_is_refused(tiny_gguf: Path, tmp_path: Path) -> None:
    data = tiny_gguf.read_bytes()
    name = b"blk.0.ffn_up.weight"
    at = data.index(name) + len(name) + 4 + 2 * 8  # dimensions, then two of them, then the type
    assert data[at : at + 4] == struct.pack("<I", 2)  # Q4_0
    for number in (24, 9999):  # I8; nothing at all
        error = convert_or_refuse(data[:at] + struct.pack("<I", number) + data[at + 4 :], tmp_path)
        assert isinstance(error, UnsupportedModel)


def test_too_little_disk_is_told_before_anything_is_written(tiny_gguf: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(DiskFull) as caught:
        make_folder(tiny_gguf, out, ignore_progress, free=lambda folder: 1000)
    assert caught.value.free_bytes == 1000
    assert list(out.iterdir()) == []
