"""SHA-256 of every tensor of a weight file, kept beside it: what a model is, and whether its bytes still are what came.

By tensor and not by file, so that a node with layers 0-9 reads only those to check them. SHA-256 because processors
have instructions for it (1.4 GB/s on one core of a 2021 server, 2.4 times BLAKE2b there) and the hub names it too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import msgspec

from node.errors import DamagedModel
from node.models.disk import CHUNK_BYTES
from node.weights.safetensors_file import StoredTensor, read_tensors

Hashes = Mapping[str, str]
"""Hex SHA-256 by tensor name, of its type, shape and data."""

OnBytes = Callable[[int], None]
"""Hears after each MiB or so how many more bytes are through."""


def hashes_name(weights: str) -> str:
    """The file that keeps the hashes of the weight file `weights`."""
    return f"{weights}.hashes.json"


def hash_tensors(path: Path, names: Iterable[str] | None = None, on_bytes: OnBytes | None = None) -> dict[str, str]:
    """Hashes of the tensors `names` of a safetensors file, of all of them where none are named.

    Raises:
        DamagedModel: the file is no such file, is truncated, lacks a tensor, or the disk does not give its bytes.
    """
    tensors = read_tensors(path)
    wanted = tensors.keys() if names is None else set(names)
    if missing := wanted - tensors.keys():
        raise DamagedModel(str(path), f"the tensor {min(missing)} is missing")
    places = sorted(((tensors[name], name) for name in wanted), key=lambda entry: entry[0].start)
    try:
        with path.open("rb", buffering=0) as file:
            return {name: _hash(path, file, tensor, on_bytes) for tensor, name in places}
    except OSError as error:
        raise DamagedModel(str(path), f"cannot be read ({error.strerror})") from error


def first_difference(path: Path, known: Hashes, names: Iterable[str], on_bytes: OnBytes | None = None) -> str | None:
    """The first of the tensors `names` whose bytes are not those that `known` was made of.

    Raises:
        DamagedModel: as `hash_tensors`.
    """
    found = hash_tensors(path, names, on_bytes)
    return min((name for name, digest in found.items() if digest != known.get(name)), default=None)


def read_hashes(folder: Path, weights: str) -> dict[str, str] | None:
    """The hashes that are kept for a weight file; None where there are none, or none that can be read."""
    try:
        return msgspec.json.decode((folder / hashes_name(weights)).read_bytes(), type=dict[str, str])
    except (OSError, msgspec.DecodeError):
        return None


def encoded(hashes: Hashes) -> bytes:
    """As `read_hashes` reads them."""
    return msgspec.json.format(msgspec.json.encode(dict(hashes)))


def _hash(path: Path, file: BinaryIO, tensor: StoredTensor, on_bytes: OnBytes | None) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
    file.seek(tensor.start)
    left = tensor.end - tensor.start
    buffer = memoryview(bytearray(min(CHUNK_BYTES, max(left, 1))))
    while left:
        count = file.readinto(buffer[: min(left, len(buffer))])  # type: ignore[attr-defined]
        if not count:
            raise DamagedModel(str(path), "became shorter while it was read")
        digest.update(buffer[:count])
        left -= count
        if on_bytes:
            on_bytes(count)
    return digest.hexdigest()
