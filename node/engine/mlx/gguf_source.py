"""A range's tensors from a GGUF file, by mlx-lm's names, on the file's own grids.

MLX computes with groups of 32, 64 or 128 numbers that share a scale and an offset. Blocks of that width are taken as
they are, number for number. Those of 16 (Q6_K, Q3_K, Q2_K) have no such form: these tensors are multiplied out, to the
plan's dtype, and take two or four times as much memory as the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from node.errors import LoadFailed
from node.weights.base import Weights
from node.weights.blocks import Blocks, Matrix, floats
from node.weights.gguf_weights import GgufWeights

GROUPS = (32, 64, 128)

_COMMON = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.switch_mlp.gate_proj",
    "ffn_up_exps": "mlp.switch_mlp.up_proj",
    "ffn_down_exps": "mlp.switch_mlp.down_proj",
}
_FOUR_NORMS = _COMMON | {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
MODULES = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "gemma"), _COMMON),
    **dict.fromkeys(("gemma2", "gemma3_text"), _FOUR_NORMS),
}
"""Roles by the names of the family's modules in mlx-lm."""
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
FROM_ONE = ("gemma", "gemma2", "gemma3_text")
"""Families whose norms mlx-lm keeps as the distance from 1."""


class GgufSource:
    """Tensors by the names of mlx-lm's modules.

    Raises:
        DamagedModel, UnsupportedModel: as `open_weights`.
        LoadFailed: a family whose tensors have no names here.
    """

    def __init__(self, path: Path, asked: str) -> None:
        weights: Weights = GgufWeights(path)
        if weights.family not in MODULES:
            known = ", ".join(sorted(MODULES))
            raise LoadFailed(asked, f"a GGUF file of {weights.family} in the MLX backend, which reads those of {known}")
        self._weights, self._path = weights, path
        self._places: dict[str, tuple[int | None, str]] = {}
        self._decoded: dict[tuple[int | None, str], Matrix] = {}
        """What was looked at for its grid and is taken next."""
        for layer in range(weights.layers):
            for role, module in MODULES[weights.family].items():
                if weights.has(layer, role):
                    self._places[f"model.layers.{layer}.{module}"] = (layer, role)
        for role, module in OUTER.items():
            if weights.has(None, role) and not (role == "output" and weights.tied_head):
                self._places[module] = (None, role)

    def names(self, prefix: str) -> set[str]:
        """Of the tensors below a module; what a grid adds to a weight is not among them."""
        found = set()
        for module, (layer, role) in self._places.items():
            if module.startswith(prefix) or f"{module}." == prefix:
                found.add(f"{module}.weight")
                if self._weights.has(layer, role, "bias"):
                    found.add(f"{module}.bias")
        return found

    def has(self, name: str) -> bool:
        return name.rpartition(".")[0] in self._places

    def take(self, prefix: str) -> dict[str, mx.array]:
        """The tensors below a module."""
        taken: dict[str, mx.array] = {}
        for name in self.names(prefix):
            module, _, part = name.rpartition(".")
            layer, role = self._places[module]
            if part == "bias" or role.endswith("norm"):
                vector = self._weights.vector(layer, role, "bias" if part == "bias" else "weight")
                if role.endswith("norm") and self._weights.family in FROM_ONE:
                    vector = vector - np.float32(1)
                taken[name] = mx.array(vector)
                continue
            matrix = self._decoded.pop((layer, role), None)
            if matrix is None:
                matrix = self._weights.matrix(layer, role)
            if isinstance(matrix, Blocks) and fits(matrix):
                taken |= {f"{module}.{key}": value for key, value in as_groups(matrix).items()}
            else:
                taken[name] = mx.array(floats(matrix))
        return taken

    def grid(self, path: str, module: Any) -> dict[str, Any] | None:
        """How the module at this path is quantised; None where it is not."""
        place = self._places.get(path)
        if place is None or not hasattr(module, "to_quantized") or place[1].endswith("norm"):
            return None
        matrix = self._decoded[place] = self._weights.matrix(*place)
        if not isinstance(matrix, Blocks) or not fits(matrix):
            return None
        return {"group_size": matrix.block, "bits": matrix.bits, "mode": "affine"}

    def identity(self, prefix: str) -> tuple[object, ...]:
        """Differs as soon as the file is replaced."""
        return tuple((str(path), path.stat().st_ino, path.stat().st_mtime_ns) for path in self._weights.files)


def fits(matrix: Matrix) -> bool:
    """Whether MLX can compute with these blocks as they are."""
    return isinstance(matrix, Blocks) and matrix.block in GROUPS


def as_groups(blocks: Blocks) -> dict[str, mx.array]:
    """The same numbers as MLX has them: value = scale * quant + bias."""
    zero: NDArray[np.float32] | np.float32 = (
        np.float32(blocks.zero) if isinstance(blocks.zero, int) else blocks.zero.astype(np.float32)
    )
    biases = -(blocks.scales * zero)
    if blocks.minimums is not None:
        biases = biases - blocks.minimums
    packed = np.ascontiguousarray(blocks.packed())
    words = packed.reshape(*packed.shape[:-2], -1).view(np.uint32)
    return {"weight": mx.array(words), "scales": mx.array(blocks.scales), "biases": mx.array(biases)}
