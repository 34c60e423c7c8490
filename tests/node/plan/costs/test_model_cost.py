"""Bytes, FLOPs and cache of models, against published figures and the models' known sizes."""

from __future__ import annotations

import math
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from node.errors import BadPool
from node.plan.costs.model import cost_of_config, cost_of_facts
from node.plan.costs.presets import CONFIGS, preset
from node.plan.costs.roofline import OVERHEAD_MS, decode_cost, fitted_efficiency, layer_capacity, prefill_cost
from node.wire.models import ModelFacts
from tests.bench.published_cost import published_layer_flops
from tests.fakes.pools import CONFIG, GIB, KINDS, machine, mixture


def test_quantities_of_the_mixture() -> None:
    model = mixture(36)
    assert model.layer_bytes == 3_211_591_680
    assert model.embedding_bytes == 1_158_266_880
    assert model.kv_token_bytes == 2048
    assert model.head_flops == 1_158_266_880


@pytest.mark.parametrize(
    ("batch", "experts", "flops", "read_bytes"),
    [
        (1, 4, 285_327_360, 134_463_488),
        (2, 7, 869_253_120, 217_501_696),
        (4, 15, 3_331_031_040, 433_344_512),
        (8, 28, 11_837_767_680, 790_380_544),
        (16, 50, 41_193_308_160, 1_404_919_808),
    ],
)
def test_a_step_of_a_batch(batch: int, experts: int, flops: int, read_bytes: int) -> None:
    model = mixture(36)
    assert model.expected_experts(batch) == experts
    assert model.layer_read_bytes(batch, 1, 4096) == read_bytes
    assert published_layer_flops(model, batch, 1, 4096) == flops
    assert model.layer_flops(batch, 1, 4096) == batch * model.layer_flops(1, 1, 4096)


def test_an_idle_node_costs_what_the_next_request_would() -> None:
    model = mixture(36)
    assert model.layer_read_bytes(0, 1, 4096) == model.layer_read_bytes(1, 1, 4096)
    assert model.layer_flops(0, 1, 4096) == model.layer_flops(1, 1, 4096) > 0
    assert decode_cost(model, 0, 4096).layer_ms(machine(0, "A")) > OVERHEAD_MS


CAPACITIES = {
    16: (2, 2, 2, 1), 20: (3, 2, 2, 2), 24: (4, 3, 3, 3), 32: (5, 4, 4, 4), 40: (6, 6, 6, 5), 48: (8, 7, 7, 7),
    64: (10, 10, 10, 9), 80: (13, 13, 13, 12), 96: (16, 15, 15, 15), 100: (16, 16, 16, 15), 128: (21, 21, 21, 20),
    138: (23, 22, 22, 22), 150: (25, 24, 24, 24), 192: (32, 31, 31, 31), 400: (66, 66, 66, 66),
}  # fmt: skip


@pytest.mark.parametrize(("gigabytes", "expected"), CAPACITIES.items())
def test_layers_that_fit(gigabytes: int, expected: tuple[int, ...]) -> None:
    model = mixture(100)
    memory = int(gigabytes * GIB * 0.5)
    ends = [(False, False), (True, False), (False, True), (True, True)]
    assert tuple(layer_capacity(model, memory, first=f, last=h) for f, h in ends) == expected


@pytest.mark.parametrize(("gigabytes", "layers", "fits"), [(62.0, 10, 9), (80.0, 13, 12), (121.8, 20, 19)])
def test_one_node_must_hold_both_ends(gigabytes: float, layers: int, fits: int) -> None:
    assert layer_capacity(mixture(layers), int(gigabytes * GIB * 0.5), first=True, last=True) == fits


def test_cache_room_is_taken_from_the_layers() -> None:
    model = mixture(36)
    memory = 13 * model.layer_bytes
    assert layer_capacity(model, memory) == 13
    assert layer_capacity(model, memory, context=4096, sequences=16) == 12


