"""The tensors of a folder of safetensors by name, in one file or many. Opens only the files that are asked for."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from node.errors import DamagedModel, UnsupportedModel
from node.weights.blocks import Bytes, Floats, bfloat16
from node.weights.mapped_file import MappedFile
from node.weights.safetensors_file import StoredTensor, read_tensors
from node.wire.weight_index import INDEX, SINGLE, parse_index

ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}
_NUMPY = {"F32": "<f4", "F16": "<f2", "I32": "<i4", "I64": "<i8", "I8": "i1", "U8": "u1", "U32": "<u4"}


class HubFiles:
    """Names and places of a model's tensors.

    Raises:
        DamagedModel: no weights in the folder, or an index or header that cannot be read.
        UnsupportedModel: the index names what is no safetensors file beside it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._headers: dict[Path, dict[str, StoredTensor]] = {}
        self._mapped: dict[Path, MappedFile] = {}
        self.file_of: dict[str, Path] = {}
        """Tensor name to file; the file need not be there until it is read."""
        if (index := folder / INDEX).exists():
            try:
                data = index.read_bytes()
            except OSError as error:
                raise DamagedModel(str(index), f"cannot be read ({error.strerror})") from error
            self.file_of = {name: folder / file for name, file in parse_index(data, str(index)).items()}
        elif (single := folder / SINGLE).exists():
            self.file_of = dict.fromkeys(self._header(single), single)
        else:
            raise DamagedModel(str(folder), f"holds neither {SINGLE} nor {INDEX}")

    def __contains__(self, name: str) -> bool:
        return name in self.file_of

    def place(self, name: str) -> StoredTensor:
        """Where a tensor lies, after checking that its length is that of its type and shape. Raises DamagedModel."""
        path = self.file_of[name]
        tensor = self._header(path).get(name)
        if tensor is None:
            raise DamagedModel(str(path), f"the tensor {name[:80]}, which the index says is in it, is missing")
        item = ITEM_BYTES.get(tensor.dtype)
        if item is None:
            raise UnsupportedModel(
                str(path), f"the tensor type {tensor.dtype[:20]} of {name[:80]}", ", ".join(ITEM_BYTES)
            )
        if any(side < 0 for side in tensor.shape) or math.prod(tensor.shape) * item != tensor.end - tensor.start:
            what = f"{name[:80]} has {tensor.end - tensor.start} bytes, not those of its shape {list(tensor.shape)[:8]}"
            raise DamagedModel(str(path), what)
        return tensor

    def raw(self, name: str) -> Bytes:
        """A tensor's bytes, (…, bytes of a row)."""
        tensor = self.place(name)
        path = self.file_of[name]
        mapped = self._mapped.get(path)
        if mapped is None:
            mapped = self._mapped[path] = MappedFile(path)
        shape = tensor.shape or (1,)
        return mapped.view(tensor.start, tensor.end).reshape(*shape[:-1], shape[-1] * ITEM_BYTES[tensor.dtype])

    def array(self, name: str) -> NDArray[np.generic]:
        """A tensor of a type that numpy has, as a view of the file."""
        tensor = self.place(name)
        if tensor.dtype not in _NUMPY:
            raise UnsupportedModel(
                str(self.file_of[name]), f"the type {tensor.dtype} of {name[:80]}", ", ".join(_NUMPY)
            )
        return self.raw(name).view(_NUMPY[tensor.dtype])

    def floats(self, name: str) -> NDArray[np.float32] | NDArray[np.float16]:
        """A tensor of floating-point numbers: F32 and F16 as views, BF16 as float32."""
        tensor = self.place(name)
        if tensor.dtype == "BF16":
            return bfloat16(self.raw(name))
        if tensor.dtype not in ("F32", "F16"):
            what = f"{name[:80]} stored as {tensor.dtype} without its scales"
            raise UnsupportedModel(str(self.file_of[name]), what, "F32, F16 and BF16")
        return self.raw(name).view(_NUMPY[tensor.dtype])

    def rows(self, name: str, wanted: NDArray[np.int64]) -> Floats:
        """Some rows of a matrix of floating-point numbers, as float32."""
        kind, raw = self.place(name).dtype, self.raw(name)[wanted]
        return bfloat16(raw) if kind == "BF16" else raw.view(_NUMPY[kind]).astype(np.float32)

    def nbytes(self, name: str) -> int:
        """As stored; 0 where its file is not here."""
        if not self.file_of[name].exists():
            return 0
        tensor = self.place(name)
        return tensor.end - tensor.start

    def _header(self, path: Path) -> dict[str, StoredTensor]:
        if path not in self._headers:
            self._headers[path] = read_tensors(path)
        return self._headers[path]
