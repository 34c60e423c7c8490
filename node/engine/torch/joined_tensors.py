"""transformers' tensors, as its models hold them in memory, out of a model's roles. No torch.

A GGUF file and an older checkpoint have other tensors than transformers 5 holds: queries, keys and values apart or
joined, experts one by one or together, rows in another order, norms counted from 1. Here they are put together.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from node.weights.base import Part, Weights
from node.weights.blocks import Floats, floats
from node.weights.families import BARE, FAMILIES, NORM_FROM_ONE, OUTER, Place
from node.weights.gguf_weights import GgufWeights

PARTS: tuple[Part, ...] = ("weight", "bias")

ORDER = {"q": 0, "k": 1, "v": 2, "gate": 0, "up": 1, "": 0}

TURNED_BACK = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
"""Roles whose rows llama.cpp stores as (pair, half) instead of (half, pair), and the config's word for their heads."""


@dataclass(frozen=True, slots=True)
class Joined:
    """How one of transformers' tensors is put together."""

    layer: int | None
    roles: tuple[str, ...]
    part: Part
    place: Place


def joined_tensors(weights: Weights) -> dict[str, Joined]:
    """Every tensor that the model has in memory, by transformers' name."""
    found: dict[str, Joined] = {}
    for role, name in {**OUTER, "output": "lm_head"}.items():
        if weights.has(None, role) and not (role == "output" and weights.tied_head):
            prefix = "" if role == "output" else "model."
            found[f"{prefix}{name}.weight"] = Joined(None, (role,), "weight", Place(name))
    table = FAMILIES[weights.family]
    for layer in range(weights.layers):
        together: dict[tuple[str, Part], list[str]] = defaultdict(list)
        for role, places in table.items():
            for part in PARTS[:1] if role in BARE else PARTS:
                if weights.has(layer, role, part):
                    together[places[-1].name, part].append(role)
        for (name, part), roles in together.items():
            roles.sort(key=lambda role: ORDER[table[role][-1].rows])
            place = table[roles[0]][-1]
            found[f"model.layers.{layer}.{_whole_name(name, part, roles[0])}"] = Joined(
                layer, tuple(roles), part, place
            )
    return found


def _whole_name(name: str, part: Part, role: str) -> str:
    if role in BARE:
        return name
    if role.endswith("_exps"):  # parameters of one module, not modules of their own
        return name if part == "weight" else f"{name}_bias"
    return f"{name}.{part}"


def read_joined(weights: Weights, joined: Joined, heads: dict[str, int]) -> Floats | np.ndarray:
    """One of transformers' tensors: float32, or float16 where it lies so in the file.

    Args:
        heads: the config's numbers of heads, by its words.
    """
    parts = [_one(weights, joined, role, heads) for role in joined.roles]
    if joined.place.columns_first:
        if len(parts) > 1:  # gate and up take turns
            axis = 1
            both = np.stack(parts, axis=axis + 1)
            parts = [both.reshape(both.shape[0], -1, *both.shape[3:])]
        return parts[0] if joined.part == "bias" else np.ascontiguousarray(parts[0].swapaxes(-1, -2))
    if len(parts) == 1:
        return parts[0]
    axis = parts[0].ndim - (2 if joined.part == "weight" else 1)
    return np.concatenate(parts, axis=axis)


def _one(weights: Weights, joined: Joined, role: str, heads: dict[str, int]) -> np.ndarray:
    if role.endswith("norm") and joined.part == "weight":
        factors = weights.vector(joined.layer, role)
        return factors - np.float32(1) if weights.family in NORM_FROM_ONE else factors
    matrix = weights.matrix(joined.layer, role, joined.part)
    values: np.ndarray = matrix if isinstance(matrix, np.ndarray) else floats(matrix)
    if role in TURNED_BACK and is_turned(weights):
        count = heads[TURNED_BACK[role]]
        values = values.reshape(count, values.shape[0] // count // 2, 2, *values.shape[1:]).swapaxes(1, 2)
        values = np.ascontiguousarray(values).reshape(-1, *values.shape[3:])
    return values


def is_turned(weights: Weights) -> bool:
    """Whether a file has the rows of queries and keys in llama.cpp's order, where the family's own code has another."""
    return isinstance(weights, GgufWeights) and weights.rotary_interleaved and weights.family != "deepseek_v3"


def file_of(weights: Weights, joined: Joined) -> Path:
    """A file that must not change for the tensor to stay what it is."""
    return weights.file_of(joined.layer, joined.roles[0], joined.part)
