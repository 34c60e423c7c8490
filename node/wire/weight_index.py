"""The index of a model's weights as it stands beside them: which tensor is in which file. No I/O."""

from __future__ import annotations

import re

import msgspec

from node.errors import DamagedModel, UnsupportedModel

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""A model has one of the two: all weights in one file, or the index of many."""

_WEIGHT_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors")


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def parse_index(data: bytes, where: str) -> dict[str, str]:
    """Tensor names and the files that hold them, by name alone: all of them lie beside the index.

    Raises:
        DamagedModel: `where` is no index.
        UnsupportedModel: it names a file that is no safetensors file beside it.
    """
    try:
        weight_map = msgspec.json.decode(data, type=_Index).weight_map
    except (msgspec.DecodeError, RecursionError) as error:
        raise DamagedModel(where, f"is no index of weights ({error})") from error
    if not weight_map:
        raise DamagedModel(where, "lists no weights")
    for name in weight_map.values():
        if _WEIGHT_FILE.fullmatch(name) is None:
            raise UnsupportedModel(where, f"the weight file {name[:80]!r}", "*.safetensors beside the index")
    return weight_map
