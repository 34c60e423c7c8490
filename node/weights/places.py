"""Where the tensors of a weight file lie, whichever of the two formats it is in. Without numpy."""

from __future__ import annotations

from pathlib import Path

from node.weights.gguf_file import read_gguf
from node.weights.safetensors_file import StoredTensor, read_tensors

SUFFIXES = (".safetensors", ".gguf")
"""Of files that hold weights."""

HEADER = "(header)"
"""A GGUF file's metadata say how its tensors are computed with. A name that no tensor has."""


def tensor_places(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file by name; of a GGUF file also what stands before them, as `HEADER`.

    Raises:
        DamagedModel, UnsupportedModel: its header cannot be read.
    """
    if path.suffix.lower() != ".gguf":
        return read_tensors(path)
    places = {
        name: StoredTensor(tensor.kind, tensor.shape, tensor.offset, tensor.offset + tensor.nbytes)
        for name, tensor in read_gguf(path).tensors.items()
    }
    end = min((place.start for place in places.values()), default=0)
    return {HEADER: StoredTensor("", (end,), 0, end), **places}
