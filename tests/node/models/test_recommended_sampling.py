"""What holds where a request does not say how to sample."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from node.models import ChatModel
from node.models.sampling import RecommendedSampling, recommend, recommended_sampling


def test_the_default_model_is_sampled_as_its_card_recommends(default_model_folder: Path) -> None:
    assert ChatModel.load(default_model_folder).recommended == RecommendedSampling(0.2, 0.9, 0)


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
