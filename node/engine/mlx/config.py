"""A model's config.json as mlx-lm's classes read it. Knows dictionaries, no tensors.

transformers 5 writes rotary parameters as one entry, and layers' kinds as a list. A module of mlx-lm that does not know
an entry passes over it without a word, so what it would miss is told in the older form, or refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from node.errors import LoadFailed

CONFIG_LIMIT_BYTES = 16 * 1024 * 1024
LENGTH_DEPENDENT = ("dynamic", "longrope", "su")
"""Kinds of rotary tables that depend on the text's length, or that mlx-lm makes for long texts alone."""


def read_config(folder: Path, asked: str) -> dict[str, Any]:
    """The config of a folder.

    Raises:
        LoadFailed: none, one that is no object, or one that mlx-lm would misread.
    """
    path = folder / "config.json"
    try:
        if path.stat().st_size > CONFIG_LIMIT_BYTES:
            raise LoadFailed(asked, f"{path}: longer than {CONFIG_LIMIT_BYTES} bytes")
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise LoadFailed(asked, f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise LoadFailed(asked, f"{path}: {error}") from error
    if not isinstance(config, dict):
        raise LoadFailed(asked, f"{path}: not an object")
    return as_mlx_reads(config, asked)


def as_mlx_reads(config: dict[str, Any], asked: str = "") -> dict[str, Any]:
    """The same in the older form, beside what it says itself. Raises LoadFailed."""
    config = dict(config)
    rotary = config.get("rope_parameters")
    if isinstance(rotary, dict):
        of_kind = {kind: value for kind, value in rotary.items() if isinstance(value, dict)}
        if of_kind:
            _tell_rotary(config, of_kind.get("full_attention", {}))
            if isinstance(base := of_kind.get("sliding_attention", {}).get("rope_theta"), int | float):
                config.setdefault("rope_local_base_freq", base)
        else:
            _tell_rotary(config, rotary)
    scaling = config.setdefault("rope_scaling", None)
    kind = str((scaling.get("rope_type") or scaling.get("type")) if isinstance(scaling, dict) else "")
    if kind in LENGTH_DEPENDENT:
        raise LoadFailed(
            asked, f"the rotary table of kind {kind} depends on the text's length; the torch backend has it"
        )
    for name, other in (("num_experts", "num_local_experts"), ("num_local_experts", "num_experts")):
        if name not in config and other in config:  # transformers 5 writes one of the two
            config[name] = config[other]
    family = str(config.get("model_type", ""))
    windowed = config.get("use_sliding_window") if family.startswith("qwen") else family == "mistral"
    window = config.get("sliding_window")
    if windowed and window and window < config.get("max_position_embeddings", window + 1):
        raise LoadFailed(
            asked, f"mlx-lm's {family} has no sliding windows, which this model has; the torch backend does"
        )
    if family == "minimax_m2":
        config.setdefault("shared_intermediate_size", 0)
        width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        config.setdefault("rotary_dim", int(width * config.get("partial_rotary_factor", 1.0)))
    if family.startswith("gemma3"):
        config["sliding_window_pattern"] = _pattern(config, asked)
    return config


def _tell_rotary(config: dict[str, Any], rotary: dict[str, Any]) -> None:
    if "rope_theta" in rotary:
        config.setdefault("rope_theta", rotary["rope_theta"])
    if rotary.get("rope_type", "default") != "default":
        config["rope_scaling"] = config.get("rope_scaling") or rotary
    if "partial_rotary_factor" in rotary:
        config.setdefault("partial_rotary_factor", rotary["partial_rotary_factor"])


def _pattern(config: dict[str, Any], asked: str) -> int:
    """Of how many layers the last one attends to everything, the others to a window."""
    kinds = config.get("layer_types")
    if not isinstance(kinds, list):
        return int(config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6)
    full = [index for index, kind in enumerate(kinds) if kind == "full_attention"]
    pattern = full[0] + 1 if full else len(kinds) + 1
    if full != list(range(pattern - 1, len(kinds), pattern)):
        raise LoadFailed(asked, f"full attention in layers {full[:8]}, which mlx-lm has in every {pattern}th only")
    return pattern
