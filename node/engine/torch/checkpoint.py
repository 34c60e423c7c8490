"""The tensors of a model folder by transformers' names, whatever its weights are stored as."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from safetensors import SafetensorError, safe_open

from node.engine.torch.joined_tensors import file_of, joined_tensors, read_joined
from node.errors import DamagedModel
from node.weights.base import Weights
from node.weights.folder import open_weights
from node.weights.gguf_split import gguf_in
from node.weights.hub_files import HubFiles
from node.weights.hub_weights import is_stored_otherwise

if TYPE_CHECKING:
    import torch


class Checkpoint(Protocol):
    """Names and places of a model's tensors."""

    def names(self) -> frozenset[str]:
        """Every tensor's name, also of those whose file is not here."""

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor, or a part of it."""

    def read(self, names: set[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of these names, one at a time.

        They may view the mapped file: copy what shall last, for a file that is replaced under a mapping ends the
        process.

        Raises:
            DamagedModel: a file is missing, truncated, or lacks a tensor that the index promises.
            UnsupportedModel: a tensor is stored in a way that is not known here.
        """


def open_checkpoint(folder: Path, config: Any) -> Checkpoint:
    """The tensors of the folder: safetensors as they are, where they are what transformers holds; else put together.

    Args:
        config: transformers' own, of the whole model.

    Raises:
        DamagedModel: no weights in the folder, or an index or header that cannot be read.
        UnsupportedModel: the index names what is no safetensors file beside it, or a family that is not known.
    """
    if gguf_in(folder) is None and not is_stored_otherwise(folder):
        return PlainCheckpoint(folder)
    return JoinedCheckpoint(open_weights(folder), config)


class PlainCheckpoint:
    """Safetensors whose names and types are transformers' own."""

    def __init__(self, folder: Path) -> None:
        self._places = HubFiles(folder).file_of

    def names(self) -> frozenset[str]:
        """See `Checkpoint`."""
        return frozenset(self._places)

    def file_of(self, name: str) -> Path:
        """See `Checkpoint`."""
        return self._places[name]

    def read(self, names: set[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """See `Checkpoint`. File by file."""
        for path in sorted({self._places[name] for name in names}):
            with _open(path) as file:
                for name in sorted(name for name in names if self._places[name] == path):
                    try:
                        tensor = file.get_tensor(name)
                    except SafetensorError as error:
                        raise DamagedModel(str(path), f"tensor {name}: {error}") from error
                    yield name, tensor


class JoinedCheckpoint:
    """Weights of another form, put together tensor by tensor."""

    def __init__(self, weights: Weights, config: Any) -> None:
        self._weights = weights
        self._tensors = joined_tensors(weights)
        words = ("num_attention_heads", "num_key_value_heads")
        self._heads = {word: int(getattr(config, word)) for word in words if hasattr(config, word)}

    def names(self) -> frozenset[str]:
        """See `Checkpoint`."""
        return frozenset(self._tensors)

    def file_of(self, name: str) -> Path:
        """See `Checkpoint`."""
        return file_of(self._weights, self._tensors[name])

    def read(self, names: set[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """See `Checkpoint`. In the order of the model's layers."""
        import torch

        for name, joined in self._tensors.items():
            if name in names:
                values = read_joined(self._weights, joined, self._heads)
                if not values.flags.writeable:  # torch warns of views that cannot be written to, which nobody does
                    values = values.copy()
                yield name, torch.from_numpy(values)


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise DamagedModel(str(path), f"cannot be read: {error}") from error
