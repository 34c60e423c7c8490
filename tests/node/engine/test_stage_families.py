"""Ranges of tiny random models of several families against the whole model, straight from the library."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.node.engine.driving import TINY, load_here, save_tiny

Family = Callable[[], Any]
GEMMA_LAYERS = ["sliding_attention", "sliding_attention", "full_attention"] * 2
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}

FAMILIES: dict[str, Family] = {
    "llama": lambda: transformers.LlamaConfig(**TINY, rope_parameters=LLAMA3_ROPE),
    "llama tied": lambda: transformers.LlamaConfig(**{**TINY, "tie_word_embeddings": True}),
    "qwen2": lambda: transformers.Qwen2Config(**TINY, use_sliding_window=False),
    "qwen3 tied": lambda: transformers.Qwen3Config(**{**TINY, "tie_word_embeddings": True}, head_dim=16),
    "mistral, sliding": lambda: transformers.MistralConfig(**TINY, sliding_window=8),
    "gemma3 tied": lambda: transformers.Gemma3TextConfig(
        **{**TINY, "tie_word_embeddings": True},
        head_dim=16,
        sliding_window=8,
        query_pre_attn_scalar=16,
        layer_types=GEMMA_LAYERS,
    ),
    "olmo2": lambda: transformers.Olmo2Config(**TINY),
    "phi3": lambda: transformers.Phi3Config(**TINY),
    # Experts joined as in memory, which is how the library saves them on request.
    "qwen3 moe": lambda: transformers.Qwen3MoeConfig(**TINY, **EXPERTS, num_experts=8, mlp_only_layers=[1]),
    "gpt-oss": lambda: transformers.GptOssConfig(
        **TINY, head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=8
    ),
}
PROMPT = [int(i) for i in torch.randint(3, 128, (20,), generator=torch.Generator().manual_seed(5))]


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("family")
    return folder, save_tiny(FAMILIES[request.param](), folder)


@pytest.mark.parametrize("cuts", [[0, 6], [0, 3, 6], [0, 1, 4, 6]])
def test_ranges_give_the_logits_of_the_whole_model(checkpoint: tuple[Path, Any], cuts: list[int]) -> None:
    """Prefill of 20 tokens, past the sliding windows of 8, then 8 decode steps."""
    folder, whole = checkpoint
    stages = [load_here(folder, start, end) for start, end in pairwise(cuts)]
    reference = transformers.DynamicCache(config=whole.config)
    caches = [stage.new_cache() for stage in stages]
    ids, position = PROMPT, 0
    for _ in range(9):
        with torch.inference_mode():
            places = torch.arange(position, position + len(ids))[None]
            expected = whole(
                input_ids=torch.tensor([ids]), position_ids=places, past_key_values=reference, use_cache=True
            ).logits[0, -1]
        rows = torch.tensor(ids)
        for stage, cache in zip(stages, caches, strict=True):
            rows = stage.forward(rows, cache, position, want_logits=stage.last)
        assert torch.allclose(rows, expected, rtol=0, atol=1e-5)
        position += len(ids)
        ids = [int(expected.argmax())]


def test_only_the_ranges_weights_are_in_memory(checkpoint: tuple[Path, Any]) -> None:
    folder, whole = checkpoint
    model = whole.model
    embedding, norm = model.embed_tokens.weight.nbytes, model.norm.weight.nbytes
    layers = [sum(p.nbytes for p in layer.parameters()) for layer in model.layers]

    def bytes_of(start: int, end: int) -> int:
        stage = load_here(folder, start, end)
        parameters = {p.data_ptr(): p.nbytes for p in stage.model.parameters()}
        assert sum(parameters.values()) == stage.info.weight_bytes
        return stage.info.weight_bytes

    assert bytes_of(0, 2) == embedding + sum(layers[:2])
    assert bytes_of(2, 4) == sum(layers[2:4])
    assert bytes_of(4, 6) == sum(layers[4:]) + norm + embedding  # the head has the embedding's shape
    tied = whole.config.tie_word_embeddings
    assert bytes_of(0, 6) == sum(layers) + norm + embedding * (1 if tied else 2)
