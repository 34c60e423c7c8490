"""The tensors of a model folder by name, in one file or many. Opens only the files that hold what is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from node.errors import DamagedModel
from node.wire.weight_index import INDEX, SINGLE, parse_index

if TYPE_CHECKING:
    import torch


class Checkpoint:
    """Names and places of a model's tensors.

    Raises:
        DamagedModel: no weights in the folder, or an index or header that cannot be read.
        UnsupportedModel: the index names what is no safetensors file beside it.
    """

    def __init__(self, folder: Path) -> None:
        self._file_of: dict[str, Path] = {}
        """Tensor name to file; the file need not be there until it is read."""
        if (index := folder / INDEX).exists():
            self._file_of = _read_index(index)
        elif (single := folder / SINGLE).exists():
            with _open(single) as file:
                self._file_of = dict.fromkeys(file.keys(), single)
        else:
            raise DamagedModel(str(folder), f"holds neither {SINGLE} nor {INDEX}")

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def names(self) -> frozenset[str]:
        """Every tensor's name, also of those whose file is not here."""
        return frozenset(self._file_of)

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._file_of[name]

    def read(self, names: set[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of these names, one at a time, file by file.

        They view the mapped file: copy what shall last, for a file that is replaced under a mapping ends the process.

        Raises:
            DamagedModel: a file is missing, truncated, or lacks a tensor that the index promises.
        """
        for path in sorted({self._file_of[name] for name in names}):
            with _open(path) as file:
                for name in sorted(name for name in names if self._file_of[name] == path):
                    try:
                        tensor = file.get_tensor(name)
                    except SafetensorError as error:
                        raise DamagedModel(str(path), f"tensor {name}: {error}") from error
                    yield name, tensor


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise DamagedModel(str(path), f"cannot be read: {error}") from error


def _read_index(index: Path) -> dict[str, Path]:
    try:
        data = index.read_bytes()
    except OSError as error:
        raise DamagedModel(str(index), f"cannot be read: {error}") from error
    return {tensor: index.parent / file for tensor, file in parse_index(data, str(index)).items()}
