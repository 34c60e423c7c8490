"""Takes over copies of folders that an older version imported: it named them by their layout, not by their bytes."""

from __future__ import annotations

import os
from pathlib import Path

from msgspec.structs import replace

from node.models.cached_model import CachedModel, Manifest, hashing, read_manifest, size_of
from node.models.local_folder import describe
from node.models.progress import Report
from node.models.tensor_hashes import Hashes, hash_tensors, read_hashes
from node.wire.models import ModelRef


def is_older(folder: Path, manifest: Manifest) -> bool:
    """Whether the copied folder in the cache is named by something else than its bytes."""
    copied = manifest.ref.source.startswith("folder:")
    return copied and not any(read_hashes(folder, name) is not None for name in manifest.weights)


def take_over_older(models: Path, report: Report) -> dict[str, ModelRef]:
    """Hash such copies and call them by what they are. Returns their new refs by the former digests."""
    renamed: dict[str, ModelRef] = {}
    for folder in sorted(path for path in models.glob("*") if path.is_dir()):
        manifest = read_manifest(folder)
        if manifest is None or not is_older(folder, manifest):
            continue
        cell = CachedModel(models, manifest.ref)
        if not cell.whole((*manifest.files, *manifest.weights)):
            continue
        with cell.locked(report):
            ref = _take_over(cell, manifest, models, report)
        if ref.digest != manifest.ref.digest:
            renamed[manifest.ref.digest] = ref
    return renamed


def _take_over(cell: CachedModel, manifest: Manifest, models: Path, report: Report) -> ModelRef:
    report("load", 0, 0, f"{manifest.ref.name} was imported by an older version; its bytes are hashed now, once")

    def hashes(path: Path) -> Hashes:
        found = hash_tensors(path, on_bytes=hashing(report, size_of(path) or 0, path.name))
        cell.keep_hashes(path.name, found)
        return found

    ref = describe(cell.folder, hashes, manifest.ref.name)
    after = CachedModel(models, ref)
    if ref.digest == manifest.ref.digest or after.folder.exists():
        return ref
    os.rename(cell.folder, after.folder)
    after.list(replace(manifest, ref=ref))
    return ref
