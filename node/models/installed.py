"""What models this machine has: those in the cache, and local folders that are used where they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from node.errors import DamagedModel, ModelNotFound, UnsupportedModel
from node.models import sources
from node.models.cached_model import MANIFEST, CachedModel, read_manifest
from node.models.local_folder import is_model_folder, metadata_files, weight_files
from node.models.progress import ignore_progress
from node.wire.models import ModelRef


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """One model on this machine."""

    name: str
    source: str
    """As in the model's ref."""
    bytes_on_disk: int
    path: str
    complete: bool
    """Whether all weights are here and whole; a hub model may have some layers' files only."""
    ref: ModelRef


def installed(models: Path) -> list[InstalledModel]:
    """Every model in the cache and every local folder that was used, by name."""
    found = []
    for folder in sorted(path for path in models.glob("*") if path.is_dir()):
        manifest = read_manifest(folder)
        if manifest is None:
            continue
        cell = CachedModel(models, manifest.ref)
        size = sum(manifest.files.values())
        complete = cell.whole((*manifest.files, *manifest.weights))
        found.append(InstalledModel(manifest.ref.name, manifest.ref.source, size, str(folder), complete, manifest.ref))
    cached = {model.ref.digest for model in found}
    for source in sources.all_sources(models):
        folder = Path(source.path)
        if source.ref.digest not in cached and is_model_folder(folder):
            found.append(_used_in_place(source, folder))
    return sorted(found, key=lambda model: (model.name, model.ref.digest))


def _used_in_place(source: sources.Source, folder: Path) -> InstalledModel:
    try:
        names = (*metadata_files(folder), *weight_files(folder))
        size, complete = sum((folder / name).stat().st_size for name in names), True
    except (DamagedModel, UnsupportedModel, OSError):
        size, complete = 0, False
    return InstalledModel(source.ref.name, source.ref.source, size, source.path, complete, source.ref)


def find_installed(name: str, models: Path) -> ModelRef | None:
    """The installed model of that name (for a hub model also `org/name@commit`), or of that folder in the cache.

    Of several those that are whole count, and of several commits of one hub model the one fetched last.

    Raises:
        ModelNotFound: several are equally good; names their folders, which can be told instead.
    """
    matching = [
        model
        for model in installed(models)
        if name in (model.name, model.source.removeprefix("hub:"), Path(model.path).name)
    ]
    matching = [model for model in matching if model.complete] or matching
    if matching and all(model.source.startswith("hub:") for model in matching):
        return max(matching, key=lambda model: (Path(model.path) / MANIFEST).stat().st_mtime_ns).ref
    if len(matching) > 1:
        folders = ", ".join(Path(model.path).name for model in matching)
        raise ModelNotFound(name, f"several models have that name; choose one of {folders}")
    return matching[0].ref if matching else None


def remove(name: str, models: Path) -> InstalledModel:
    """Remove a model from the cache; of a folder that is used where it is, only the note of it.

    Waits while another process prepares that model.

    Raises:
        ModelNotFound: there is none, or several.
    """
    ref = find_installed(name, models)
    if ref is None:
        raise ModelNotFound(name, "it is not installed; see `parallax models`")
    model = next(model for model in installed(models) if model.ref == ref)
    cell = CachedModel(models, ref)
    with cell.locked(ignore_progress):
        cell.discard()
        sources.forget(models, ref.digest)
    return model
