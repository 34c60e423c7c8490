"""What holds where a request does not say how to sample."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from node.models import DEFAULT_REF, ChatModel, fit_for_chat
from node.models.sampling import RecommendedSampling, recommend, recommended_sampling
from node.wire.models import ModelRef


def test_the_embedded_model_is_greedy_and_known_to_go_round(default_model_folder: Path) -> None:
    chat = fit_for_chat(DEFAULT_REF, ChatModel.load(default_model_folder))
    assert chat.recommended == RecommendedSampling(0.0, 1.0, 0)
    assert chat.goes_round
    other = fit_for_chat(ModelRef("other", "gguf:x", "0" * 64), ChatModel.load(default_model_folder))
    assert not other.goes_round


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, RecommendedSampling(1.0, 1.0, 0)),
        ({"do_sample": False, "temperature": 0.7}, RecommendedSampling(0.0)),
        ({"temperature": 0.6, "top_p": 0.95, "top_k": 20}, RecommendedSampling(0.6, 0.95, 20)),
        ({"temperature": "hot", "top_p": 7, "top_k": -1}, RecommendedSampling()),
        ({"temperature": float("nan"), "top_p": True, "top_k": None}, RecommendedSampling()),
    ],
)
def test_sense_is_taken_and_nonsense_is_not(config: dict[str, object], expected: RecommendedSampling) -> None:
    assert recommended_sampling(config) == expected


def test_a_recommendation_keeps_what_the_file_says_already(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 2}')
    recommend(tmp_path, RecommendedSampling(0.3, 0.8, 5))
    config = json.loads((tmp_path / "generation_config.json").read_bytes())
    assert config["eos_token_id"] == 2
    assert recommended_sampling(config) == RecommendedSampling(0.3, 0.8, 5)
