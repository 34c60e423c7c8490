"""The safetensors format: u64 header length, JSON header, raw data. Read and written without torch.

numpy has no bfloat16, so the data stays bytes here; the header alone says what they are.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from node.errors import DamagedModel

StoredDtype = Literal["F32", "F16", "BF16"]
ITEM_BYTES: dict[StoredDtype, int] = {"F32": 4, "F16": 2, "BF16": 2}
HEADER_LIMIT_BYTES = 100_000_000
"""The bound of the reference implementation."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor as it is stored."""

    dtype: StoredDtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return ITEM_BYTES[self.dtype] * math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies in a file, and as what."""

    dtype: str
    """Any of the format's types, as its header names it."""
    shape: tuple[int, ...]
    start: int
    """From the start of the file; so is `end`."""
    end: int


def header_for(tensors: Mapping[str, TensorSpec]) -> bytes:
    """The head of a file whose data follows in the mapping's order, without gaps."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    offset = 0
    for name, spec in tensors.items():
        header[name] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": [offset, offset + spec.nbytes]}
        offset += spec.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts aligned
    return struct.pack("<Q", len(text)) + text


def read_header(path: Path) -> bytes:
    """The JSON header's bytes, after checking that the file is as long as the header says.

    Raises:
        DamagedModel: missing, truncated, too long, or no safetensors file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            (length,) = struct.unpack("<Q", start) if len(start) == 8 else (0,)
            if not 2 <= length <= min(HEADER_LIMIT_BYTES, size - 8):
                raise DamagedModel(str(path), "no safetensors header, or a truncated one")
            text = file.read(length)
        header = json.loads(text)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
        matches = bool(size == expected)
    except OSError as error:
        raise DamagedModel(str(path), f"cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise DamagedModel(str(path), "its safetensors header cannot be read") from error
    if not matches:
        raise DamagedModel(str(path), f"{size} bytes long, its header says {expected}")
    return text


def read_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file by name, after checking that they lie within it, one after the other.

    Raises:
        DamagedModel: as `read_header`, or they do not.
    """
    text = read_header(path)
    data_start = 8 + len(text)
    tensors = {}
    try:
        for name, entry in json.loads(text).items():
            if name != "__metadata__":
                start, end = map(int, entry["data_offsets"])
                shape = tuple(map(int, entry["shape"]))
                tensors[str(name)] = StoredTensor(str(entry["dtype"]), shape, data_start + start, data_start + end)
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedModel(str(path), "its safetensors header cannot be read") from error
    due = data_start
    for name, tensor in sorted(tensors.items(), key=lambda entry: (entry[1].start, entry[1].end)):
        if tensor.start != due or tensor.end < tensor.start:
            raise DamagedModel(str(path), f"the tensor {name[:80]} does not begin where the one before it ends")
        due = tensor.end
    return tensors
