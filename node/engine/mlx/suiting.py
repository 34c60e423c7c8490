"""Whether MLX can run a model, by its config.json alone. Imports neither MLX nor mlx-lm."""

from __future__ import annotations

from pathlib import Path

from node.engine.mlx.config import read_config
from node.engine.mlx.library import has_family
from node.errors import LoadFailed


def why_not(folder: Path) -> str:
    """For people; empty where it can, as far as can be seen from here."""
    try:
        config = read_config(folder, "")
    except LoadFailed as error:
        return error.reason
    family = str(config.get("model_type", ""))[:64]
    return "" if has_family(family) else f"mlx-lm has no model {family or 'without a model_type'}"
