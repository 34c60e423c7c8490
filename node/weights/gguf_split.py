"""A model that is split into several GGUF files, as llama.cpp's `gguf-split` names them: NAME-00001-of-00003.gguf."""

from __future__ import annotations

import re
from pathlib import Path

from node.errors import DamagedModel

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
    parts = tuple(path.with_name(f"{match[1]}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1))
    for part in parts:
        if not part.is_file():
            raise DamagedModel(
                str(part), f"is missing: the model is split into {count} files", "put all of them into one folder"
            )
    return parts


def is_later_part(name: str) -> bool:
    """Whether a file's name is that of a part of a split model, and not of the first."""
    match = _PART.fullmatch(name)
    return match is not None and int(match[2]) != 1


def model_name(path: Path) -> str:
    """The file's name without its number and ending."""
    match = _PART.fullmatch(path.name)
    return match[1] if match else path.stem
