"""A Hugging Face model folder on this machine: which files count, its digest, and whether it is whole."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from node.errors import DamagedModel, UnsupportedModel
from node.models.cached_model import slug
from node.models.hub_files import CONFIG, INDEX, METADATA, TOKENIZER, all_weight_files, read_index
from node.models.safetensors_file import read_header
from node.wire.models import ModelRef


def is_model_folder(path: Path) -> bool:
    """Whether `path` is a folder with a config.json."""
    return (path / CONFIG).is_file()


def weight_files(folder: Path) -> tuple[str, ...]:
    """Names of the folder's weight files.

    Raises:
        DamagedModel: the index cannot be read.
        UnsupportedModel: there are no safetensors.
    """
    index = read_index(folder / INDEX) if (folder / INDEX).is_file() else None
    return all_weight_files((path.name for path in folder.iterdir()), index, str(folder))


def metadata_files(folder: Path) -> tuple[str, ...]:
    """Names of the folder's other files that we use."""
    return tuple(name for name in METADATA if (folder / name).is_file())


def describe(folder: Path) -> ModelRef:
    """The ref of a local folder, after checking that its files are whole.

    The digest covers config.json and the names, sizes and headers of the weight files. The data itself may be
    hundreds of gigabytes; two fine-tunes with equal headers are told apart by config or name alone.

    Raises:
        DamagedModel: a file is missing or truncated.
        UnsupportedModel: no safetensors, or no tokenizer.json.
    """
    digest = hashlib.sha256()
    try:
        digest.update((folder / CONFIG).read_bytes())
    except OSError as error:
        raise DamagedModel(str(folder / CONFIG), f"cannot be read ({error.strerror})") from error
    if not (folder / TOKENIZER).is_file():
        raise UnsupportedModel(str(folder), "a folder without tokenizer.json", "a folder with tokenizer.json")
    for name in weight_files(folder):
        header = read_header(folder / name)
        digest.update(f"\n{name} {(folder / name).stat().st_size}\n".encode())
        digest.update(header)
    name = _name(folder)
    return ModelRef(name, f"folder:{name}", digest.hexdigest())


def _name(folder: Path) -> str:
    """The folder's name; a snapshot in the hub's own cache is called as on the hub."""
    match = re.fullmatch(r"models--(.+)", folder.parent.parent.name)
    if match and folder.parent.name == "snapshots":
        return match[1].replace("--", "/", 1)[:200]
    return slug(folder.name)
