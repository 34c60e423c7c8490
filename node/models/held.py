"""How many bits a weight takes in memory once it is loaded: each backend makes something else of each form of file.

llama.cpp holds a file's blocks as they are. onnxruntime holds 4 or 8 bits a weight, a scale for each block as it came,
and packed beside them one more with a sum: measured 7.4 bits a weight of Q4_K, libraries aside; a small model's weights
it holds in float32. torch and MLX hold numbers of the plan's dtype. Where several are installed the largest counts, so
that a cap on memory is kept by whichever is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path

from node.errors import ModelError
from node.models.facts import ModelConfig
from node.models.local_folder import weight_files
from node.weights.ggml_types import BY_NAME
from node.weights.hub_methods import method_of
from node.weights.places import HEADER, tensor_places
from node.weights.small import is_small
from node.wire.models import Dtype, Quantise

FULL_BITS = 32.0

ORT_BITS: Mapping[str, float] = {
    **dict.fromkeys(("Q4_K", "Q4_1"), 8.0),
    "Q4_0": 7.0,
    **dict.fromkeys(("Q8_0", "Q5_0", "Q5_1", "Q5_K", "IQ4_NL", "IQ4_XS", "MXFP4"), 11.0),
    "Q6_K": 14.0,
    "Q3_K": 10.0,
    "Q2_K": 11.0,
    "TQ2_0": 5.0,
}
"""By ggml's type; all others become float32."""
FILE_BITS: Mapping[str, float] = {kind: 8 * one.block_bytes / one.block_items for kind, one in BY_NAME.items()}
ORT_QUANTISED: Mapping[Quantise, float] = {"int8": 11.0, "int4": 7.0}
ORT_METHODS: Mapping[tuple[str, int], float] = {
    **dict.fromkeys((("gptq", 2), ("gptq", 4), ("awq", 4), ("packed", 4)), 7.0),
    **dict.fromkeys((("gptq", 8), ("packed", 8), ("integers", 8)), 11.0),
}


def held_bits(folder: Path, dtype: Dtype, quantise: Quantise, backends: Collection[str]) -> float:
    """Bits that a weight of the layers takes on average; 0: those of `dtype`.

    Args:
        backends: those that may be chosen here.
    """
    if dtype != "float32" or not backends:
        return 0.0
    stored = stored_weights(folder)
    bits = max(_held(name, stored, folder, quantise) for name in backends)
    return bits if bits < FULL_BITS else 0.0


def stored_weights(folder: Path) -> dict[str, int]:
    """How many numbers of the model's matrices are stored as each type. Files that are not here do not count."""
    found: dict[str, int] = {}
    try:
        for name in weight_files(folder):
            if not (folder / name).exists():
                continue
            for tensor, place in tensor_places(folder / name).items():
                if tensor != HEADER and len(place.shape) > 1:
                    found[place.dtype] = found.get(place.dtype, 0) + math.prod(place.shape)
    except (ModelError, OSError):
        return {}
    return found


def _held(backend: str, stored: Mapping[str, int], folder: Path, quantise: Quantise) -> float:
    if backend == "ort" and quantise in ORT_QUANTISED:
        return ORT_QUANTISED[quantise]
    if backend in ("torch", "mlx") or (backend == "ort" and quantise == "none"):
        return 0.0 if quantise in ORT_QUANTISED else FULL_BITS
    if backend == "ort" and is_small(folder):
        return FULL_BITS
    is_gguf = any(kind in BY_NAME and BY_NAME[kind].block_items > 1 for kind in stored)
    if backend == "llamacpp":
        return _mean(stored, FILE_BITS) if is_gguf else 0.0
    if is_gguf:
        return _mean(stored, ORT_BITS)
    try:
        method = method_of(ModelConfig(folder).values, str(folder))
    except ModelError:
        return FULL_BITS
    return ORT_METHODS.get((method.name, method.bits), FULL_BITS) if method else FULL_BITS


def _mean(stored: Mapping[str, int], bits: Mapping[str, float]) -> float:
    total = sum(stored.values())
    return sum(count * bits.get(kind, FULL_BITS) for kind, count in stored.items()) / total if total else 0.0
