"""Reads what a model folder's GGUF says of itself, and looks embeddings up in it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from node.engine.llamacpp.cutting import BLOCK, EMBEDDING, WholeModel
from node.engine.llamacpp.gguf_writing import Entry, Source, Tensor
from node.errors import DamagedModel
from node.weights.blocks import floats
from node.weights.ggml_types import TYPES
from node.weights.gguf_file import read_gguf
from node.weights.gguf_split import gguf_in, parts_of
from node.weights.gguf_weights import matrix_of
from node.weights.mapped_file import MappedFile

Rows = NDArray[np.float32]

NUMBERS = {kind.name: number for number, kind in TYPES.items()}
"""ggml's, of each type."""


def read_whole(folder: Path) -> WholeModel | None:
    """The header of the folder's GGUF model, in one file or several; None where the folder holds none.

    Raises:
        DamagedModel: it cannot be read or contradicts itself.
        UnsupportedModel: a version, a byte order or a type of tensors that is not known.
    """
    if (first := gguf_in(folder)) is None:
        return None
    headers = [read_gguf(file) for file in parts_of(first)]
    tensors: dict[str, Tensor] = {}
    for header in headers:
        for name, tensor in header.tensors.items():
            if name in tensors:
                raise DamagedModel(str(header.path), f"the tensor {name[:80]} is in another part too")
            kind = NUMBERS[tensor.kind]
            tensors[name] = Tensor(name, kind, tensor.shape, tensor.nbytes, Source(header.path, tensor.offset))
    entries = {key: Entry(key, headers[0].kinds[key], value) for key, value in headers[0].metadata.items()}
    whole = WholeModel(tuple(header.path for header in headers), entries, tensors)
    try:
        found = whole.layers >= 1 and whole.width >= 1
    except ValueError as error:
        raise DamagedModel(str(first), str(error)) from error
    if not found or EMBEDDING not in tensors or tensors[EMBEDDING].shape[1:] != (whole.width,):
        raise DamagedModel(str(first), "it has no layers, or no embedding as wide as it says")
    blocks = 1 + max((int(match[1]) for match in map(BLOCK.match, tensors) if match), default=-1)
    if not whole.layers <= blocks <= whole.number("block_count"):  # those that predict further tokens may be left out
        raise DamagedModel(str(first), f"it says that it has {whole.layers} layers, and {blocks} are there")
    return whole


def types_of(whole: WholeModel, start: int, end: int) -> str:
    """What a range's matrices are stored as, the most frequent first: `Q4_K, Q6_K`."""
    found: dict[int, int] = {}
    for name, tensor in whole.tensors.items():
        if len(tensor.shape) > 1 and name.startswith(tuple(f"blk.{layer}." for layer in range(start, end))):
            found[tensor.kind] = found.get(tensor.kind, 0) + tensor.nbytes
    names = sorted(found, key=lambda kind: -found[kind])
    return ", ".join(TYPES[kind].name for kind in names)


class Embedding:
    """Looks rows up in the mapped file: nothing of it is held in memory."""

    def __init__(self, whole: WholeModel, scale: float) -> None:
        tensor = whole.tensors[EMBEDDING]
        assert tensor.source is not None
        self._kind = TYPES[tensor.kind].name
        begin = tensor.source.offset
        file = MappedFile(tensor.source.path)
        self._raw = file.view(begin, begin + tensor.nbytes).reshape(tensor.shape[0], -1)  # (vocabulary, bytes of a row)
        self._scale = np.float32(scale)
        self.size = tensor.shape[0]
        """Of the vocabulary."""

    def rows(self, ids: NDArray[np.int32]) -> Rows:
        """float32 (T, hidden_size) of ids (T,) that are the vocabulary's."""
        rows = floats(matrix_of(self._raw[ids], self._kind))
        return rows if self._scale == 1 else rows * self._scale


def embedding_scale(whole: WholeModel, scaled: bool) -> float:
    """What a token's row is multiplied with before the first layer."""
    return math.sqrt(whole.width) if scaled else 1.0
