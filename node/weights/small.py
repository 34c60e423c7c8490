"""Which models are so small that float32 arithmetic is the right choice for them.

They lose most where products are made of 8-bit numbers: with the embedded default model, every library that does so
begins the answer to a simple question with another token than float32 does. And they fit everywhere as they are.
"""

from __future__ import annotations

import math
from pathlib import Path

from node.errors import ModelError
from node.weights.gguf_split import gguf_in, parts_of
from node.weights.places import HEADER, tensor_places
from node.wire.weight_index import INDEX, SINGLE

SMALL_BYTES = 1 << 30
"""All of a small model's weights in float32: a quarter of a billion of them."""


def is_small(folder: Path) -> bool:
    """Whether all weights of the model in a folder take at most `SMALL_BYTES` in float32. One that is spread over
    several safetensors is not. Reads headers alone; never raises: a model that cannot be read is refused elsewhere."""
    try:
        gguf = gguf_in(folder)
        if gguf is not None:
            files = parts_of(gguf)
        elif not (folder / INDEX).exists() and (folder / SINGLE).exists():
            files = (folder / SINGLE,)
        else:
            return False
        return are_few(sum(map(_numbers, files)))
    except (ModelError, OSError):
        return False


def are_few(numbers: int) -> bool:
    """Whether a model with so many weights is small."""
    return 4 * numbers <= SMALL_BYTES


def _numbers(file: Path) -> int:
    return sum(math.prod(place.shape) for name, place in tensor_places(file).items() if name != HEADER)
