"""How a model's makers recommend to sample from it: what holds where a request does not say."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

GENERATION_CONFIG = "generation_config.json"


@dataclass(frozen=True, slots=True)
class RecommendedSampling:
    """The defaults of OpenAI's API, unless the model knows better."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps all."""


def recommended_sampling(config: dict[str, object]) -> RecommendedSampling:
    """What a generation_config.json says; a figure that makes no sense is as good as none."""
    if config.get("do_sample") is False:
        return RecommendedSampling(temperature=0.0)
    plain = RecommendedSampling()
    return RecommendedSampling(
        temperature=_within(config.get("temperature"), 0.0, 2.0, plain.temperature),
        top_p=_within(config.get("top_p"), 1e-6, 1.0, plain.top_p),
        top_k=int(_within(config.get("top_k"), 0, 1_000_000, plain.top_k)),
    )


def _within(value: object, low: float, high: float, otherwise: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return otherwise
    return float(value) if low <= value <= high else otherwise


def recommend(folder: Path, sampling: RecommendedSampling) -> None:
    """Write a recommendation into the generation_config.json of a model that is being made."""
    path = folder / GENERATION_CONFIG
    config = json.loads(path.read_bytes())
    figures = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    path.write_text(json.dumps({**config, "do_sample": True, **figures}, indent=1), encoding="utf-8")
