"""What models this machine has: those in the cache, and local folders that are used where they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from node.errors import DamagedModel, ModelNotFound, UnsupportedModel
from node.models import hash_cache, sources
from node.models.cached_model import MANIFEST, CachedModel, read_manifest
from node.models.default_model import DEFAULT_NAME, DEFAULT_REF
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
    state: Literal["whole", "in part", "changed"]
    """Whether all weights are here and as long as they were; a hub model may have some layers' files only. Changed: a
    folder that is used where it is has other files than when it was chosen; choosing it takes it as it is."""
    ref: ModelRef
    in_place: bool = False
    """It is no copy in the cache but a folder of its owner's."""

    @property
    def complete(self) -> bool:
        return self.state == "whole"


def installed(models: Path) -> list[InstalledModel]:
    """Every model in the cache and every local folder that was used, by name."""
    found = []
    for folder in sorted(path for path in models.glob("*") if path.is_dir()):
        manifest = read_manifest(folder)
        if manifest is None:
            continue
        cell, ref = CachedModel(models, manifest.ref), manifest.ref
        size = sum(manifest.files.values())
        whole = cell.whole((*manifest.files, *manifest.weights))
        found.append(InstalledModel(ref.name, ref.source, size, str(folder), "whole" if whole else "in part", ref))
    cached = {model.ref.digest for model in found}
    for source in sources.all_sources(models):
        folder = Path(source.path)
        if source.ref.digest not in cached and is_model_folder(folder):
            found.append(_used_in_place(source, folder))
    return sorted(found, key=lambda model: (model.name, model.ref.digest))


def _used_in_place(source: sources.Source, folder: Path) -> InstalledModel:
    state: Literal["whole", "in part", "changed"] = "whole" if source.unchanged() else "changed"
    try:
        names = (*metadata_files(folder), *weight_files(folder))
        size = sum((folder / name).stat().st_size for name in names)
    except (DamagedModel, UnsupportedModel, OSError):
        size, state = 0, "in part"
    return InstalledModel(source.ref.name, source.ref.source, size, source.path, state, source.ref, in_place=True)


def find_installed(name: str, models: Path) -> InstalledModel | None:
    """The installed model of that name (for a hub model also `org/name@commit`), or of that folder.

    Of several those that are whole count, and of several commits of one hub model the one fetched last.

    Raises:
        ModelNotFound: several are equally good; names what can be told instead.
    """
    matching = _matching(name, installed(models))
    if len(matching) > 1:
        exact = ", ".join(_exact_name(model) for model in matching)
        raise ModelNotFound(name, f"several models have that name; choose one of {exact}")
    return matching[0] if matching else None


def choosable_name(model: InstalledModel, among: list[InstalledModel]) -> str:
    """What `--model` takes for exactly this one: its name, or where that means another one too, something longer."""
    if model.name in ("default", DEFAULT_NAME):
        return model.name if model.ref == DEFAULT_REF else _exact_name(model)
    return model.name if _matching(model.name, among) == [model] else _exact_name(model)


def _exact_name(model: InstalledModel) -> str:
    return model.path if model.in_place else Path(model.path).name


def _matching(name: str, among: list[InstalledModel]) -> list[InstalledModel]:
    named = [
        model
        for model in among
        if name in (model.name, model.source.removeprefix("hub:"), model.path, Path(model.path).name)
    ]
    named = [model for model in named if model.complete] or named
    if named and all(model.source.startswith("hub:") for model in named):
        return [max(named, key=lambda model: (Path(model.path) / MANIFEST).stat().st_mtime_ns)]
    return named


def remove(name: str, models: Path) -> InstalledModel:
    """Remove a model from the cache; of a folder that is used where it is, only the note of it.

    Waits while another process prepares that model.

    Raises:
        ModelNotFound: there is none, or several.
    """
    model = find_installed(name, models)
    if model is None:
        raise ModelNotFound(name, "it is not installed; see `parallax models`")
    cell = CachedModel(models, model.ref)
    source = sources.recall(models, model.ref.digest)
    with cell.locked(ignore_progress):
        cell.discard()
        sources.forget(models, model.ref.digest)
        if source is not None:
            hash_cache.forget(models, Path(source.path))
    return model
