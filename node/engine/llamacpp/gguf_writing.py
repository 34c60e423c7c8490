"""Lays out a GGUF file of version 3 and writes it bit by bit. Knows the format, not what the entries mean."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

ALIGNMENT = 32
"""Of each tensor's first byte; the format's default."""
PIECE_BYTES = 8 * 1024 * 1024
"""That are copied at a time: some milliseconds."""

STRING, ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""GGUF's numbers of its kinds of values, and struct's letters."""
U32, F32, BOOL = 4, 6, 7

Scalar = int | float | bool | str


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the metadata."""

    key: str
    kind: int
    """Of the value, or of each of the array's."""
    value: Scalar | tuple[Scalar, ...]

    def packed(self) -> bytes:
        """As the file has it."""
        if isinstance(self.value, tuple):
            head = struct.pack("<IIQ", ARRAY, self.kind, len(self.value))
            return _text(self.key) + head + b"".join(_scalar(self.kind, item) for item in self.value)
        return _text(self.key) + struct.pack("<I", self.kind) + _scalar(self.kind, self.value)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a tensor's bytes lie."""

    path: Path
    offset: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the file to be."""

    name: str
    kind: int
    """ggml's number of its type."""
    shape: tuple[int, ...]
    """Slowest dimension first."""
    nbytes: int
    source: Source | None
    """None: all zeros."""


def header(entries: Sequence[Entry], tensors: Sequence[Tensor]) -> bytes:
    """Everything before the first tensor's bytes."""
    parts = [b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries))]
    parts += [entry.packed() for entry in entries]
    offset = 0
    for tensor in tensors:
        dimensions = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
        parts.append(_text(tensor.name) + dimensions + struct.pack("<IQ", tensor.kind, offset))
        offset += _padded(tensor.nbytes)
    data = b"".join(parts)
    return data + bytes(_padded(len(data)) - len(data))


def write(out: BinaryIO, entries: Sequence[Entry], tensors: Sequence[Tensor]) -> Iterator[None]:
    """Write the file; yields after each piece.

    Raises:
        OSError: a source is gone or became shorter, or there is no room.
    """
    out.write(header(entries, tensors))
    for tensor in tensors:
        yield from _zeros(out, tensor.nbytes) if tensor.source is None else _copy(out, tensor.source, tensor.nbytes)
        out.write(bytes(_padded(tensor.nbytes) - tensor.nbytes))
    out.flush()


def unused_ranges(entries: Sequence[Entry], tensors: Sequence[Tensor]) -> list[tuple[int, int]]:
    """First byte and number of bytes of each tensor that is all zeros, in the file."""
    offset = len(header(entries, tensors))
    found = []
    for tensor in tensors:
        if tensor.source is None:
            found.append((offset, tensor.nbytes))
        offset += _padded(tensor.nbytes)
    return found


def read_through(path: Path) -> Iterator[None]:
    """Read a file and keep nothing of it; yields after each piece. Raises OSError."""
    piece = bytearray(PIECE_BYTES)
    with path.open("rb", buffering=0) as file:
        while file.readinto(piece):
            yield


def _copy(out: BinaryIO, source: Source, nbytes: int) -> Iterator[None]:
    with source.path.open("rb", buffering=0) as file:
        file.seek(source.offset)
        piece = memoryview(bytearray(min(PIECE_BYTES, nbytes)))
        left = nbytes
        while left:
            if not (got := file.readinto(piece[: min(left, PIECE_BYTES)])):
                raise OSError(f"{source.path} became shorter while it was read")
            out.write(piece[:got])
            left -= got
            yield


def _zeros(out: BinaryIO, nbytes: int) -> Iterator[None]:
    for begin in range(0, nbytes, PIECE_BYTES):
        out.write(bytes(min(PIECE_BYTES, nbytes - begin)))
        yield


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _scalar(kind: int, value: Scalar) -> bytes:
    return _text(str(value)) if kind == STRING else struct.pack(f"<{_SCALARS[kind]}", value)


def _padded(nbytes: int) -> int:
    return nbytes + -nbytes % ALIGNMENT
