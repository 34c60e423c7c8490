"""Rotary tables: the cosines and sines by which positions turn queries and keys, in numpy.

Kinds and formulas as in transformers' `modeling_rope_utils.py`: default, linear, dynamic, llama3, yarn, longrope.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from node.engine.ort.config import Config

Floats = NDArray[np.float32]
KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope", "su")


@dataclass(frozen=True, slots=True)
class Rope:
    """One table of a model."""

    frequencies: tuple[float, ...]
    """Radians per position, for each pair of rows of a head that is turned."""
    factor: float = 1.0
    """That cosines and sines are multiplied with."""
    longest: int | None = None
    """Positions up to which the table is this one whatever the text's length; None: all."""

    def rows(self, start: int, end: int) -> tuple[Floats, Floats]:
        """Cosines and sines of positions [start, end), (positions, pairs) each."""
        angles = np.outer(np.arange(start, end, dtype=np.float32), np.asarray(self.frequencies, np.float32))
        factor = np.float32(self.factor)
        return np.cos(angles) * factor, np.sin(angles) * factor


def rope_of(config: Config, parameters: Mapping[str, object], width: int, extra: Floats | None = None) -> Rope:
    """The table that a config's rotary parameters ask for, of heads with `width` rows that are turned.

    `extra` are factors by which a GGUF file says that frequencies are divided (`rope_freqs`).

    Raises:
        UnsupportedModel: a kind that is not known, or a parameter that is missing.
    """
    own = Config(dict(parameters), config.where)
    kind = own.text("rope_type", own.text("type", "default"))
    if kind not in KINDS:
        raise config.unsupported(f"the rotary scaling {kind}", ", ".join(KINDS))
    base = own.positive("rope_theta", config.positive("rope_theta", 10_000.0))
    places = np.arange(0, width, 2, dtype=np.int64).astype(np.float32) / np.float32(width)
    wavelengths = np.power(np.float32(base), places)
    if extra is not None:
        wavelengths = wavelengths * extra[: len(wavelengths)]
    plain = np.float32(1) / wavelengths
    trained = own.whole("original_max_position_embeddings", config.whole("original_max_position_embeddings", 0))
    longest = config.whole("max_position_embeddings", 0)
    if kind != "default" and not (trained or longest):
        raise config.damaged("max_position_embeddings", None, "the length that the model was trained with")
    if kind == "linear":
        return _rope(plain / np.float32(own.number("factor")))
    if kind == "dynamic":
        return _rope(plain, longest=longest or None)
    if kind == "llama3":
        return _rope(_llama3(plain, own, trained or longest))
    if kind == "yarn":
        return _yarn(plain, wavelengths, own, base, width, trained or longest, longest)
    if kind in ("longrope", "su"):
        return _longrope(wavelengths, own, trained or longest, longest)
    return _rope(plain)


def _rope(frequencies: Floats, factor: float = 1.0, longest: int | None = None) -> Rope:
    return Rope(tuple(float(frequency) for frequency in frequencies), factor, longest)


def _llama3(plain: Floats, own: Config, trained: int) -> Floats:
    """Slow frequencies are divided, fast ones kept, those between mixed."""
    factor, low, high = own.number("factor"), own.number("low_freq_factor"), own.number("high_freq_factor")
    lengths = 2 * math.pi / plain
    smooth = (trained / lengths - low) / (high - low)
    mixed = (1 - smooth) * plain / factor + smooth * plain
    slow = np.where(lengths > trained / low, plain / np.float32(factor), plain)
    between = (lengths <= trained / low) & (lengths >= trained / high)
    return np.where(between, mixed, slow).astype(np.float32)


def _yarn(plain: Floats, wavelengths: Floats, own: Config, base: float, width: int, trained: int, longest: int) -> Rope:
    factor = own.number("factor", longest / trained if trained else 1.0)
    mscale, mscale_all = own.number("mscale", 0.0), own.number("mscale_all_dim", 0.0)

    def magnitude(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    scale = magnitude(mscale) / magnitude(mscale_all) if mscale and mscale_all else magnitude(1.0)
    scale = own.number("attention_factor", scale)

    def turning(rotations: float) -> float:
        return width * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(base))

    first, last = turning(own.number("beta_fast", 32.0) or 32.0), turning(own.number("beta_slow", 1.0) or 1.0)
    if own.flag("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    if first == last:
        last += 0.001
    ramp = np.clip((np.arange(width // 2, dtype=np.float32) - first) / (last - first), 0, 1).astype(np.float32)
    kept = np.float32(1) - ramp
    stretched = np.float32(1) / (np.float32(factor) * wavelengths)
    return _rope((stretched * (1 - kept) + plain * kept).astype(np.float32), scale)


def _longrope(wavelengths: Floats, own: Config, trained: int, longest: int) -> Rope:
    """With the factors for short texts: those for long ones would turn the beginning of a text otherwise."""
    factor = own.number("factor", longest / trained if trained else 1.0)
    scale = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(trained))
    short = np.asarray(own.numbers("short_factor"), np.float32)
    if short.shape != wavelengths.shape:
        raise own.unsupported(f"{len(short)} factors in short_factor", f"{len(wavelengths)} of them")
    return _rope(np.float32(1) / (short * wavelengths), own.number("attention_factor", scale), trained)
