"""A model that is split into several GGUF files, as llama.cpp's `gguf-split` names them: NAME-00001-of-00003.gguf."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from node.errors import DamagedModel, UnsupportedModel
from node.weights.gguf_file import GgufFile, GgufTensor, read_gguf

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)
PARTS_LIMIT = 1000


def parts_of(path: Path) -> tuple[Path, ...]:
    """Every file of the model that the file `path` belongs to, in order; itself where it stands alone.

    Raises:
        DamagedModel: a part is missing.
    """
    match = _PART.fullmatch(path.name)
    if match is None:
        return (path,)
    count = int(match[3])
    if not 1 <= int(match[2]) <= count <= PARTS_LIMIT:
        raise DamagedModel(str(path), "is named as a part of a split model that cannot be")
    parts = tuple(path.with_name(name) for name in part_names(count, match[1]))
    for part in parts:
        if not part.is_file():
            raise DamagedModel(
                str(part), f"is missing: the model is split into {count} files", "put all of them into one folder"
            )
    return parts


def read_parts(files: Sequence[Path]) -> tuple[GgufFile, dict[str, Path]]:
    """The header of the model that is in these files, metadata of the first and tensors of all, and the file that each
    tensor is in.

    Raises:
        DamagedModel, UnsupportedModel: as `read_gguf`, or the parts do not belong together.
    """
    tensors: dict[str, GgufTensor] = {}
    places: dict[str, Path] = {}
    total: int | None = None
    headers: list[GgufFile] = []
    for number, path in enumerate(files):
        header = read_gguf(path)
        headers.append(header)
        count, place = header.integer("split.count", 1), header.integer("split.no", 0)
        if max(count, 1) != len(files) or place != number:
            what = f"says that it is part {place + 1} of {count}"
            raise DamagedModel(str(path), what, "name the parts as llama.cpp does: NAME-00001-of-00002.gguf")
        total = header.integer("split.tensors.count", 0) or total
        for name, tensor in header.tensors.items():
            if name in places:
                raise DamagedModel(str(path), f"the tensor {name[:80]} is in another part too")
            tensors[name], places[name] = tensor, path
    if len(files) > 1 and total is not None and total != len(places):
        raise DamagedModel(str(files[0]), f"the parts have {len(places)} tensors together, not {total}")
    return replace(headers[0], tensors=tensors), places


def read_model(path: Path) -> GgufFile:
    """The header of the model that the file `path` belongs to: metadata of the first part, tensors of all.

    Raises:
        DamagedModel, UnsupportedModel: as `read_parts`.
    """
    return read_parts(parts_of(path))[0]


def is_later_part(name: str) -> bool:
    """Whether a file's name is that of a part of a split model, and not of the first."""
    match = _PART.fullmatch(name)
    return match is not None and int(match[2]) != 1


def model_name(path: Path) -> str:
    """The file's name without its number and ending."""
    match = _PART.fullmatch(path.name)
    return match[1] if match else path.stem


def part_names(count: int, stem: str = "model") -> tuple[str, ...]:
    """What the files of a model in so many parts are called."""
    if count == 1:
        return (f"{stem}.gguf",)
    return tuple(f"{stem}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1))


def gguf_in(folder: Path) -> Path | None:
    """The GGUF file of a model folder, of a split one the first; None where it has none.

    Raises:
        UnsupportedModel: several models lie there.
    """
    found = sorted(path for path in folder.glob("*.gguf") if not is_later_part(path.name))
    if len(found) > 1:
        names = ", ".join(path.name[:80] for path in found[:3])
        raise UnsupportedModel(str(folder), f"several GGUF models in one folder ({names})", "one model in a folder")
    return found[0] if found else None