def test_keys_and_values_of_different_widths() -> None:
    config: dict[str, object] = {
        "hidden_size": 6144, "intermediate_size": 12288, "num_hidden_layers": 78, "num_attention_heads": 64,
        "num_key_value_heads": 64, "head_dim": 64, "qk_nope_head_dim": 192, "qk_rope_head_dim": 64, "v_head_dim": 256,
        "vocab_size": 154880,
    }  # fmt: skip
    assert cost_of_config("glm-5.1", config).kv_token_bytes == 65_536


def test_latent_attention_keeps_one_vector_or_all_heads() -> None:
    config = CONFIGS["deepseek-v3"]
    assert cost_of_config("v3", config).kv_token_bytes == 2 * (512 + 64)
    assert cost_of_config("v3", config, latent_cache=False).kv_token_bytes == 2 * 128 * (128 + 64 + 128)


def test_windows_bound_the_cache() -> None:
    model = preset("gpt-oss-120b")
    assert model is not None
    assert model.windowed_layers == 18
    assert model.kv_layer_bytes(100) == 100 * model.kv_token_bytes
    assert model.kv_layer_bytes(8192) == model.kv_token_bytes * (8192 + 128) // 2


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("llama-3.1-8b", 8.03), ("llama-3.3-70b", 70.6), ("llama-3.1-405b", 406), ("qwen3-0.6b", 0.6),
        ("qwen3-8b", 8.2), ("qwen3-30b-a3b", 30.5), ("qwen3-235b-a22b", 235), ("deepseek-v3", 671),
        ("deepseek-r1", 671), ("minimax-m2", 229), ("glm-4.6", 353), ("kimi-k2", 1026), ("gpt-oss-20b", 20.9),
        ("gpt-oss-120b", 117),
    ],
)  # fmt: skip
def test_presets_have_the_size_that_is_known_of_them(name: str, billions: float) -> None:
    model = preset(name)
    assert model is not None
    assert model.total_params / 1e9 == pytest.approx(billions, rel=0.01)


def test_presets_are_found_by_hub_ids() -> None:
    for asked in (
        "Qwen3-30B-A3B-Instruct-2507",
        "deepseek-ai/DeepSeek-V3-0324",
        "Meta-Llama-3.1-8B-Instruct",
        "zai-org/GLM-4.6",
        "openai/gpt-oss-120b",
        "meta-llama/Llama-3.1-8B-Instruct",
        "Qwen/Qwen3-8B",
    ):
        assert preset(asked) is not None
    assert preset("nobody/knows-this") is None
    assert preset("-instruct") is None
    plain, small = preset("zai-org/GLM-4.6"), preset("zai-org/GLM-4.6-FP8")
    assert plain is not None
    assert small is not None
    assert small.total_bytes == pytest.approx(plain.total_bytes / 2, rel=0.01)


def test_tied_ends_are_stored_once_where_one_node_has_both() -> None:
    model = preset("llama-3.2-1b")
    assert model is not None
    assert model.ends_bytes(first=True, last=True) == model.embedding_bytes
    assert model.total_bytes / GIB == pytest.approx(2.3, rel=0.01)


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden_size", 0), ("hidden_size", -5), ("vocab_size", None), ("num_hidden_layers", "36"), ("num_experts", 1.5)],
)
def test_a_config_that_cannot_be_names_the_key(key: str, value: object) -> None:
    with pytest.raises(BadPool) as caught:
        cost_of_config("bad", {**CONFIG, "num_hidden_layers": 36, key: value}, "models/bad/config.json")
    assert caught.value.key == key
    assert str(caught.value).startswith("models/bad/config.json")


def test_facts_of_a_plan_are_enough() -> None:
    facts = ModelFacts(30, 7_000_000, 56_000_000, 56_000_000, 768, 576, 49152, 8192)
    model = cost_of_facts("smollm2", facts, 2.0)
    assert model.layer_bytes == facts.layer_bytes
    assert model.kv_token_bytes == facts.kv_bytes_per_token_layer
    assert model.embedding_bytes == pytest.approx(facts.embedding_bytes, rel=1e-6)


