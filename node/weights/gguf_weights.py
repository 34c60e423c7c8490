"""A GGUF model's weights, in one file or split into several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from node.errors import DamagedModel, UnsupportedModel
from node.weights.base import Part
from node.weights.blocks import Blocks, Bytes, Floats, Matrix, bfloat16, floats, rows_of
from node.weights.families import ARCHITECTURES, BARE, GGUF_INTERLEAVED, GGUF_JOINED, GGUF_OTHER_NAMES
from node.weights.ggml_grids import dequantised, from_ggml
from node.weights.gguf_file import GgufTensor
from node.weights.gguf_split import parts_of, read_parts
from node.weights.mapped_file import MappedFile
from node.weights.sizes import HeadSizes


class GgufWeights:
    """A `base.Weights`.

    Raises:
        DamagedModel: a file's header cannot be read, or a part of a split model is missing.
        UnsupportedModel: an architecture that is not known.
    """

    def __init__(self, path: Path) -> None:
        self.files = parts_of(path)
        self.header, part_of = read_parts(self.files)
        self._places = {name: (part_of[name], tensor) for name, tensor in self.header.tensors.items()}
        """The part that each tensor is in, and where."""
        self.architecture = self.header.text("general.architecture")
        if self.architecture not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise UnsupportedModel(str(path), f'the architecture "{self.architecture[:40]}"', known)
        self.family = ARCHITECTURES[self.architecture]
        nextn = self.header.integer(f"{self.architecture}.nextn_predict_layers", 0)
        self.layers = self.header.integer(f"{self.architecture}.block_count") - nextn
        self.tied_head = "output.weight" not in self._places
        self.rotary_interleaved = self.architecture in GGUF_INTERLEAVED
        self._mapped: dict[Path, MappedFile] = {}

    def has(self, layer: int | None, role: str, part: Part = "weight") -> bool:
        """See `base.Weights`."""
        split = role == "attn_kv_b" and part == "weight" and self._is_split(layer)
        return split or self._find(layer, role, part) is not None

    def matrix(self, layer: int | None, role: str, part: Part = "weight") -> Matrix:
        """See `base.Weights`."""
        if role == "attn_kv_b" and part == "weight" and self._is_split(layer):
            return self._joined_kv_b(layer)
        name, joined = self._named(layer, role, part)
        whole = self.tensor(name)
        if not joined:
            return whole
        rows = whole.shape[-2]
        span = self._heads().span(joined, rows)  # type: ignore[arg-type]
        if span is None:
            raise DamagedModel(str(self._places[name][0]), f"{name} has {rows} rows, not those of all its roles")
        return rows_of(whole, *span)

    def vector(self, layer: int | None, role: str, part: Part = "weight") -> Floats:
        """See `base.Weights`."""
        return floats(self.matrix(layer, role, part)).reshape(-1)

    def stored(self, layer: int | None, role: str) -> str:
        """See `base.Weights`."""
        if role == "attn_kv_b" and self._is_split(layer):
            role = "attn_v_b"
        return self._places[self._named(layer, role, "weight")[0]][1].kind

    def file_of(self, layer: int | None, role: str, part: Part = "weight") -> Path:
        """See `base.Weights`."""
        if role == "attn_kv_b" and self._is_split(layer):
            role = "attn_v_b"
        return self._places[self._named(layer, role, part)[0]][0]

    def embedding_rows(self, ids: Sequence[int] | NDArray[np.integer]) -> Floats:
        """See `base.Weights`."""
        path, tensor = self._places["token_embd.weight"]
        wanted = np.asarray(ids, dtype=np.int64)
        if wanted.size and not 0 <= int(wanted.min()) <= int(wanted.max()) < tensor.shape[0]:
            raise ValueError(f"the vocabulary has {tensor.shape[0]} ids")
        raw = self._raw(path, tensor)[wanted]
        return floats(matrix_of(raw, tensor.kind))

    def layer_bytes(self, layer: int) -> int:
        """See `base.Weights`."""
        prefix = f"blk.{layer}."
        return sum(tensor.nbytes for name, (_, tensor) in self._places.items() if name.startswith(prefix))

    def outer_bytes(self, role: str) -> int:
        """See `base.Weights`."""
        place = self._places.get(f"{role}.weight")
        return place[1].nbytes if place else 0

    def names(self) -> Iterator[str]:
        """Of all tensors, as the file calls them."""
        return iter(self._places)

    def place(self, name: str) -> tuple[Path, GgufTensor]:
        """The file that a tensor is in, and where."""
        return self._places[name]

    def tensor(self, name: str) -> Matrix:
        """A whole tensor by the file's name for it."""
        path, tensor = self._places[name]
        raw = self._raw(path, tensor)
        decoded = matrix_of(raw, tensor.kind)
        if len(tensor.shape) <= 2:
            return decoded if len(tensor.shape) == 2 else floats(decoded).reshape(-1)
        return _reshaped(decoded, tensor.shape[:-1])

    def _raw(self, path: Path, tensor: GgufTensor) -> Bytes:
        """(rows, bytes of a row)"""
        mapped = self._mapped.get(path)
        if mapped is None:
            mapped = self._mapped[path] = MappedFile(path)
        rows = int(np.prod(tensor.shape[:-1], dtype=np.int64))
        return mapped.view(tensor.offset, tensor.offset + tensor.nbytes).reshape(rows, -1)

    def _named(self, layer: int | None, role: str, part: Part) -> tuple[str, str]:
        found = self._find(layer, role, part)
        if found is None:
            raise KeyError(f"{role}.{part} of {'the model' if layer is None else f'layer {layer}'}")
        return found

    def _find(self, layer: int | None, role: str, part: Part) -> tuple[str, str] | None:
        """The tensor's name, and which of its rows are meant where it joins several roles."""
        if role == "output" and self.tied_head:
            role = "token_embd"
        prefix = "" if layer is None else f"blk.{layer}."
        own = GGUF_OTHER_NAMES.get((self.architecture, role), role)
        joins_both = own == "ffn_up" and self.architecture == "phi3"
        for name in dict.fromkeys((own, role)):
            for suffix in (f".{part}", *((".weight", ".bias", "") if role in BARE else ())):
                if f"{prefix}{name}{suffix}" in self._places and not joins_both:
                    return f"{prefix}{name}{suffix}", ""
        for name, rows in GGUF_JOINED.get(role, ()):
            if f"{prefix}{name}.{part}" in self._places and (name != "ffn_up" or self.architecture == "phi3"):
                return f"{prefix}{name}.{part}", rows
        return None

    def _is_split(self, layer: int | None) -> bool:
        """Whether latent attention's second matrix is stored as one for keys and one for values."""
        return f"blk.{layer}.attn_k_b.weight" in self._places and f"blk.{layer}.attn_v_b.weight" in self._places

    def _joined_kv_b(self, layer: int | None) -> Floats:
        """(heads * (keys + values), rank): the rows of each head's keys, which are stored turned, then its values'."""
        keys = floats(self.tensor(f"blk.{layer}.attn_k_b.weight")).swapaxes(1, 2)
        values = floats(self.tensor(f"blk.{layer}.attn_v_b.weight"))
        return np.concatenate([keys, values], axis=1).reshape(-1, keys.shape[-1])

    def _heads(self) -> HeadSizes:
        def size(key: str, default: int | None = None) -> int:
            return self.header.integer(f"{self.architecture}.{key}", default)

        heads = size("attention.head_count")
        keys = size("attention.head_count_kv", heads)
        width = size("attention.key_length", size("embedding_length") // max(heads, 1))
        return HeadSizes(heads * width, keys * width, keys * size("attention.value_length", width))


def matrix_of(raw: Bytes, kind: str) -> Matrix:
    """(rows, columns) of rows of bytes of one of ggml's types."""
    if kind == "F32":
        return raw.view("<f4")
    if kind == "F16":
        return raw.view("<f2")
    if kind == "BF16":
        return bfloat16(raw)
    blocks = from_ggml(raw, kind)
    return dequantised(raw, kind) if blocks is None else blocks


def _reshaped(matrix: Matrix, outer: tuple[int, ...]) -> Matrix:
    if not isinstance(matrix, Blocks):
        return matrix.reshape(*outer, matrix.shape[-1])
    return Blocks(
        matrix.bits,
        matrix.block,
        matrix.quants.reshape(*outer, *matrix.quants.shape[-2:]),
        matrix.scales.reshape(*outer, -1),
        matrix.zero,
        None if matrix.minimums is None else matrix.minimums.reshape(*outer, -1),
    )
