"""What is wrong is told in a sentence, at the door, and nobody else is the worse for it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from node.engine.base import Batch, Slot, StageSpec
from node.engine.ort.config import Config
from node.engine.ort.loading import load_stage
from node.engine.ort.part_store import PartStore
from node.engine.ort.shape import shape_of
from node.errors import EngineError, LoadFailed, ModelError
from node.wire.frames import Sampling
from tests.node.engine.driving import batch_of, save_tiny, tiny_llama
from tests.node.engine.ort.driving import ids_at, load_ort


@pytest.fixture
def broken(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "broken"))


def change(folder: Path, name: str, tensor: np.ndarray | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(name)
    if tensor is not None:
        tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors")


DOWN = "model.layers.2.mlp.down_proj.weight"


@pytest.mark.parametrize("quantise", ["auto", "int8", "int4"])
def test_weights_that_are_not_numbers_are_found_when_they_are_loaded(broken: Path, quantise: Any) -> None:
    bad = load_file(broken / "model.safetensors")[DOWN]
    bad[3, 5] = np.nan
    change(broken, DOWN, bad)
    with pytest.raises(LoadFailed, match="layers 0–5: its first step gives NaN or infinite numbers"):
        load_ort(broken, 0, 6, quantise=quantise)
    load_ort(broken, 3, 6, quantise=quantise)


def test_a_missing_tensor_is_named(broken: Path) -> None:
    change(broken, DOWN, None)
    with pytest.raises(LoadFailed, match=r"ffn_down\.weight of layer 2"):
        load_ort(broken, 0, 6)


@pytest.mark.parametrize("shape", [(64, 95), (63, 96), (96, 64)])
def test_a_misshapen_tensor_is_named_with_both_shapes(broken: Path, shape: tuple[int, int]) -> None:
    change(broken, DOWN, np.zeros(shape, np.float32))
    with pytest.raises(LoadFailed, match=r"ffn_down.*shape|shape.*ffn_down|down_proj.*shape"):
        load_ort(broken, 0, 6)


@pytest.mark.skipif(sys.platform == "win32", reason="a mapped file cannot be cut short")
def test_a_file_that_is_cut_short_after_the_load_hurts_nobody(tmp_path: Path) -> None:
    """Norms and scales of more than a page, which the library reads where they lie."""
    save_tiny(tiny_llama(hidden_size=1280, intermediate_size=320, num_attention_heads=20), tmp_path)
    stage = load_ort(tmp_path, 3, 6)
    stage.open("s", 3, 6, Sampling(), 10)
    rows = np.random.default_rng(0).standard_normal((2, 1280)).astype(np.float32).tobytes()
    before = stage.run(Batch((Slot("s", 0, 2, "token"),), rows, "float32")).slots[0].tokens
    os.truncate(tmp_path / "model.safetensors", 100)
    stage.rewind("s", 0)
    assert stage.run(Batch((Slot("s", 0, 2, "token"),), rows, "float32")).slots[0].tokens == before


def test_a_norm_of_another_length_is_refused(broken: Path) -> None:
    change(broken, "model.layers.1.input_layernorm.weight", np.ones(63, np.float32))
    with pytest.raises(LoadFailed, match="attn_norm of layer 1"):
        load_ort(broken, 0, 6)


@pytest.mark.parametrize(("start", "end"), [(0, 7), (6, 7), (3, 3), (-1, 2)])
def test_a_range_outside_the_model_is_refused(tiny_folder: Path, start: int, end: int) -> None:
    with pytest.raises(LoadFailed, match="the model has 6 layers"):
        load_ort(tiny_folder, start, end)


def test_a_truncated_file_is_refused(broken: Path) -> None:
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(LoadFailed, match=r"model\.safetensors"):
        load_ort(broken, 0, 6)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"hidden_size": 0}, '"hidden_size" is 0'),
        ({"hidden_size": "64"}, "not a whole number"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"rope_parameters": {"rope_type": "spiral"}}, "the rotary scaling spiral"),
        ({"hidden_act": "relu"}, "the activation relu"),
        ({"head_dim": 24}, "24 rows are turned"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ],
)
def test_a_config_that_cannot_be_is_refused(broken: Path, changed: dict[str, object], said: str) -> None:
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, **changed}))
    with pytest.raises(LoadFailed, match=said):
        load_ort(broken, 0, 6)


def test_a_config_that_is_no_json_is_refused(broken: Path) -> None:
    (broken / "config.json").write_text("{")
    with pytest.raises(LoadFailed, match="is no JSON"):
        load_ort(broken, 0, 6)


ANY = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.lists(st.integers()))
KEYS = ["hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers", "vocab_size", "layer_types"]
KEYS += ["sliding_window", "rms_norm_eps", "head_dim", "rope_parameters", "rope_scaling", "max_position_embeddings"]
KEYS += ["partial_rotary_factor", "query_pre_attn_scalar", "hidden_act", "no_rope_layers", "use_sliding_window"]


@settings(max_examples=150, deadline=None)
@example("gemma3_text", {"query_pre_attn_scalar": 0})
@example("gemma3_text", {"query_pre_attn_scalar": -4.0})
@example("llama", {"rope_theta": 0})
@given(
    st.sampled_from(["llama", "qwen2", "gemma3_text", "phi3", "smollm3", "olmo2"]),
    st.dictionaries(st.sampled_from(KEYS), ANY),
)
def test_whatever_a_config_says_it_is_a_shape_or_a_sentence(family: str, said: dict[str, object]) -> None:
    sane: dict[str, object] = {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "vocab_size": 100,
        "rms_norm_eps": 1e-5,
    }
    with suppress(ModelError):
        shape_of(Config({**sane, **said, "model_type": family}, "config.json"))


def test_a_sequence_at_fault_ends_alone(tiny_folder: Path) -> None:
    stage = load_ort(tiny_folder, 0, 6)
    for name in ("good", "wrong id", "elsewhere"):
        stage.open(name, 0, 6, Sampling(), 20)
    batch = batch_of(
        ("wrong id", 0, [5, 9999], "token"),
        ("good", 0, [5, 6], "token"),
        ("elsewhere", 3, [5], "token"),
        ("unknown", 0, [5], "token"),
    )
    problems = [slot.problem for slot in stage.run(batch).slots]
    assert "token ids from 5 to 9999; the vocabulary has 128" in problems[0]
    assert problems[1] == ""
    assert "a step at position 3, but the KV cache holds 0 tokens" in problems[2]
    assert "open it first" in problems[3]


def test_rows_that_are_not_numbers_end_their_own_sequence(tiny_folder: Path) -> None:
    stage = load_ort(tiny_folder, 3, 6)
    stage.open("bad", 3, 6, Sampling(), 20)
    stage.open("good", 3, 6, Sampling(), 20)
    rows = np.random.default_rng(0).standard_normal((2, 64)).astype(np.float32)
    rows[0] = np.nan
    result = stage.run(Batch((Slot("bad", 0, 1, "token"), Slot("good", 0, 1, "token")), rows.tobytes(), "float32"))
    assert "maximum nan" in result.slots[0].problem
    assert len(result.slots[1].tokens) == 1
    (after,) = stage.run(Batch((Slot("bad", 1, 1, "token"),), rows[1:].tobytes(), "float32")).slots
    assert "cannot go on" in after.problem
    stage.rewind("bad", 0)
    (again,) = stage.run(Batch((Slot("bad", 0, 1, "token"),), rows[1:].tobytes(), "float32")).slots
    assert again.tokens == result.slots[1].tokens


def test_what_no_sequence_of_a_stage_can_do_is_refused_as_a_whole(tiny_folder: Path) -> None:
    stage = load_ort(tiny_folder, 2, 4)
    stage.open("a", 2, 4, None, 20)
    stage.open("b", 2, 3, None, 20)
    one = np.zeros((2, 64), np.float32).tobytes()
    with pytest.raises(EngineError, match="token ids for layers that do not begin the model"):
        stage.run(ids_at(Slot("a", 0, 1), ids=[5]))
    with pytest.raises(EngineError, match="several ranges of layers"):
        stage.run(Batch((Slot("a", 0, 1), Slot("b", 0, 1)), one, "float32"))
    with pytest.raises(EngineError, match="512 bytes for 1 rows, 256 expected"):
        stage.run(Batch((Slot("a", 0, 1),), one, "float32"))
    with pytest.raises(EngineError, match="at most 8192 may be"):
        stage.run(Batch((Slot("a", 0, 8193),), b"", "float32"))
    (slot,) = stage.run(Batch((Slot("a", 0, 1, "token"),), one[:256], "float32")).slots
    assert "that does not reach the model's last layer" in slot.problem
    for start, end in ((1, 3), (3, 5), (3, 3)):
        with pytest.raises(EngineError, match="but the stage holds 2–3"):
            stage.open("c", start, end, None, 1)
    with pytest.raises(EngineError, match="has its room in the KV cache already"):
        stage.open("a", 2, 4, None, 1)
    stage.drop()
    with pytest.raises(EngineError, match="the stage is dropped"):
        stage.open("c", 2, 4, None, 1)
    stage.close("a")
    stage.drop()


def test_a_load_that_is_given_up_leaves_nothing(tiny_folder: Path) -> None:
    store = PartStore()
    progress = load_stage(StageSpec(str(tiny_folder), 0, 6, "float32", 1 << 20, "ort"), store)
    next(progress)
    progress.close()
    assert store.memory.coming_bytes == 0
    load_ort(tiny_folder, 0, 6, store=store)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rows_cross_the_edge_in_the_dtype_of_the_plan(tiny_folder: Path, dtype: Any) -> None:
    wide, narrow = load_ort(tiny_folder, 0, 3), load_ort(tiny_folder, 0, 3, dtype=dtype)
    after = load_ort(tiny_folder, 3, 6, dtype=dtype)
    given = []
    for stage in (wide, narrow):
        stage.open("s", 0, 3, None, 10)
        given.append(stage.run(batch_of(("s", 0, [5, 6, 7], "nothing"))).data)
    exact = np.frombuffer(given[0], np.float32)
    if dtype == "float16":
        rounded = np.frombuffer(given[1], np.float16).astype(np.float32)
    else:
        rounded = (np.frombuffer(given[1], np.uint16).astype(np.uint32) << 16).view(np.float32)
    assert np.abs(rounded - exact).max() <= np.abs(exact).max() * 2.0**-8
    after.open("s", 3, 6, Sampling(), 10)
    assert len(after.run(Batch((Slot("s", 0, 3, "token"),), given[1], dtype)).slots[0].tokens) == 1
