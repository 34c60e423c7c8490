"""What a person means by `--model`: one exact model."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from node.errors import DamagedModel, ModelNotFound
from node.models import hub, sources
from node.models.cached_model import hashing, reading, slug
from node.models.default_model import DEFAULT_NAME, DEFAULT_REF
from node.models.gguf_config import architecture_of
from node.models.hash_cache import cached_hashes, remember, stamp_of
from node.models.installed import find_installed, installed
from node.models.local_folder import describe, is_model_folder
from node.models.older_copies import take_over_older
from node.models.progress import Report, ignore_progress
from node.models.runnable import refuse_adapter, refuse_what_cannot_run
from node.models.tensor_hashes import Hashes, hash_file
from node.weights.gguf_split import gguf_in, model_name, parts_of, read_model
from node.wire.models import ModelRef

DEFAULT_NAMES = ("", "default", DEFAULT_NAME)


def identify(choice: str | None, models: Path, report: Report = ignore_progress) -> ModelRef:
    """The model that `choice` names, looked for in this order.

    None, `default` or the default's name; a GGUF file, or a folder with one; a folder with config.json; the name of an
    installed model; a hub id (`org/name` or `org/name@revision`). So an installed hub model is used without asking the
    hub; `org/name@main` asks for the newest. May hash large files: blocks.

    Raises:
        ModelNotFound: nothing of that name, or more than one thing; says what was tried, or what to choose from.
        FetchFailed: the hub does not answer.
        DamagedModel, UnsupportedModel: the local file or folder cannot be used.
    """
    if choice is None or choice in DEFAULT_NAMES:
        return DEFAULT_REF
    path = Path(choice).expanduser()
    take_over_older(models, report)
    if path.is_file() and path.suffix.lower() == ".gguf":
        return identify_gguf(path, models, report)
    if not is_model_folder(path) and path.is_dir() and (gguf := gguf_in(path)) is not None:
        return identify_gguf(gguf, models, report)
    if is_model_folder(path):
        return _the_folder_alone(choice, identify_folder(path, models, report), models)
    if (found := find_installed(choice, models)) is not None:
        if found.in_place:
            return identify_folder(Path(found.path), models, report)  # as it is now
        return found.ref
    if path.exists():
        refuse_adapter(path)
        what = "a folder without config.json" if path.is_dir() else "no .gguf file"
        raise ModelNotFound(choice, f"{path} is there, but it is {what}")
    if hub.is_hub_id(choice) and not choice.endswith(".gguf"):
        return hub.resolve(choice)
    raise ModelNotFound(
        choice,
        "there is no such .gguf file or folder, no installed model of that name (see `parallax models`), "
        "and it is no hub id like org/name",
    )


def _the_folder_alone(choice: str, folder: ModelRef, models: Path) -> ModelRef:
    """The folder of that name, unless a bare name could as well mean other bytes that are installed.

    Raises:
        ModelNotFound: it could.
    """
    if "/" in choice or "\\" in choice or choice in (".", ".."):
        return folder
    copies = [model for model in installed(models) if model.name == choice and not model.in_place]
    if copies and all(model.ref.digest != folder.digest for model in copies):
        names = ", ".join(Path(model.path).name for model in copies)
        what_now = f"a folder here and an installed model have that name; choose ./{choice} or one of {names}"
        raise ModelNotFound(choice, what_now)
    return folder


def identify_gguf(path: Path, models: Path, report: Report = ignore_progress) -> ModelRef:
    """The ref of a GGUF file, whose place is remembered.

    Raises:
        DamagedModel, UnsupportedModel: the file cannot be used.
    """
    path = parts_of(path.resolve())[0]
    stamps = sources.stamps_of(path)
    for source in sources.all_sources(models):
        if source.path == str(path) and stamps and source.stamps == stamps:
            return source.ref
    file = read_model(path)
    architecture_of(file)  # refused now rather than after hashing it
    digest = _digest(parts_of(path), models, report)
    if stamps != sources.stamps_of(path):
        raise DamagedModel(str(path), "was changed while it was read", "try again once it is written")
    named = file.metadata.get("general.name")
    name = slug(named if isinstance(named, str) and named else model_name(path))
    ref = ModelRef(name, f"gguf:{path.name[-400:]}", digest)
    if digest == DEFAULT_REF.digest:
        ref = DEFAULT_REF
    sources.remember(models, ref, path, stamps)
    return ref


def _digest(parts: tuple[Path, ...], models: Path, report: Report) -> str:
    """The SHA-256 of a GGUF file, or of the list of those of its parts. Its tensors' hashes are remembered, too."""
    total_bytes = sum(part.stat().st_size for part in parts)
    on_bytes = reading(report, total_bytes, parts[0].name)
    digests = []
    for part in parts:
        stamp = stamp_of(part)
        digest, hashes = hash_file(part, on_bytes)
        if stamp is not None:
            remember(models, part, stamp, hashes)
        digests.append(digest)
    return digests[0] if len(digests) == 1 else sha256("\n".join(digests).encode()).hexdigest()


def identify_folder(path: Path, models: Path, report: Report = ignore_progress) -> ModelRef:
    """The ref of a model folder, whose place is remembered.

    Raises:
        DamagedModel, UnsupportedModel: the folder cannot be used.
    """
    path = path.resolve()
    refuse_what_cannot_run(path)
    stamps = sources.stamps_of(path)

    def hashes(weights: Path) -> Hashes:
        return cached_hashes(models, weights, hashing(report, weights.stat().st_size, weights.name))

    ref = describe(path, hashes)
    sources.remember(models, ref, path, stamps)
    return ref
