"""Remembers where on this machine a local model lies, since a ref that travels between nodes names no path.

One small file per model in `models/.sources`, found again by the ref's digest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
from msgspec.structs import replace

from node.errors import ModelError
from node.home import write_private
from node.models.cached_model import slug
from node.models.hash_cache import Stamp, stamp_of
from node.models.local_folder import metadata_files, weight_files
from node.weights.gguf_split import parts_of
from node.wire.models import ModelRef

SOURCES = ".sources"


class Source(msgspec.Struct, frozen=True):
    """A local model: a GGUF file (of a split one the first) or a folder."""

    ref: ModelRef
    path: str
    stamps: dict[str, Stamp] = {}
    """Of the file, or of each file in the folder that counts, by name: whether it is still what was hashed."""

    def unchanged(self) -> bool:
        """Whether all of it is still as it was."""
        return bool(self.stamps) and stamps_of(Path(self.path)) == self.stamps


def stamps_of(path: Path) -> dict[str, Stamp]:
    """Of a GGUF file with its other parts, or of the files of a model folder that we use; empty where there is nothing
    to be seen."""
    try:
        if path.is_dir():
            places = {name: path / name for name in (*metadata_files(path), *weight_files(path))}
        else:
            parts = parts_of(path)
            places = {part.name: part for part in parts} if len(parts) > 1 else {"": path}
    except (OSError, ModelError):
        return {}
    stamps = {name: stamp for name, place in places.items() if (stamp := stamp_of(place))}
    return stamps if len(stamps) == len(places) else {}


def same_but_for_links(before: Mapping[str, Stamp], now: Mapping[str, Stamp]) -> bool:
    """Whether files are what they were but for the time of change that a link to them leaves, too."""

    def without_change(stamps: Mapping[str, Stamp]) -> dict[str, Stamp]:
        return {name: replace(stamp, ctime_ns=0) for name, stamp in stamps.items()}

    return bool(before) and without_change(before) == without_change(now)


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
