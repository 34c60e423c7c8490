"""Whatever a weight file holds, reading it ends in numbers or in one ModelError, and in no great amount of memory."""

from __future__ import annotations

import json
import resource
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.errors import DamagedModel, ModelError, UnsupportedModel
from node.weights.blocks import floats
from node.weights.folder import open_weights
from tests.node.weights.small_models import make_model, write_gguf_of

RELAXED = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
ABSURD = [0, 1, 2**31, 2**32 - 1, 2**40, 2**53, 2**62, 2**63, 2**64 - 1]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)
ROLES = ("attn_norm", "attn_q", "attn_v", "attn_output", "ffn_gate", "ffn_down")


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


def read_or_refuse(path: Path) -> ModelError | None:
    """Read everything that is there."""
    try:
        with little_memory():
            weights = open_weights(path)
            for layer in range(min(weights.layers, 4)):
                for role in ROLES:
                    if weights.has(layer, role):
                        floats(weights.matrix(layer, role))
                weights.layer_bytes(layer)
            for role in ("token_embd", "output", "output_norm"):
                if weights.has(None, role):
                    weights.stored(None, role)
            if weights.has(None, "token_embd"):
                with suppress(ValueError):  # a table without rows
                    weights.embedding_rows([0])
    except ModelError as error:
        return error
    return None


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf_of(make_model("llama"), tmp_path_factory.mktemp("gguf") / "model.gguf", "Q4_0").read_bytes()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    make_model("phi3").save_pretrained(folder)  # whose tensors are joined
    return folder


@RELAXED
@given(flips=st.lists(st.tuples(st.integers(0, 6_000), st.integers(1, 255)), min_size=1, max_size=5))
def test_flipped_bytes_of_a_gguf_file(gguf: bytes, tmp_path: Path, flips: list[tuple[int, int]]) -> None:
    data = bytearray(gguf)
    for place, mask in flips:
        data[place % len(data)] ^= mask
    (tmp_path / "model.gguf").write_bytes(data)
    read_or_refuse(tmp_path / "model.gguf")


@RELAXED
@given(place=st.integers(4, 6_000), value=st.sampled_from(ABSURD))
def test_absurd_numbers_in_a_gguf_file(gguf: bytes, tmp_path: Path, place: int, value: int) -> None:
    data = bytearray(gguf)
    struct.pack_into("<Q", data, place, value)
    (tmp_path / "model.gguf").write_bytes(data)
    read_or_refuse(tmp_path / "model.gguf")


@RELAXED
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_gguf_file_that_is_cut_short_is_refused(gguf: bytes, tmp_path: Path, share: float) -> None:
    (tmp_path / "model.gguf").write_bytes(gguf[: int(len(gguf) * share)])
    assert isinstance(read_or_refuse(tmp_path / "model.gguf"), DamagedModel)


def with_header(hub: Path, folder: Path, header: bytes) -> Path:
    """The folder with another header before the same data."""
    data = (hub / "model.safetensors").read_bytes()
    old = int.from_bytes(data[:8], "little")
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes((hub / "config.json").read_bytes())
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data[8 + old :])
    return folder


def header_of(hub: Path) -> dict[str, object]:
    data = (hub / "model.safetensors").read_bytes()
    header: dict[str, object] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header


@RELAXED
@given(data=st.data())
def test_lying_entries_of_a_safetensors_header(hub: Path, tmp_path: Path, data: st.DataObject) -> None:
    header = header_of(hub)
    name = data.draw(st.sampled_from(sorted(header.keys() - {"__metadata__"})))
    numbers = st.sampled_from([*ABSURD, -1, -(2**63)]) | st.integers(0, 5000)
    odd = numbers | st.none() | st.text(max_size=3) | st.floats() | st.lists(numbers, max_size=3)
    key = data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
    kinds = st.sampled_from(["F32", "F16", "BF16", "I64", "F8_E4M3", "F4", "BOOL", "X" * 100])
    value = data.draw(
        {"dtype": kinds | odd, "shape": st.lists(odd, max_size=4) | odd}.get(key, st.lists(odd, max_size=3) | odd)
    )
    header[name] = {**header[name], key: value}  # type: ignore[dict-item]
    read_or_refuse(with_header(hub, tmp_path / "lying", json.dumps(header).encode()))


@RELAXED
@given(flips=st.lists(st.tuples(st.integers(0, 4_000), st.integers(1, 255)), min_size=1, max_size=5))
def test_flipped_bytes_of_a_safetensors_file(hub: Path, tmp_path: Path, flips: list[tuple[int, int]]) -> None:
    folder = with_header(hub, tmp_path / "flipped", json.dumps(header_of(hub)).encode())
    data = bytearray((folder / "model.safetensors").read_bytes())
    for place, mask in flips:
        data[place % len(data)] ^= mask
    (folder / "model.safetensors").write_bytes(data)
    read_or_refuse(folder)


@RELAXED
@given(data=st.data())
def test_odd_values_in_config_json(hub: Path, tmp_path: Path, data: st.DataObject) -> None:
    folder = with_header(hub, tmp_path / "config", json.dumps(header_of(hub)).encode())
    config = json.loads((hub / "config.json").read_text())
    key = data.draw(st.sampled_from([*sorted(config), "text_config", "quantization_config"]))
    value = data.draw(JSON)
    (folder / "config.json").write_text(json.dumps({**config, key: value}))
    read_or_refuse(folder)


def test_joined_tensors_of_another_size_than_the_config_says_are_damage(hub: Path, tmp_path: Path) -> None:
    folder = with_header(hub, tmp_path / "sizes", json.dumps(header_of(hub)).encode())
    config = json.loads((hub / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_attention_heads": 2, "num_key_value_heads": 2}))
    with pytest.raises(DamagedModel, match="qkv_proj has 128 rows"):
        open_weights(folder).matrix(0, "attn_q")


def test_deeply_nested_json_is_damage_and_no_crash(hub: Path, tmp_path: Path) -> None:
    folder = with_header(hub, tmp_path / "deep", b"[" * 100_000)
    assert isinstance(read_or_refuse(folder), DamagedModel)
    (folder / "config.json").write_text("[" * 100_000)
    assert isinstance(read_or_refuse(folder), DamagedModel)


def test_scales_that_are_no_numbers_come_out_as_such(gguf: bytes, tmp_path: Path) -> None:
    """It is for the first step after a load to notice; nothing here hides them."""
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf)
    _, tensor = open_weights(path).place("blk.0.attn_q.weight")  # type: ignore[attr-defined]
    data = bytearray(gguf)
    data[tensor.offset : tensor.offset + 2] = np.float16("nan").tobytes()
    path.write_bytes(data)
    found = floats(open_weights(path).matrix(0, "attn_q"))
    assert np.isnan(found[0, :32]).all()
    assert np.isfinite(found[1:]).all()


def test_a_folder_with_two_models_or_none_is_told_as_such(gguf: bytes, tmp_path: Path) -> None:
    with pytest.raises(DamagedModel, match="holds neither"):
        open_weights(tmp_path)
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(gguf)
    with pytest.raises(UnsupportedModel, match="several GGUF models in one folder"):
        open_weights(tmp_path)