LAYER_OF_EXPERTS = {"layer_bytes": 90_000_000, "experts": 8, "top_k": 2, "expert_bytes": 10_000_000}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({**LAYER_OF_EXPERTS, "top_k": 9}, "top_k"),
        ({**LAYER_OF_EXPERTS, "top_k": 0}, "top_k"),
        ({**LAYER_OF_EXPERTS, "expert_bytes": 0}, "expert_bytes"),
        ({**LAYER_OF_EXPERTS, "expert_bytes": 2**50}, "expert_bytes"),
        ({**LAYER_OF_EXPERTS, "dense_layers": 31, "dense_layer_bytes": 1}, "dense_layers"),
        ({**LAYER_OF_EXPERTS, "dense_layers": 3}, "dense_layer_bytes"),
        ({"top_k": 2}, "top_k"),
        ({"windowed_layers": 31, "window_tokens": 128}, "windowed_layers"),
        ({"windowed_layers": 3}, "window_tokens"),
    ],
)
def test_facts_that_cannot_be_are_refused_by_name(changes: dict[str, int], field: str) -> None:
    sizes = {"layers": 30, "layer_bytes": 7_000_000, "embedding_bytes": 56_000_000, "head_bytes": 56_000_000}
    sizes |= {"kv_bytes_per_token_layer": 768, "hidden_size": 576, "vocab_size": 49152, "context_tokens": 8192}
    with pytest.raises(msgspec.ValidationError, match=rf"facts\.{field} "):
        msgspec.convert({**sizes, **changes}, ModelFacts)


COUNT = st.integers(0, 2**53)


@given(
    layers=st.integers(1, 10_000),
    layer_bytes=COUNT,
    ends_bytes=COUNT,
    cache_bytes=COUNT,
    experts=st.integers(0, 100_000),
    dense_layers=st.integers(0, 100),
    score_width=COUNT,
)
def test_whatever_facts_the_wire_lets_through_can_be_reckoned_with(
    layers: int,
    layer_bytes: int,
    ends_bytes: int,
    cache_bytes: int,
    experts: int,
    dense_layers: int,
    score_width: int,
) -> None:
    facts = ModelFacts(layers, layer_bytes, ends_bytes, ends_bytes, cache_bytes, 1, 1, 10**8, score_width=score_width)
    with suppress(ValueError):
        facts = replace(
            facts,
            experts=experts,
            top_k=min(2, experts),
            expert_bytes=layer_bytes // max(1, experts),
            dense_layers=min(dense_layers, layers),
            dense_layer_bytes=layer_bytes // 2,
        )
    model = cost_of_facts("any", facts, 2.0)
    step = decode_cost(model, 3, 512)
    assert 0 <= step.layer_bytes < math.inf
    assert 0 <= step.layer_flops < math.inf
    assert 0 <= model.total_bytes < math.inf
    assert 0 <= layer_capacity(model, 2**34, first=True, last=True, context=512) <= model.layers


def test_decode_is_bound_by_memory_and_prefill_by_arithmetic() -> None:
    model = preset("llama-3.1-8b")
    assert model is not None
    step, prompt = decode_cost(model, 1, 512), prefill_cost(model, 2048)
    node = machine(0, "A")
    assert step.layer_bytes / node.bandwidth > step.layer_flops / node.flops
    assert prompt.layer_bytes / node.bandwidth < prompt.layer_flops / node.flops


def test_efficiency_is_fitted_to_what_was_measured() -> None:
    model = mixture(24)
    plain = machine(0, "B")
    ideal = decode_cost(model, 1, 512).layer_ms(plain, 1.0) - OVERHEAD_MS
    measured = type(plain)(plain.node_id, plain.memory_bytes, plain.bandwidth, plain.flops, layer_ms=((1, 4 * ideal),))
    efficiency = fitted_efficiency(model, measured)
    assert decode_cost(model, 1, 512).layer_ms(measured, efficiency) == pytest.approx(4 * ideal, rel=0.05)


def test_an_unmeasured_node_has_a_finite_time() -> None:
    model = mixture(24)
    node = type(machine(0, "A"))("new", 8 * GIB)
    assert 0 < decode_cost(model, 1, 4096).layer_ms(node) < 10_000
    assert set(KINDS) == set("ABCD")
