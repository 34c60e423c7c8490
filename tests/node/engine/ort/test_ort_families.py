"""Whole tiny random models of each family on onnxruntime against the library's own torch code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tests.node.engine.driving import TINY, save_tiny
from tests.node.engine.ort.driving import cut, load_ort, logits_of, open_all

PROMPT = [int(i) for i in torch.randint(3, 128, (20,), generator=torch.Generator().manual_seed(5))]
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
TIED = {**TINY, "tie_word_embeddings": True}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 24,
    "v_head_dim": 20,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 4,
    "topk_group": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 2,
    "routed_scaling_factor": 2.5,
}
FAMILIES: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**TINY, rope_parameters=LLAMA3_ROPE),
    "llama tied, biases": lambda: transformers.LlamaConfig(**TIED, attention_bias=True, mlp_bias=True),
    "llama, linear": lambda: transformers.LlamaConfig(
        **TINY, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    ),
    "llama, yarn": lambda: transformers.LlamaConfig(**TINY, rope_parameters=YARN_ROPE),
    "qwen2": lambda: transformers.Qwen2Config(**TINY, use_sliding_window=False),
    "qwen2, yarn": lambda: transformers.Qwen2Config(**TINY, rope_parameters=YARN_ROPE),
    "qwen2, sliding": lambda: transformers.Qwen2Config(
        **TINY, use_sliding_window=True, sliding_window=8, max_window_layers=3
    ),
    "qwen3 tied": lambda: transformers.Qwen3Config(**TIED, head_dim=32),
    "mistral, sliding": lambda: transformers.MistralConfig(**TINY, sliding_window=8),
    "mistral": lambda: transformers.MistralConfig(**TINY, sliding_window=None, head_dim=32),
    "smollm3": lambda: transformers.SmolLM3Config(**TINY),
    "phi3": lambda: transformers.Phi3Config(**TINY),
    "phi3, partial, longrope": lambda: transformers.Phi3Config(
        **{**TINY, "num_attention_heads": 2, "num_key_value_heads": 1},
        original_max_position_embeddings=64,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.5,
            "short_factor": [1.0, 1.5, 2.0, 4.0, 1.0, 1.2, 1.4, 1.6],
            "long_factor": [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0],
            "original_max_position_embeddings": 64,
        },
    ),
    "gemma2": lambda: transformers.Gemma2Config(
        **TIED, head_dim=16, sliding_window=8, query_pre_attn_scalar=32, attn_logit_softcapping=3.0
    ),
    "gemma3 tied": lambda: transformers.Gemma3TextConfig(
        **TIED,
        head_dim=16,
        sliding_window=8,
        query_pre_attn_scalar=16,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
    ),
    "olmo2": lambda: transformers.Olmo2Config(**TINY),
    "qwen3 moe": lambda: transformers.Qwen3MoeConfig(**TINY, **EXPERTS, num_experts=8, mlp_only_layers=[1]),
    "qwen3 moe, normalised": lambda: transformers.Qwen3MoeConfig(**TINY, **EXPERTS, num_experts=8, norm_topk_prob=True),
    "glm4 moe": lambda: transformers.Glm4MoeConfig(
        **TINY, **{**EXPERTS, "head_dim": 32}, n_routed_experts=8, routed_scaling_factor=1.5, use_qk_norm=True
    ),
    "glm4 moe, groups": lambda: transformers.Glm4MoeConfig(
        **TINY,
        **{**EXPERTS, "head_dim": 32},
        n_routed_experts=8,
        n_group=4,
        topk_group=2,
        norm_topk_prob=False,
        first_k_dense_replace=2,
    ),
    "minimax m2": lambda: transformers.MiniMaxM2Config(
        **TINY, head_dim=32, rotary_dim=16, num_local_experts=8, num_experts_per_tok=2
    ),
    "deepseek v3": lambda: transformers.DeepseekV3Config(**{**TINY, **LATENT}, q_lora_rank=32),
    "deepseek v3, yarn, no query rank": lambda: transformers.DeepseekV3Config(
        **{**TINY, **LATENT}, q_lora_rank=None, rope_parameters={**YARN_ROPE, "mscale": 1.0, "mscale_all_dim": 0.8}
    ),
    "gpt-oss": lambda: transformers.GptOssConfig(
        **TINY, head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=8
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("family")
    return folder, save_tiny(FAMILIES[request.param](), folder)


@pytest.mark.parametrize("cuts", [[0, 6], [0, 1, 4, 6]])
def test_a_family_gives_the_librarys_logits(checkpoint: tuple[Path, Any], cuts: list[int]) -> None:
    """Prefill of 20 tokens, past the sliding windows of 8, a chunk of 5, then 6 decode steps."""
    folder, whole = checkpoint
    stages = cut(folder, cuts)
    open_all(stages, "s")
    reference = transformers.DynamicCache(config=whole.config)
    position, ids = 0, PROMPT
    for number in range(8):
        with torch.inference_mode():
            places = torch.arange(position, position + len(ids))[None]
            expected = whole(
                input_ids=torch.tensor([ids]), position_ids=places, past_key_values=reference, use_cache=True
            ).logits[0, -1]
        found = logits_of(stages, ids, position)
        assert np.abs(found - expected.numpy()).max() < 2e-5 * max(1.0, float(expected.abs().max()))
        position += len(ids)
        ids = [7, 8, 9, 10, 11] if number == 0 else [int(expected.argmax())]


def test_a_range_is_told_by_its_config_alone(checkpoint: tuple[Path, Any]) -> None:
    folder, _ = checkpoint
    stage = load_ort(folder, 2, 4)
    assert (stage.layers, stage.info.hidden_size, stage.info.head_ms) == ((2, 4), 64, None)
    assert stage.info.kv_bytes_per_token * 3 == load_ort(folder, 0, 6).info.kv_bytes_per_token


def test_a_family_without_a_graph_is_refused_by_name(tmp_path: Path) -> None:
    from node.errors import LoadFailed

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(LoadFailed, match="the family mamba with onnxruntime is not supported"):
        load_ort(tmp_path, 0, 1)
