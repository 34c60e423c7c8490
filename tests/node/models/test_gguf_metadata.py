"""Whatever the metadata of a GGUF file of any family say, they make a config.json or one ModelError."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.errors import DamagedModel, ModelError, UnsupportedModel
from node.models.gguf_config import config_from
from node.models.gguf_tensors import check_tensors
from node.weights.gguf_file import GgufFile, Value
from node.weights.gguf_split import read_model
from tests.node.weights.small_models import CONFIGS, make_model, write_gguf_of

RELAXED = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
SCALARS = st.sampled_from([0, 1, 2, 3, 7, 64, 65, 2**31, 2**63, -1]) | st.floats() | st.booleans() | st.text(max_size=5)
VALUES = SCALARS | st.lists(SCALARS, max_size=4).map(tuple)


@pytest.fixture(scope="module", params=[name for name in CONFIGS if name != "llama tied"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> GgufFile:
    path = tmp_path_factory.mktemp("metadata") / "model.gguf"
    return read_model(write_gguf_of(make_model(request.param), path))


def check(file: GgufFile) -> None:
    config, sizes = config_from(file)
    check_tensors(file, sizes, config)
    json.dumps(config)


def refusal(file: GgufFile) -> str | None:
    """What is said against it, which names the file; None where it is taken."""
    try:
        check(file)
    except ModelError as error:
        said = str(error)
    else:
        return None
    assert str(file.path) in said
    return said


def test_a_whole_file_is_taken(file: GgufFile) -> None:
    check(file)


@RELAXED
@given(data=st.data())
def test_an_odd_value_makes_a_config_or_one_error(file: GgufFile, data: st.DataObject) -> None:
    keys = sorted(key for key in file.metadata if not key.startswith("GGUF."))
    changed: dict[str, Value] = dict(file.metadata)
    for key in data.draw(st.lists(st.sampled_from(keys), min_size=1, max_size=2)):
        changed[key] = data.draw(VALUES)
    refusal(replace(file, metadata=changed))


@RELAXED
@given(data=st.data())
def test_a_missing_tensor_or_one_of_another_shape_is_named(file: GgufFile, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(file.tensors)))
    tensors = dict(file.tensors)
    if data.draw(st.booleans()):
        del tensors[name]
    else:
        tensors[name] = replace(tensors[name], shape=(*tensors[name].shape[:-1], tensors[name].shape[-1] + 32))
    if refusal(replace(file, tensors=tensors)) is None:
        # without it another model of the family is whole: one with a tied head, or without biases or norms of its heads
        assert name == "output.weight" or name.endswith(".bias") or "_norm" in name


def test_a_range_of_layers_of_unequal_sizes_is_refused_by_name(file: GgufFile) -> None:
    key = f"{file.text('general.architecture')}.attention.head_count"
    with pytest.raises(UnsupportedModel, match=r"layers differ in .*head_count"):
        config_from(replace(file, metadata={**file.metadata, key: (4, 2, 4)}))
    equal = {**file.metadata, key: (file.integer(key),) * 3}
    assert config_from(replace(file, metadata=equal))[1].heads == file.integer(key)


def test_a_window_told_layer_by_layer_is_taken_over(tmp_path: Path) -> None:
    file = read_model(write_gguf_of(make_model("gemma3"), tmp_path / "model.gguf"))
    told = {**file.metadata, "gemma3.attention.sliding_window_pattern": (True, False, True)}
    config, _ = config_from(replace(file, metadata=told))
    assert config["layer_types"] == ["sliding_attention", "full_attention", "sliding_attention"]
    with pytest.raises(DamagedModel, match="sliding_window_pattern"):
        config_from(replace(file, metadata={**told, "gemma3.attention.sliding_window_pattern": (True,)}))
