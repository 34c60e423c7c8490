"""Ranges of tiny random models in MLX: split anywhere they give the whole model's bits, and transformers' numbers."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from node.errors import LoadFailed
from tests.node.engine.driving import TINY, save_tiny
from tests.node.engine.test_stage_families import FAMILIES, PROMPT

pytest.importorskip("mlx.core", reason="MLX is not installed: pip install 'parallax-tui[mlx]'")

from tests.node.engine.mlx.mlx_driving import load_mlx, logits_of

SERVED = ["llama", "llama tied", "qwen2", "qwen3 tied", "gemma3 tied", "olmo2", "qwen3 moe", "phi3"]
STEPS = [17, 90, 3, 44]
CUTS = ([0, 3, 6], [0, 1, 4, 6])


@pytest.fixture(scope="module", params=SERVED)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("mlx")
    config = FAMILIES[request.param]()
    return folder, published(config, folder)


def published(config: Any, folder: Path) -> Any:
    """A tiny model as its family is published: experts one by one."""
    model = save_tiny(config, folder)
    if getattr(config, "num_experts", 0):
        model.save_pretrained(folder)
    return model


def test_a_chain_of_ranges_gives_the_bits_of_the_whole(checkpoint: tuple[Path, Any]) -> None:
    folder, _ = checkpoint
    whole = logits_of([load_mlx(folder, 0, 6)], PROMPT, STEPS)
    for cuts in CUTS:
        chain = [load_mlx(folder, start, end) for start, end in pairwise(cuts)]
        assert np.array_equal(logits_of(chain, PROMPT, STEPS), whole), cuts


def test_it_gives_the_numbers_that_transformers_gives(checkpoint: tuple[Path, Any]) -> None:
    folder, model = checkpoint
    given = logits_of([load_mlx(folder, 0, 6)], PROMPT, STEPS)
    with torch.inference_mode():
        expected = model(torch.tensor([[*PROMPT, *STEPS]])).logits[0, len(PROMPT) - 1 :].numpy()
    assert np.allclose(given, expected, rtol=0, atol=2e-4 * float(np.abs(expected).max()))


def test_a_range_holds_its_own_weights_alone(checkpoint: tuple[Path, Any]) -> None:
    folder, model = checkpoint
    layers = [sum(p.nbytes for p in layer.parameters()) for layer in model.model.layers]
    assert load_mlx(folder, 2, 4).info.weight_bytes == sum(layers[2:4])


REFUSED = {
    "mistral, sliding": "mlx-lm's mistral has no sliding windows, which this model has",
    "gpt2": "mlx-lm's gpt2 is not laid out as embedding, layers, norm and head",
    "mamba": "mlx-lm's mamba is not laid out as embedding, layers, norm and head",
    "no such": "mlx-lm has no model no_such",
}


@pytest.mark.parametrize("family", REFUSED)
def test_what_cannot_be_split_is_refused_by_name(family: str, tmp_path: Path) -> None:
    if family == "gpt2":
        transformers.GPT2Config(
            n_embd=32, n_layer=2, n_head=2, n_ctx=64, vocab_size=64, bos_token_id=1, eos_token_id=2
        ).save_pretrained(tmp_path)
    elif family == "mamba":
        transformers.MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=64).save_pretrained(tmp_path)
    elif family == "no such":
        (tmp_path / "config.json").write_text('{"model_type": "no_such"}')
    else:
        transformers.MistralConfig(**TINY, sliding_window=8).save_pretrained(tmp_path)
    with pytest.raises(LoadFailed, match=REFUSED[family]):
        load_mlx(tmp_path, 0, 1)
