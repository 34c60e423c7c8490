"""Reads the header of a GGUF file: metadata and where each tensor lies. Believes nothing that the file says.

The `gguf` package has a reader as well; it keeps one numpy view per array element (several hundred MB for a vocabulary)
and follows whatever counts a damaged file claims. Here every count is held against the bytes that are left.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from node.errors import DamagedModel, UnsupportedModel
from node.weights.ggml_types import TYPES

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
ITEMS_LIMIT = 2_000_000
"""Entries of one array; the largest vocabularies have 260,000 tokens and 520,000 merges."""
TENSORS_LIMIT = 100_000

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

Scalar = int | float | bool | str
Value = Scalar | tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where one tensor lies in the file."""

    name: str
    kind: str
    """ggml's name of its type: `F32`, `Q4_1`, …"""
    shape: tuple[int, ...]
    """Slowest dimension first, as numpy and torch have it."""
    offset: int
    """From the start of the file."""
    nbytes: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A GGUF file's header."""

    path: Path
    metadata: dict[str, Value]
    tensors: dict[str, GgufTensor]
    kinds: dict[str, int] = field(default_factory=dict)
    """GGUF's number of each value's kind; of an array that of its entries."""

    def text(self, key: str, default: str | None = None) -> str:
        """A string of the metadata.

        Raises:
            DamagedModel: the key is missing and has no default, or it is no string. So for the other kinds below.
        """
        value = self.metadata.get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, "a string")
        return value

    def optional_text(self, key: str) -> str | None:
        """A string of the metadata, None where the key is missing."""
        return self.text(key) if key in self.metadata else None

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number of the metadata, at least 0."""
        value = self.metadata.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self._wrong(key, "a whole number")
        return value

    def optional_integer(self, key: str) -> int | None:
        """A whole number of the metadata, None where the key is missing."""
        return self.integer(key) if key in self.metadata else None

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number of the metadata."""
        value = self.metadata.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise self._wrong(key, "a number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """A truth value of the metadata."""
        value = self.metadata.get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def texts(self, key: str) -> list[str]:
        """An array of strings of the metadata."""
        value = self.metadata.get(key)
        if not isinstance(value, tuple):
            raise self._wrong(key, "a list of strings")
        texts = [item for item in value if isinstance(item, str)]
        if len(texts) != len(value):
            raise self._wrong(key, "a list of strings")
        return texts

    def numbers(self, key: str) -> list[float]:
        """An array of numbers of the metadata."""
        value = self.metadata.get(key)
        if not isinstance(value, tuple):
            raise self._wrong(key, "a list of numbers")
        numbers = [item for item in value if isinstance(item, int | float)]
        if len(numbers) != len(value):
            raise self._wrong(key, "a list of numbers")
        return numbers

    def _wrong(self, key: str, wanted: str) -> DamagedModel:
        what = f"is not {wanted}" if key in self.metadata else "is missing"
        return DamagedModel(str(self.path), f'the metadata key "{key}" {what}')


def read_gguf(path: Path) -> GgufFile:
    """Read the header of a GGUF file.

    Raises:
        DamagedModel: no GGUF file, truncated, or its header contradicts itself.
        UnsupportedModel: another version or byte order, or a tensor type that is not known.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = _Cursor(path, file, size)
            tensor_count, value_count = header.start()
            metadata: dict[str, Value] = {}
            kinds: dict[str, int] = {}
            for _ in range(value_count):
                key = header.string()
                if key in metadata:
                    raise header.damaged(f'the metadata key "{key[:80]}" appears twice')
                kinds[key] = header.u32()
                if kinds[key] == _ARRAY:
                    kinds[key], count = header.u32(), header.u64()
                    metadata[key] = header.array(kinds[key], count)
                else:
                    metadata[key] = header.scalar(kinds[key])
            gguf = GgufFile(path, metadata, {}, kinds)
            infos = [header.tensor_info() for _ in range(tensor_count)]
            alignment = gguf.integer("general.alignment", DEFAULT_ALIGNMENT)
            if alignment == 0 or alignment & (alignment - 1):
                raise header.damaged(f"an alignment of {alignment} is no power of two")
            data_start = header.position + -header.position % alignment
            for name, kind, shape, offset in infos:
                if name in gguf.tensors:
                    raise header.damaged(f"the tensor {name[:80]} appears twice")
                gguf.tensors[name] = _placed(header, name, kind, shape, data_start + offset)
            return gguf
    except OSError as error:
        raise DamagedModel(str(path), f"cannot be read ({error.strerror})") from error


def _placed(header: _Cursor, name: str, kind_number: int, shape: tuple[int, ...], offset: int) -> GgufTensor:
    """The tensor's place, after checking that it lies inside the file."""
    kind = TYPES.get(kind_number)
    if kind is None:
        known = ", ".join(sorted(kind.name for kind in TYPES.values()))
        raise UnsupportedModel(str(header.path), f"the tensor type {kind_number} of {name[:80]}", known)
    block_items, block_bytes = kind.block_items, kind.block_bytes
    if shape[-1] % block_items:
        raise header.damaged(f"a row of {name[:80]} has {shape[-1]} elements, no multiple of {block_items}")
    nbytes = math.prod(shape) // block_items * block_bytes
    if offset + nbytes > header.size:
        raise header.damaged(f"truncated: {header.size} bytes long, {name[:80]} ends at byte {offset + nbytes}")
    return GgufTensor(name, kind.name, shape, offset, nbytes)


class _Cursor:
    """Reads little-endian values one after another and never past the file's end."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.size, self.position = path, size, 0
        self._file = file

    def damaged(self, what: str) -> DamagedModel:
        return DamagedModel(str(self.path), what)

    def take(self, count: int) -> bytes:
        if count > self.size - self.position:
            raise self.damaged(f"truncated: {self.size} bytes long, the header goes on at byte {self.position}")
        data = self._file.read(count)
        if len(data) != count:
            raise self.damaged("became shorter while it was read")
        self.position += count
        return data

    def start(self) -> tuple[int, int]:
        """Numbers of tensors and of metadata values."""
        if self.take(4) != MAGIC:
            raise self.damaged("not a GGUF file")
        version = self.u32()
        if version not in VERSIONS:
            raise UnsupportedModel(str(self.path), f"GGUF version {version} (or big-endian)", "versions 2 and 3")
        tensors, values = self.u64(), self.u64()
        # A tensor's entry takes 24 bytes or more, a value's 13: what the file cannot hold is not believed.
        if tensors > min(TENSORS_LIMIT, self.size // 24) or values > self.size // 13:
            raise self.damaged(f"{tensors} tensors and {values} values are claimed, more than can be")
        return tensors, values

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def string(self) -> str:
        try:
            return self.take(self.u64()).decode()
        except UnicodeDecodeError:
            raise self.damaged(f"the text before byte {self.position} is not UTF-8") from None

    def scalar(self, kind: int) -> Scalar:
        return self.string() if kind == _STRING else self._scalars(kind, 1)[0]

    def array(self, kind: int, count: int) -> tuple[Scalar, ...]:
        if count > ITEMS_LIMIT:
            raise self.damaged(f"an array of {count} entries before byte {self.position}")
        if kind == _STRING:
            return tuple(self.string() for _ in range(count))
        return self._scalars(kind, count)

    def _scalars(self, kind: int, count: int) -> tuple[Scalar, ...]:
        if kind not in _SCALARS:
            raise self.damaged(f"an unknown kind of value ({kind}) before byte {self.position}")
        layout = f"<{count}{_SCALARS[kind]}"
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def tensor_info(self) -> tuple[str, int, tuple[int, ...], int]:
        """Name, number of the type, shape (slowest dimension first) and offset into the data."""
        name = self.string()
        dimensions = self.u32()
        if not 1 <= dimensions <= 4:
            raise self.damaged(f"{name[:80]} has {dimensions} dimensions")
        shape = tuple(reversed([self.u64() for _ in range(dimensions)]))
        if 0 in shape:
            raise self.damaged(f"{name[:80]} is empty")
        return name, self.u32(), shape, self.u64()
