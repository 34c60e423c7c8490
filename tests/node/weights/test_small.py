"""Which models are small enough for float32 arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from node.weights.small import SMALL_BYTES, is_small
from node.wire.weight_index import INDEX
from tests.node.weights.small_models import make_model, write_gguf_of


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_a_gguf_is_small_by_its_numbers_and_not_by_its_bytes(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("llama")
    write_gguf_of(model, tmp_path / "model.gguf", kind)
    assert is_small(tmp_path)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    monkeypatch.setattr("node.weights.small.SMALL_BYTES", 4 * numbers - 1)
    assert not is_small(tmp_path)
    monkeypatch.setattr("node.weights.small.SMALL_BYTES", 4 * numbers)
    assert is_small(tmp_path)


def test_safetensors_are_small_where_one_file_has_all_of_them(tmp_path: Path) -> None:
    assert not is_small(tmp_path), "nothing is there"
    save_file({"a": np.zeros((4, 4), np.float16)}, tmp_path / "model.safetensors")
    assert is_small(tmp_path)
    (tmp_path / INDEX).write_text('{"weight_map": {}}')
    assert not is_small(tmp_path)


def test_a_file_that_cannot_be_read_is_not_small_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    assert not is_small(tmp_path)
    assert SMALL_BYTES == 1 << 30
