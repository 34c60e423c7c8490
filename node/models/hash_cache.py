"""Remembers the hashes of weight files that lie elsewhere, so that a model of many gigabytes is read once.

One small file per weight file in `models/.hashes`. It counts while path, size, times and inode are what they were.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from node.errors import DamagedModel
from node.home import write_private
from node.models.tensor_hashes import Hashes, OnBytes, hash_tensors
from node.weights.places import SUFFIXES

HASHES = ".hashes"
SETTLED_NS = 2 * 10**9
"""A file that was changed so shortly ago may be changed again without its times telling: it is not remembered."""


class Stamp(msgspec.Struct, frozen=True):
    """What changes when a file is written or replaced."""

    size: int
    mtime_ns: int
    inode: int
    ctime_ns: int


class _Entry(msgspec.Struct, frozen=True):
    path: str
    stamp: Stamp
    hashes: dict[str, str]


def stamp_of(path: Path) -> Stamp | None:
    """The file's stamp now, None where it cannot be looked at."""
    try:
        status = path.stat()
    except OSError:
        return None
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns)


def cached_hashes(
    models: Path, path: Path, on_bytes: OnBytes | None = None, now_ns: Callable[[], int] = time.time_ns
) -> Hashes:
    """The hashes of all tensors of the weight file `path`.

    Raises:
        DamagedModel: it cannot be read, or is being written.
    """
    path = path.resolve()
    began_ns = now_ns()
    entry, stamp = known_hashes(models, path), stamp_of(path)
    if entry is not None:
        return entry
    hashes = hash_tensors(path, on_bytes=on_bytes)
    if stamp is None or stamp_of(path) != stamp:
        raise DamagedModel(str(path), "was changed while it was read", "try again once it is written")
    if max(stamp.mtime_ns, stamp.ctime_ns) + SETTLED_NS < began_ns:
        remember(models, path, stamp, hashes)
    return hashes


def remember(models: Path, path: Path, stamp: Stamp, hashes: Mapping[str, str]) -> None:
    """Note the hashes of a file that had this stamp before and after it was read."""
    path = path.resolve()
    write_private(_place(models, path), msgspec.json.encode(_Entry(str(path), stamp, dict(hashes))))


def known_hashes(models: Path, path: Path) -> Hashes | None:
    """The hashes that are remembered of `path`, if it has not been changed since."""
    path = path.resolve()
    try:
        entry = msgspec.json.decode(_place(models, path).read_bytes(), type=_Entry)
    except (OSError, msgspec.DecodeError):
        return None
    return entry.hashes if (entry.path, entry.stamp) == (str(path), stamp_of(path)) else None


def forget(models: Path, folder: Path) -> None:
    """Drop what is remembered of the files that lie in `folder`, or that its links lead to, or that are gone."""
    gone = (
        {str(path.resolve()) for path in folder.glob("*") if path.name.endswith(SUFFIXES)}
        if folder.is_dir()
        else {str(folder.resolve())}
    )
    for place in (models / HASHES).glob("*.json"):
        try:
            entry = msgspec.json.decode(place.read_bytes(), type=_Entry)
        except (OSError, msgspec.DecodeError):
            entry = None
        if entry is None or entry.path in gone or not Path(entry.path).exists():
            place.unlink(missing_ok=True)


def _place(models: Path, path: Path) -> Path:
    return models / HASHES / f"{hashlib.sha256(str(path).encode(errors='surrogateescape')).hexdigest()[:32]}.json"
