"""Remembers where on this machine a local model lies, since a ref that travels between nodes names no path.

One small file per model in `models/.sources`, found again by the ref's digest.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from node.home import write_private
from node.models.cached_model import slug
from node.wire.models import ModelRef

SOURCES = ".sources"


class Source(msgspec.Struct, frozen=True):
    """A local model: a GGUF file or a folder."""

    ref: ModelRef
    path: str
    size: int
    """Of a file: with `mtime_ns` it tells whether the file is still the one that was hashed. 0 for a folder."""
    mtime_ns: int

    def unchanged(self) -> bool:
        """Whether path, size and time of change are still the same."""
        return fingerprint(Path(self.path)) == (self.size, self.mtime_ns)


def fingerprint(path: Path) -> tuple[int, int] | None:
    """Size and time of the last change of a file, (0, 0) for a folder, None where there is nothing."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (0, 0) if path.is_dir() else (status.st_size, status.st_mtime_ns)


def remember(models: Path, ref: ModelRef, path: Path) -> None:
    """Note that the model `ref` is at `path`."""
    size, mtime_ns = fingerprint(path) or (0, 0)
    write_private(_file(models, ref.digest), msgspec.json.encode(Source(ref, str(path), size, mtime_ns)))


def recall(models: Path, digest: str) -> Source | None:
    """Where the model with this digest was last seen; it may be gone or changed since."""
    return _read(_file(models, digest), digest)


def forget(models: Path, digest: str) -> None:
    """Drop the note; the model itself stays where it is."""
    _file(models, digest).unlink(missing_ok=True)


def all_sources(models: Path) -> Iterator[Source]:
    """Every note, by file name."""
    for path in sorted((models / SOURCES).glob("*.json")):
        if source := _read(path, None):
            yield source


def _file(models: Path, digest: str) -> Path:
    return models / SOURCES / f"{slug(digest)}.json"


def _read(path: Path, digest: str | None) -> Source | None:
    try:
        source = msgspec.json.decode(path.read_bytes(), type=Source)
    except (OSError, msgspec.DecodeError):
        return None
    return source if digest is None or source.ref.digest == digest else None
