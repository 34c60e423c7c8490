"""How well llama.cpp suits a model: told from the types of its tensors and a few sizes, before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from node.engine.backend import Device, Suits
from node.engine.llamacpp.cutting import WholeModel
from node.engine.llamacpp.reading import read_whole
from node.errors import ModelError
from node.weights.ggml_types import TYPES
from node.weights.small import are_few
from node.wire.models import Quantise

BEST, ABLE = 90, 30
"""On the processor: where it is the faster and smaller one, and where others that can are faster."""
AT_NEED = 5
"""On the processor, for a model that float32 arithmetic is right for, which others have."""
METAL_BEST, ON_CARD = 110, 60
"""On graphics cards torch has 100. Metal is what the library was written for first; Vulkan is nobody's first choice."""

ITS_OWN_TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "MXFP4", "TQ1_0", "TQ2_0")
"""Whose blocks its kernels use in place, beside all of `IQ…`; others make them larger."""
HALF = 0.5
"""Of the layers' bytes are such blocks in most files that are named after them. Not where a matrix's width is no
multiple of 256: quantisers fall back to smaller blocks there, which others use in place as well."""


def llamacpp_suits(folder: Path, device: Device, quantise: Quantise) -> Suits:
    """See `backend.BackendChoice.suits`."""
    try:
        whole = read_whole(folder)
    except ModelError as error:
        return Suits(0, str(error))
    if whole is None:
        return Suits(0, "it reads GGUF files alone, and the model is in safetensors, which torch runs")
    if quantise == "auto" and device == "cpu" and _is_small(whole):
        return Suits(AT_NEED)
    return rank(bytes_by_type(whole), has_experts_or_latent(whole), device, quantise)


def rank(bytes_of: Mapping[str, int], experts_or_latent: bool, device: Device, quantise: Quantise) -> Suits:
    """By what its weights are stored as, and whether it has experts or latent attention."""
    if quantise != "auto":
        return Suits(0, f"it computes on a file's blocks as they are, not on {_meaning(quantise)}")
    own = sum(count for name, count in bytes_of.items() if name in ITS_OWN_TYPES or name.startswith("IQ"))
    best = experts_or_latent or own > HALF * sum(bytes_of.values())
    if device == "cpu":
        return Suits(BEST if best else ABLE)
    return Suits(METAL_BEST if best and device == "mps" else ON_CARD)


def _is_small(whole: WholeModel) -> bool:
    """As `weights.small.is_small`, of a header that has been read."""
    return are_few(sum(math.prod(tensor.shape) for tensor in whole.tensors.values()))


def _meaning(quantise: Quantise) -> str:
    return "float32 of them" if quantise == "none" else f"{quantise} that is made of them"


def bytes_by_type(whole: WholeModel) -> dict[str, int]:
    """How much of the model's layers is stored as what."""
    found: dict[str, int] = {}
    for name, tensor in whole.tensors.items():
        if name.startswith("blk."):
            kind = TYPES[tensor.kind].name
            found[kind] = found.get(kind, 0) + tensor.nbytes
    return found


def has_experts_or_latent(whole: WholeModel) -> bool:
    """Whether it routes tokens to experts, or keeps keys and values as one latent vector."""
    try:
        return whole.number("expert_count", 0) > 0 or whole.number("attention.kv_lora_rank", 0) > 0
    except ValueError:
        return False
