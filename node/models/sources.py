"""Remembers where on this machine a local model lies, since a ref that travels between nodes names no path.

One small file per model in `models/.sources`, found again by the ref's digest.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from node.errors import ModelError
from node.home import write_private
from node.models.cached_model import slug
from node.models.hash_cache import Stamp, stamp_of
from node.models.local_folder import metadata_files, weight_files
from node.wire.models import ModelRef

SOURCES = ".sources"


class Source(msgspec.Struct, frozen=True):
    """A local model: a GGUF file or a folder."""

    ref: ModelRef
    path: str
    stamps: dict[str, Stamp] = {}
    """Of the file, or of each file in the folder that counts, by name: whether it is still what was hashed."""

    def unchanged(self) -> bool:
        """Whether all of it is still as it was."""
        return bool(self.stamps) and stamps_of(Path(self.path)) == self.stamps


def stamps_of(path: Path) -> dict[str, Stamp]:
    """Of a GGUF file, or of the files of a model folder that we use; empty where there is nothing to be seen."""
    try:
        names = (*metadata_files(path), *weight_files(path)) if path.is_dir() else ("",)
    except (OSError, ModelError):
        return {}
    stamps = {name: stamp for name in names if (stamp := stamp_of(path / name))}
    return stamps if len(stamps) == len(names) else {}


def remember(models: Path, ref: ModelRef, path: Path, stamps: dict[str, Stamp]) -> None:
    """Note that the model `ref` is at `path`, with these stamps before it was read. What was there before is gone."""
    for source in all_sources(models):
        if source.path == str(path) and source.ref.digest != ref.digest:
            forget(models, source.ref.digest)
    write_private(_file(models, ref.digest), msgspec.json.encode(Source(ref, str(path), stamps)))


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
