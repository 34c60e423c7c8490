"""The rotation that a GGUF file describes, in config.json's words."""

from __future__ import annotations

import math

from node.errors import DamagedModel, UnsupportedModel
from node.models.gguf_sizes import Config, Sizes, as_float32
from node.weights.gguf_file import GgufFile

ROPE_FACTORS = "rope_freqs.weight"
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"
ROPE_TENSORS = frozenset({ROPE_FACTORS, LONG_FACTORS, SHORT_FACTORS})

LLAMA3_LOW_FACTOR, LLAMA3_HIGH_FACTOR, LLAMA3_CONTEXT = 1.0, 4.0, 8192
"""What every Llama 3.1 to 3.3 has; GGUF keeps only the frequencies that follow from them."""


def rope_config(file: GgufFile, sizes: Sizes, factors: dict[str, list[float]]) -> Config:
    """The keys of config.json that say how positions turn queries and keys.

    Args:
        factors: values of the `ROPE_TENSORS` that the file has.

    Raises:
        DamagedModel: a key is missing, or factors for another width.
        UnsupportedModel: a kind of scaling, or frequencies, that are not known here.
    """
    name = sizes.architecture
    config: Config = {
        "rope_theta": as_float32(file.number(f"{name}.rope.freq_base", 10000.0)),
        "rope_scaling": _scaling(file, name),
    }
    if ROPE_FACTORS in factors:
        config["rope_scaling"] = llama3_scaling(file, config["rope_theta"], sizes.rope_dim, factors[ROPE_FACTORS])
    if (LONG_FACTORS in factors) != (SHORT_FACTORS in factors):
        raise DamagedModel(str(file.path), f"one of {LONG_FACTORS} and {SHORT_FACTORS} is missing")
    if LONG_FACTORS in factors:
        config |= _longrope(file, sizes, factors[LONG_FACTORS], factors[SHORT_FACTORS])
    return config


def _scaling(file: GgufFile, name: str) -> Config | None:
    factor = file.number(f"{name}.rope.scaling.factor", 0.0)
    kind = file.text(f"{name}.rope.scaling.type", "linear")  # llama.cpp's default
    if kind in ("none", "longrope") or (kind == "linear" and factor in (0.0, 1.0)):
        return None  # what longrope does is in tensors
    if kind not in ("linear", "yarn"):
        raise UnsupportedModel(str(file.path), f'rope scaling "{kind[:40]}"', "none, linear, yarn, longrope and llama3")
    scaling: Config = {"rope_type": kind, "factor": file.number(f"{name}.rope.scaling.factor")}
    if kind == "yarn":
        for end in ("beta_fast", "beta_slow"):
            if (key := f"{name}.rope.scaling.yarn_{end}") in file.metadata:
                scaling[end] = file.number(key)
        scaling["original_max_position_embeddings"] = file.integer(f"{name}.rope.scaling.original_context_length")
        if name == "gpt-oss":  # llama.cpp cuts the ramp where the model's own code does not
            scaling |= {"truncate": False, "beta_fast": 32.0, "beta_slow": 1.0}
        if multiplier := file.number(f"{name}.rope.scaling.yarn_log_multiplier", 0.0):
            all_dimensions = as_float32(multiplier * 10)  # the converter writes a tenth of it
            scaling |= {"mscale": all_dimensions, "mscale_all_dim": all_dimensions}
    return scaling


def _longrope(file: GgufFile, sizes: Sizes, long: list[float], short: list[float]) -> Config:
    wanted = sizes.rope_dim // 2
    if len(long) != wanted or len(short) != wanted:
        raise DamagedModel(str(file.path), f"{len(long)} and {len(short)} factors of rotation, not {wanted}")
    name = sizes.architecture
    original = file.integer(f"{name}.rope.scaling.original_context_length")
    scaling: Config = {"rope_type": "longrope", "long_factor": long, "short_factor": short}
    if (key := f"{name}.rope.scaling.attn_factor") in file.metadata:
        scaling["attention_factor"] = as_float32(file.number(key))
    return {"rope_scaling": scaling, "original_max_position_embeddings": original}


def llama3_scaling(file: GgufFile, theta: object, rope_dim: int, factors: list[float]) -> Config:
    """The rope scaling that gives these frequency divisors, one for each pair of a head's dimensions.

    Raises:
        UnsupportedModel: no Llama 3 scaling gives them.
    """
    assert isinstance(theta, float)
    factor = max(factors, default=0.0)
    expected = [_llama3_factor(2 * math.pi * theta ** (2 * i / rope_dim), factor) for i in range(rope_dim // 2)]
    same = len(factors) == len(expected) and all(
        math.isclose(found, wanted, rel_tol=1e-4) for found, wanted in zip(factors, expected, strict=True)
    )
    if not same:
        raise UnsupportedModel(str(file.path), f"the frequencies in {ROPE_FACTORS}", "those of Llama 3.1 to 3.3")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LLAMA3_LOW_FACTOR,
        "high_freq_factor": LLAMA3_HIGH_FACTOR,
        "original_max_position_embeddings": LLAMA3_CONTEXT,
    }


def _llama3_factor(wavelength: float, factor: float) -> float:
    """By how much Llama 3 slows the rotation with this wavelength (in tokens) down."""
    if wavelength < LLAMA3_CONTEXT / LLAMA3_HIGH_FACTOR:
        return 1.0
    if wavelength > LLAMA3_CONTEXT / LLAMA3_LOW_FACTOR or factor == 0:
        return factor
    smooth = (LLAMA3_CONTEXT / wavelength - LLAMA3_LOW_FACTOR) / (LLAMA3_HIGH_FACTOR - LLAMA3_LOW_FACTOR)
    return 1 / ((1 - smooth) / factor + smooth)
