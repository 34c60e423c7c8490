"""A Hugging Face model folder on this machine: which files count, its digest, and whether it is whole."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from node.errors import DamagedModel, UnsupportedModel
from node.models.cached_model import slug
from node.models.hub_files import CONFIG, METADATA, TOKENIZER, all_weight_files, read_index
from node.models.tensor_hashes import Hashes
from node.weights.gguf_split import gguf_in, parts_of
from node.wire.models import ModelRef
from node.wire.weight_index import INDEX, SINGLE


def is_model_folder(path: Path) -> bool:
    """Whether `path` is a folder with a config.json."""
    return (path / CONFIG).is_file()


def weight_files(folder: Path) -> tuple[str, ...]:
    """Names of the folder's weight files.

    Raises:
        DamagedModel: the index cannot be read.
        UnsupportedModel: there are neither safetensors nor one GGUF model.
    """
    index = read_index(folder / INDEX) if (folder / INDEX).is_file() else None
    if index is None and not (folder / SINGLE).is_file() and (gguf := gguf_in(folder)) is not None:
        return tuple(part.name for part in parts_of(gguf))
    return all_weight_files((path.name for path in folder.iterdir()), index, str(folder))


def metadata_files(folder: Path) -> tuple[str, ...]:
    """Names of the folder's other files that we use."""
    return tuple(name for name in METADATA if (folder / name).is_file())


def describe(folder: Path, hashes: Callable[[Path], Hashes], name: str | None = None) -> ModelRef:
    """The ref of a local folder, after checking that its files are whole.

    The digest covers every byte that we use: the files that describe the model, and each tensor's name, type, shape and
    data. It says nothing of how the tensors are spread over files.

    Args:
        hashes: the hashes of a weight file, which take long to compute.
        name: what the model is called; the folder's own name where left out.

    Raises:
        DamagedModel: a file is missing, truncated or being written.
        UnsupportedModel: no safetensors, no tokenizer.json, or a model that we cannot run.
    """
    digest = hashlib.sha256()
    if not (folder / TOKENIZER).is_file():
        raise UnsupportedModel(str(folder), "a folder without tokenizer.json", "a folder with tokenizer.json")
    for file in sorted(metadata_files(folder)):
        try:
            data = (folder / file).read_bytes()
        except OSError as error:
            raise DamagedModel(str(folder / file), f"cannot be read ({error.strerror})") from error
        if file != INDEX:
            digest.update(f"{file} {hashlib.sha256(data).hexdigest()}\n".encode())
    tensors: dict[str, str] = {}
    for weights in weight_files(folder):
        tensors |= hashes(folder / weights)
    for tensor in sorted(tensors):
        digest.update(f"{tensor} {tensors[tensor]}\n".encode())
    name = name or _name(folder)
    return ModelRef(name, f"folder:{name}", digest.hexdigest())


def _name(folder: Path) -> str:
    """The folder's name; a snapshot in the hub's own cache is called as on the hub."""
    match = re.fullmatch(r"models--(.+)", folder.parent.parent.name)
    if match and folder.parent.name == "snapshots":
        return match[1].replace("--", "/", 1)[:200]
    return slug(folder.name)
