"""One model's place in the cache: its folder, its lock, and the manifest that says what is whole.

    models/NAME-DIGEST/        config.json, tokenizer, weights as they came and the manifest
    models/.partial/NAME-DIGEST/   what a holder of the lock is working on
    models/.locks/NAME-DIGEST.lock

A file belongs to the model once the manifest lists it with its size, and the manifest is replaced atomically after the
files are on the disk. Beside each weight file lie the hashes of its tensors, as they were when it came; of the other
files the manifest has them. So a process may be killed at any moment: what it had not finished is in `.partial`, which
the next holder of the lock empties, or in no manifest, which nobody reads.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec.structs import replace

from node.home import private_folder, write_private
from node.models.disk import sha256_of, sync_file, sync_folder
from node.models.progress import Report
from node.models.tensor_hashes import Hashes, encoded, hash_tensors, hashes_name
from node.weights.places import SUFFIXES
from node.wire.models import ModelRef

MANIFEST = "parallax.json"
FORMAT = 1
"""Raised when files written by an older version must be made again."""

PARTIAL = ".partial"
LOCKS = ".locks"
WAIT_S = 0.5


class Manifest(msgspec.Struct, frozen=True):
    """What a cell holds."""

    format: int
    ref: ModelRef
    files: dict[str, int]
    """Every whole file and its size in bytes."""
    weights: tuple[str, ...]
    """The weight files of the entire model, also those that were not fetched."""
    sha256: dict[str, str] = {}
    """Of the files that hold no weights, in hex. Models of an older version have none."""


def slug(text: str) -> str:
    """`text` as one harmless part of a path: lower case letters, digits, dots and dashes."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:80] or "model"


class CachedModel:
    """One model's place in the cache. Its name is made of characters that no path can be led astray by."""

    def __init__(self, models: Path, ref: ModelRef) -> None:
        self.ref = ref
        name = f"{slug(ref.name)}-{slug(ref.digest)[:16]}"
        self.folder = models / name
        self.partial = models / PARTIAL / name
        self._lock_path = models / LOCKS / f"{name}.lock"
        self.fresh: set[str] = set()
        """Files that this object has adopted: whoever made them has just read them."""

    def manifest(self) -> Manifest | None:
        """What is listed, or None where nothing usable is: no manifest, an older format, another model."""
        manifest = read_manifest(self.folder)
        if manifest is None or manifest.format != FORMAT or manifest.ref.digest != self.ref.digest:
            return None
        return manifest

    def damage(self, names: Iterable[str] | None = None) -> str | None:
        """What is wrong with the listed files (or with those of `names` that are listed), None if nothing is."""
        manifest = self.manifest()
        if manifest is None:
            return None
        for name in manifest.files if names is None else names:
            if name in manifest.files and (found := size_of(self.folder / name)) != manifest.files[name]:
                return f"{name} is {'missing' if found is None else f'{found} bytes long'}, not {manifest.files[name]}"
        return None

    def whole(self, names: Iterable[str]) -> bool:
        """Whether all of `names` are listed and have the size that the manifest says."""
        manifest = self.manifest()
        return manifest is not None and all(
            name in manifest.files and size_of(self.folder / name) == manifest.files[name] for name in names
        )

    @contextmanager
    def locked(self, report: Report, *, keep_partial: bool = False) -> Iterator[None]:
        """Hold the cell alone among all processes; the system frees the lock of a process that dies.

        Waiting is reported every half second. What a dead process left in `.partial` is removed, unless
        `keep_partial` is set (a hub download goes on where it stopped). When the block ends, `.partial` is empty.
        """
        from filelock import FileLock, Timeout  # only those who write need it

        private_folder(self._lock_path.parent)
        lock = FileLock(self._lock_path)
        while True:
            try:
                lock.acquire(timeout=WAIT_S, poll_interval=0.1)
                break
            except Timeout:
                report("fetch", 0, 0, f"another process prepares {self.ref.name}; waiting for it")
        try:
            if not keep_partial:
                shutil.rmtree(self.partial, ignore_errors=True)
            private_folder(self.partial)
            yield
            shutil.rmtree(self.partial, ignore_errors=True)
        except BaseException:
            if not keep_partial:
                shutil.rmtree(self.partial, ignore_errors=True)
            raise
        finally:
            lock.release()

    def adopt(
        self,
        names: Iterable[str],
        weights: Iterable[str],
        hashes: Mapping[str, Hashes] | None = None,
    ) -> None:
        """Move finished files from `.partial` into the folder, then list them. The caller holds the lock.

        Args:
            hashes: of the tensors of these files, by file, where they have been computed already.
        """
        known = self.manifest()
        files, sums = (dict(known.files), dict(known.sha256)) if known else ({}, {})
        private_folder(self.folder)
        for name in names:
            sync_file(self.partial / name)
            if is_weights(name):
                self.keep_hashes(name, (hashes or {}).get(name) or hash_tensors(self.partial / name))
            else:
                sums[name] = sha256_of(self.partial / name)
            os.replace(self.partial / name, self.folder / name)
            files[name] = (self.folder / name).stat().st_size
            self.fresh.add(name)
        self.list(Manifest(FORMAT, self.ref, files, tuple(sorted(weights)), sums))

    def keep_hashes(self, name: str, hashes: Hashes) -> None:
        """Put the hashes of a weight file into the folder: before the file itself, so that none is without."""
        write_private(self.folder / hashes_name(name), encoded(hashes))

    def list(self, manifest: Manifest) -> None:
        """Say what belongs to the model, once all of it is on the disk. The caller holds the lock."""
        sync_folder(self.folder)
        write_private(self.folder / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)))
        sync_folder(self.folder)
        sync_folder(self.folder.parent)

    def disown(self, name: str) -> None:
        """Take a damaged file out of the manifest: it is to be made or fetched anew. The caller holds the lock."""
        manifest = self.manifest()
        if manifest is not None:
            self.list(replace(manifest, files={file: size for file, size in manifest.files.items() if file != name}))

    def unlist(self) -> None:
        """Remove the manifest: the files that are about to be replaced are no model any more."""
        (self.folder / MANIFEST).unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove the model. The manifest goes first, so that no rest is taken for a model."""
        self.unlist()
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.partial, ignore_errors=True)


def is_weights(name: str) -> bool:
    """Whether a file of a model holds weights."""
    return name.endswith(SUFFIXES)


def hashing(report: Report, total_bytes: int, name: str) -> Callable[[int], None]:
    """Reports how far the hashing of `total_bytes` is."""
    return reading(report, total_bytes, name, "checking")


def reading(report: Report, total_bytes: int, name: str, doing: str = "reading") -> Callable[[int], None]:
    """Reports how much of `total_bytes` has been read."""
    done_bytes = 0

    def on_bytes(count: int) -> None:
        nonlocal done_bytes
        done_bytes += count
        report("load", min(done_bytes, total_bytes), total_bytes, f"{doing} {name}")

    return on_bytes


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in `folder`, or None where there is none that can be read."""
    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError):
        return None


def size_of(path: Path) -> int | None:
    """The file's size, or None where there is no file."""
    try:
        return path.stat().st_size
    except OSError:
        return None
