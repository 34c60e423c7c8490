"""Looks whether the bytes on the disk still are those that were fetched, converted or imported.

A disk, a cable or a bug may change bytes without changing a size, and the model then says something else, fluently. So
what is about to be loaded is read and hashed first: the tensors of these layers and no others. It costs a read (the
load that follows finds the bytes in the system's memory) and no second of service, since it is a child that does it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from node.errors import DamagedModel
from node.models.cached_model import CachedModel, hashing, is_weights, size_of
from node.models.disk import sha256_of
from node.models.facts import layer_count
from node.models.hash_cache import known_hashes
from node.models.hub_files import tensors_for_layers
from node.models.local_folder import weight_files
from node.models.progress import Report
from node.models.tensor_hashes import Hashes, first_difference, hash_tensors, read_hashes
from node.weights.places import tensor_places

Layers = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Flaw:
    """A file whose bytes have changed."""

    file: str
    tensor: str | None = None
    """None where the file holds no weights, or not even says which."""

    def __str__(self) -> str:
        inside = f" (in the tensor {self.tensor})" if self.tensor else ""
        return f"{self.file} has other bytes than it came with{inside}: the disk may be failing"


def first_flaw(
    cell: CachedModel, layers: Layers | None, report: Report, *, names: Iterable[str] | None = None
) -> Flaw | None:
    """The first of a cached model's files (or of `names`) whose bytes are not those that it came with.

    Files that hold no weights are looked at whole, weights only as far as `layers` need them. Files of an older
    version, which kept no hashes, are taken as they are, and get some.

    Raises:
        DamagedModel: a file is cut short or has no header that can be read.
    """
    manifest = cell.manifest()
    if manifest is None:
        return None
    chosen = [name for name in (manifest.files if names is None else names) if name in manifest.files]
    for name in chosen:
        if name in cell.fresh or is_weights(name):
            continue
        if name in manifest.sha256 and sha256_of(cell.folder / name) != manifest.sha256[name]:
            return Flaw(name)
    if layers is None:
        return None
    kept: dict[str, Hashes] = {}
    for name in filter(is_weights, chosen):
        known = read_hashes(cell.folder, name)
        kept[name] = _hashed_now(cell, name, report) if known is None else known
    wanted = tensors_for_layers(
        (tensor for hashes in kept.values() for tensor in hashes), layers, layer_count(cell.folder)
    )
    for name in sorted(kept.keys() - cell.fresh):
        if (flaw := _flaw_of(cell.folder / name, kept[name], wanted, report)) is not None:
            return flaw
    return None


def first_flaw_in_place(folder: Path, models: Path, layers: Layers, report: Report) -> Flaw | None:
    """The same of a folder that is used where it is, after its hashes have been computed or remembered."""
    kept = {name: known for name in weight_files(folder) if (known := known_hashes(models, folder / name)) is not None}
    wanted = tensors_for_layers((tensor for hashes in kept.values() for tensor in hashes), layers, layer_count(folder))
    for name, hashes in sorted(kept.items()):
        if (flaw := _flaw_of(folder / name, hashes, wanted, report)) is not None:
            return flaw
    return None


def _flaw_of(path: Path, known: Hashes, wanted: set[str], report: Report) -> Flaw | None:
    names = wanted & known.keys()
    if not names:
        return None
    try:
        places = tensor_places(path)
        total_bytes = sum(places[name].end - places[name].start for name in names & places.keys())
        different = first_difference(path, known, names, hashing(report, total_bytes, path.name))
    except DamagedModel:  # its header has changed, or the disk does not give its bytes
        return Flaw(path.name)
    return Flaw(path.name, different) if different is not None else None


def _hashed_now(cell: CachedModel, name: str, report: Report) -> Hashes:
    path = cell.folder / name
    report("load", 0, 0, f"{cell.ref.name} is from an older version, which kept no hashes; they are made now, once")
    hashes = hash_tensors(path, on_bytes=hashing(report, size_of(path) or 0, name))
    cell.keep_hashes(name, hashes)
    cell.fresh.add(name)
    return hashes
