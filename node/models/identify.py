"""What a person means by `--model`: one exact model."""

from __future__ import annotations

from pathlib import Path

from node.errors import ModelNotFound
from node.models import hub, sources
from node.models.cached_model import slug
from node.models.default_model import DEFAULT_NAME, DEFAULT_REF
from node.models.disk import sha256_of
from node.models.gguf_config import family
from node.models.gguf_file import read_gguf
from node.models.installed import find_installed
from node.models.local_folder import describe, is_model_folder
from node.wire.models import ModelRef

DEFAULT_NAMES = ("", "default", DEFAULT_NAME)


def identify(choice: str | None, models: Path) -> ModelRef:
    """The model that `choice` names, looked for in this order.

    None, `default` or the default's name; a GGUF file; a folder with config.json; the name of an installed model; a hub
    id (`org/name` or `org/name@revision`). So an installed hub model is used without asking the hub; `org/name@main`
    asks for the newest. May hash a large file: blocks.

    Raises:
        ModelNotFound: nothing of that name; says what was tried.
        FetchFailed: the hub does not answer.
        DamagedModel, UnsupportedModel: the local file or folder cannot be used.
    """
    if choice is None or choice in DEFAULT_NAMES:
        return DEFAULT_REF
    path = Path(choice).expanduser()
    if path.is_file() and path.suffix.lower() == ".gguf":
        return identify_gguf(path, models)
    if is_model_folder(path):
        return identify_folder(path, models)
    if (installed := find_installed(choice, models)) is not None:
        return installed
    if path.exists():
        what = "a folder without config.json" if path.is_dir() else "no .gguf file"
        raise ModelNotFound(choice, f"{path} is there, but it is {what}")
    if hub.is_hub_id(choice) and not choice.endswith(".gguf"):
        return hub.resolve(choice)
    raise ModelNotFound(
        choice,
        "there is no such .gguf file or folder, no installed model of that name (see `parallax models`), "
        "and it is no hub id like org/name",
    )


def identify_gguf(path: Path, models: Path) -> ModelRef:
    """The ref of a GGUF file, whose place is remembered.

    Raises:
        DamagedModel, UnsupportedModel: the file cannot be used.
    """
    path = path.resolve()
    print_now = sources.fingerprint(path)
    for source in sources.all_sources(models):
        if source.path == str(path) and (source.size, source.mtime_ns) == print_now:
            return source.ref
    file = read_gguf(path)
    family(file)  # refused now rather than after hashing it
    digest = sha256_of(path)
    named = file.metadata.get("general.name")
    name = slug(named if isinstance(named, str) and named else path.stem)
    ref = ModelRef(name, f"gguf:{path.name[-400:]}", digest)
    if digest == DEFAULT_REF.digest:
        ref = DEFAULT_REF
    sources.remember(models, ref, path)
    return ref


def identify_folder(path: Path, models: Path) -> ModelRef:
    """The ref of a model folder, whose place is remembered.

    Raises:
        DamagedModel, UnsupportedModel: the folder cannot be used.
    """
    path = path.resolve()
    ref = describe(path)
    sources.remember(models, ref, path)
    return ref
