"""Ranges of tiny random models of several families against the whole model, straight from the library."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from node.errors import EngineError
from tests.node.engine.driving import TINY, batch_of, load_here, open_here, rows_of, save_tiny, step_here

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
    caches = [stage.whole.new_cache() for stage in stages]
    ids, position = PROMPT, 0
    for _ in range(9):
        with torch.inference_mode():
            places = torch.arange(position, position + len(ids))[None]
            expected = whole(
                input_ids=torch.tensor([ids]), position_ids=places, past_key_values=reference, use_cache=True
            ).logits[0, -1]
        rows = torch.tensor(ids)
        for stage, cache in zip(stages, caches, strict=True):
            rows = stage.whole.forward(rows, cache, position, logits=int(stage.whole.last))
        assert torch.allclose(rows[-1], expected, rtol=0, atol=1e-5)
        position += len(ids)
        ids = [int(expected.argmax())]


def test_only_the_ranges_weights_are_in_memory(checkpoint: tuple[Path, Any]) -> None:
    folder, whole = checkpoint
    model = whole.model
    embedding, norm = model.embed_tokens.weight.nbytes, model.norm.weight.nbytes
    layers = [sum(p.nbytes for p in layer.parameters()) for layer in model.layers]

    def bytes_of(start: int, end: int) -> int:
        stage = load_here(folder, start, end)
        parameters = {p.data_ptr(): p.nbytes for p in stage.whole.model.parameters()}
        assert sum(parameters.values()) == stage.info.weight_bytes
        return stage.info.weight_bytes

    assert bytes_of(0, 2) == embedding + sum(layers[:2])
    assert bytes_of(2, 4) == sum(layers[2:4])
    assert bytes_of(4, 6) == sum(layers[4:]) + norm + embedding  # the head has the embedding's shape
    tied = whole.config.tie_word_embeddings
    assert bytes_of(0, 6) == sum(layers) + norm + embedding * (1 if tied else 2)


WINDOWED = {"mistral, sliding", "gemma3 tied", "gpt-oss"}


def test_only_families_that_keep_all_keys_and_values_go_back(
    checkpoint: tuple[Path, Any], request: pytest.FixtureRequest
) -> None:
    folder, _ = checkpoint
    stage = load_here(folder, 0, 3)
    family = request.node.callspec.params["checkpoint"]
    assert stage.info.can_rewind == (family not in WINDOWED)
    open_here([stage], "s", 20)
    stage.run(batch_of(("s", 0, PROMPT[:6], "nothing")))
    if stage.info.can_rewind:
        stage.rewind("s", 3)
        right = bytes(stage.run(batch_of(("s", 3, PROMPT[3:6], "nothing"))).data)
        stage.rewind("s", 3)
        stage.run(batch_of(("s", 3, [99, 98], "nothing")))
        stage.rewind("s", 3)
        assert bytes(stage.run(batch_of(("s", 3, PROMPT[3:6], "nothing"))).data) == right
    else:
        with pytest.raises(EngineError, match="layers that keep a window or a state"):
            stage.rewind("s", 3)
    stage.rewind("s", 0)
    assert stage.run(batch_of(("s", 0, PROMPT[:6], "nothing"))).slots[0].problem == ""


def test_some_layers_of_a_stage_compute_as_a_stage_of_those_does(checkpoint: tuple[Path, Any]) -> None:
    """Their kinds (sliding or full, dense or experts) depend on their place in the whole model."""
    folder, _ = checkpoint
    whole, middle = load_here(folder, 0, 6), load_here(folder, 1, 4)
    rows = torch.randn(12, 64, generator=torch.Generator().manual_seed(3)).numpy().tobytes()
    for stage in (whole, middle):
        stage.open("s", 1, 4, None, 20)
    batch = rows_of("s", 0, rows, 12)
    assert bytes(whole.run(batch).data) == bytes(middle.run(batch).data)


SHORT, LONG = [1.0] * 8, [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]
LENGTH_DEPENDENT: dict[str, Family] = {
    "dynamic": lambda: transformers.LlamaConfig(
        **{**TINY, "max_position_embeddings": 32},
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    ),
    "longrope": lambda: transformers.Phi3Config(
        **TINY,
        original_max_position_embeddings=32,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": SHORT,
            "long_factor": LONG,
            "original_max_position_embeddings": 32,
        },
    ),
}


@pytest.mark.parametrize("family", LENGTH_DEPENDENT)
def test_a_rotary_table_that_depends_on_the_texts_length_serves_up_to_where_it_changes(
    family: str, tmp_path: Path
) -> None:
    """Beyond, a prompt in chunks would be turned by other tables than the same prompt in one piece."""
    whole = save_tiny(LENGTH_DEPENDENT[family](), tmp_path)
    prompt = (PROMPT * 2)[:32]
    with torch.inference_mode():
        expected = whole(input_ids=torch.tensor([prompt])).logits[0].argmax(-1).tolist()
        longer = torch.tensor([(PROMPT * 4)[:64]])
        begins = whole.model(input_ids=longer[:, :32]).last_hidden_state[0]
        begins_otherwise = whole.model(input_ids=longer).last_hidden_state[0, :32]
    assert not torch.allclose(begins_otherwise, begins, atol=1e-3), "this is what must not happen"
    stages = [load_here(tmp_path, 0, 3), load_here(tmp_path, 3, 6)]
    for chunk in (32, 5):
        open_here(stages, "s", 32)
        tokens: list[int] = []
        for begin in range(0, 32, chunk):
            tokens += step_here(stages, "s", begin, prompt[begin : begin + chunk], "each")
        assert tokens == expected
        for stage in stages:
            stage.close("s")
    for stage in stages:
        with pytest.raises(EngineError, match="rotary table depends on the length of the whole text beyond 32 tokens"):
            open_here([stage], "s", 33)


def test_other_rotary_tables_serve_any_length(checkpoint: tuple[Path, Any]) -> None:
    folder, _ = checkpoint
    open_here([load_here(folder, 0, 2)], "s", 10_000)
