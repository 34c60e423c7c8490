"""The index of weights, which the model's room and the worker read by the same rule."""

from __future__ import annotations

import json

import pytest

from node.errors import DamagedModel, ModelError, UnsupportedModel
from node.wire.weight_index import parse_index


def test_an_index_gives_the_file_of_each_tensor() -> None:
    places = {
        "model.norm.weight": "model-00002-of-00002.safetensors",
        "lm_head.weight": "model-00001-of-00002.safetensors",
    }
    assert parse_index(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}).encode(), "here") == places


@pytest.mark.parametrize(
    "data", [b"{ no", b"[]", b"{}", b'{"weight_map": {}}', b'{"weight_map": {"a": 1}}', b"[" * 9999]
)
def test_what_is_no_index_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(DamagedModel, match=r"^here: "):
        parse_index(data, "here")


@pytest.mark.parametrize(
    "file", ["../a.safetensors", "/a.safetensors", "b/a.safetensors", "a.bin", ".safetensors", "a" * 300]
)
def test_an_index_names_safetensors_beside_it_and_nothing_else(file: str) -> None:
    with pytest.raises(UnsupportedModel, match="beside the index") as caught:
        parse_index(json.dumps({"weight_map": {"a": file}}).encode(), "here")
    assert isinstance(caught.value, ModelError)
