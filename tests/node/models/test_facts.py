"""Sizes from config.json agree with transformers' own models; bad values name file and key."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.errors import DamagedModel
from node.models import held_bits, identify, prepare, read_facts
from node.models.held import stored_weights
from node.models.progress import ignore_progress
from node.plan.costs.model import ModelCost, cost_of_config, cost_of_facts
from node.plan.costs.presets import CONFIGS
from node.wire.models import ModelFacts

SMALL = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
}


def write(folder: Path, values: object) -> Path:
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_default_model(default_model_folder: Path) -> None:
    facts = read_facts(default_model_folder, "float32")
    assert (facts.layers, facts.hidden_size, facts.vocab_size, facts.context_tokens) == (30, 576, 49152, 8192)
    assert facts.embedding_bytes == 49152 * 576 * 4
    assert facts.head_bytes == (49152 + 1) * 576 * 4  # tied: the last stage needs the embedding too
    assert facts.kv_bytes_per_token_layer == 2 * 3 * 64 * 4
    stored = stored_weights(default_model_folder)
    weights = 4 * sum(stored.values())  # in float32, whatever they are stored as
    assert facts.layers * facts.layer_bytes + facts.head_bytes == pytest.approx(weights, rel=0.01)
    assert read_facts(default_model_folder, "bfloat16").layer_bytes * 2 == facts.layer_bytes


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("Llama", {}),
        ("Qwen2", {}),
        ("Qwen3", {}),
        ("Mistral", {}),
        ("Qwen3Moe", {"num_experts": 8, "moe_intermediate_size": 32, "num_experts_per_tok": 2}),
        ("Mixtral", {"num_local_experts": 4}),
        (
            "DeepseekV3",
            {
                "n_routed_experts": 8,
                "moe_intermediate_size": 64,
                "n_shared_experts": 1,
                "first_k_dense_replace": 1,
                "kv_lora_rank": 32,
                "q_lora_rank": 48,
                "qk_rope_head_dim": 8,
                "qk_nope_head_dim": 16,
                "v_head_dim": 16,
                "n_group": 1,
                "topk_group": 1,
                "num_experts_per_tok": 2,
            },
        ),
    ],
)
def test_families_have_the_sizes_of_transformers(tmp_path: Path, name: str, more: dict[str, Any]) -> None:
    config = getattr(transformers, f"{name}Config")(**SMALL, **more)
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    facts = read_facts(tmp_path, "bfloat16")
    largest = max(parameters(layer) for layer in model.model.layers)
    assert facts.layer_bytes == pytest.approx(2 * largest, rel=0.01)
    assert facts.embedding_bytes == 2 * parameters(model.model.embed_tokens)
    assert facts.head_bytes == 2 * (parameters(model.lm_head) + parameters(model.model.norm))


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_plan_knows_of_a_model_what_its_config_says(tmp_path: Path, name: str) -> None:
    config = {key: value for key, value in CONFIGS[name].items() if key != "quantization_config"}
    whole = cost_of_config(name, config, weight_bytes=2.0)
    live = cost_of_facts(name, read_facts(write(tmp_path, config), "bfloat16"), 2.0)

    def figures(cost: ModelCost) -> dict[str, float]:
        ends = [cost.ends_bytes(first=first, last=last) for first in (False, True) for last in (False, True)]
        return {
            "total": cost.total_bytes,
            "layer": cost.layer_bytes,
            "head": cost.head_flops,
            **{f"ends {index}": size for index, size in enumerate(ends)},
            **{f"cache at {tokens}": cost.kv_layer_bytes(tokens) for tokens in (100, 10_000)},
            **{f"read by {users}": cost.layer_read_bytes(users, 1, 4096) for users in (1, 8)},
            **{f"FLOPs of {users}": cost.layer_flops(users, 1, 4096) for users in (1, 8)},
            **{f"FLOPs of {tokens} tokens": cost.layer_flops(1, tokens, tokens // 2) for tokens in (512, 8192)},
        }

    assert figures(live) == pytest.approx(figures(whole), rel=0.02)


def test_the_cache_of_latent_attention_is_the_compressed_one(tmp_path: Path) -> None:
    values = {**SMALL, "kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16}
    assert read_facts(write(tmp_path, values), "bfloat16").kv_bytes_per_token_layer == (32 + 8) * 2


def test_the_language_part_of_a_multimodal_config_counts(tmp_path: Path) -> None:
    assert read_facts(write(tmp_path, {"model_type": "x", "text_config": SMALL}), "float32").layers == 3


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
@pytest.mark.parametrize("value", [None, 0, -1, "64", 1.5, True, [64], 10**12])
def test_a_bad_value_names_file_and_key(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(DamagedModel, match=rf'config\.json: the key "{key}" is '):
        read_facts(write(tmp_path, {**SMALL, key: value}), "float32")


def test_too_many_layers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DamagedModel, match="describes no model"):
        read_facts(write(tmp_path, {**SMALL, "num_hidden_layers": 20_000}), "float32")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"num_experts": 4, "num_experts_per_tok": 5}, "top_k"),
        ({"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 0}, "moe_intermediate_size"),
        ({"sliding_window": -1}, "sliding_window"),
    ],
)
def test_a_mixture_or_a_window_that_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(DamagedModel, match=field):
        read_facts(write(tmp_path, {**SMALL, **changes}), "float32")


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "\x00", '{"text_config": 3}'])
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(DamagedModel, match=r"config\.json"):
        read_facts(tmp_path, "float32")


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DamagedModel, match=r"config\.json: cannot be read"):
        read_facts(tmp_path, "float32")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(
    changes=st.dictionaries(
        st.sampled_from([*SMALL, "kv_lora_rank", "num_experts", "mlp_bias", "sliding_window", "layer_types"]),
        json_values,
    )
)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_config_gives_facts_or_is_damaged(tmp_path: Path, changes: dict[str, object]) -> None:
    write(tmp_path, {**SMALL, **changes})
    with suppress(DamagedModel):
        assert read_facts(tmp_path, "float32").layers > 0


def test_weights_are_counted_as_what_the_installed_backends_hold(
    make_gguf: Callable[..., Path],
    make_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = prepare(identify(str(make_gguf(kind="Q4_1")), tmp_path / "m"), tmp_path / "m", None, ignore_progress)
    held = partial(held_bits, folder, "float32")
    assert held("auto", ("ort",)) == 0.0  # a small model's become float32
    monkeypatch.setattr("node.weights.small.SMALL_BYTES", 0)
    assert held("auto", ("llamacpp",)) == 5.0  # the file's own 20 bytes for 32
    assert held("auto", ("llamacpp", "ort")) == 8.0
    assert held("auto", ("llamacpp", "ort", "torch")) == 0.0  # as many as float32 has, where torch may be chosen
    assert held("none", ("ort",)) == 0.0
    assert (held("int8", ("ort",)), held("int4", ("ort", "torch"))) == (11.0, 7.0)
    assert held_bits(folder, "bfloat16", "auto", ("ort",)) == 0.0
    assert held_bits(make_folder(), "float32", "auto", ("ort", "llamacpp")) == 0.0
    assert held_bits(tmp_path, "float32", "auto", ("ort",)) == 0.0  # nothing there that could be read
    assert held_bits(folder, "float32", "auto", ()) == 0.0


def test_small_weights_cost_less_memory_and_as_much_computing(default_model_folder: Path) -> None:
    full = cost_of_facts("m", read_facts(default_model_folder, "float32"), 4.0)
    small = cost_of_facts("m", read_facts(default_model_folder, "float32", 8.0), 4.0)
    assert small.total_bytes == pytest.approx(full.total_bytes / 4, rel=1e-6)
    assert small.kv_layer_bytes(1000) == full.kv_layer_bytes(1000)
    assert small.dense_params == full.dense_params


@pytest.mark.parametrize("bits", [0.5, -1.0, 65.0])
def test_a_plan_cannot_tell_absurd_widths(default_model_folder: Path, bits: float) -> None:
    facts = msgspec.to_builtins(read_facts(default_model_folder, "float32"))
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({**facts, "weight_bits": bits}, ModelFacts)
