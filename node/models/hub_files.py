"""Which of a Hugging Face model's files are wanted at all, and which hold given layers. No I/O.

Names are allow-listed: pickles (*.bin, *.pt) and Python files are never asked for, whatever a repository offers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from node.errors import BadLayers, DamagedModel, UnsupportedModel
from node.weights.places import HEADER
from node.wire.layer_range import layer_range
from node.wire.weight_index import INDEX, SINGLE, parse_index

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
METADATA = (
    CONFIG,
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    INDEX,
)
METADATA_LIMIT_BYTES = 256 * 1024 * 1024
"""For each; the index of a 1,000 B model has 10 MB, the largest tokenizers have 35 MB."""

_LAYER = re.compile(r"(?:^|\.)(?:layers|blk)\.(\d{1,6})\.")
_NOT_TEXT = re.compile(r"(?:^|\.)(?:vision|visual|audio|multi_modal|vit)")
"""Towers for pictures and sound number their layers too."""


def read_index(path: Path) -> dict[str, str]:
    """Tensor names and the files that hold them.

    Raises:
        DamagedModel: the index cannot be read.
        UnsupportedModel: it names a file that is no safetensors file beside it.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DamagedModel(str(path), f"cannot be read ({error.strerror})") from error
    return parse_index(data, str(path))


def all_weight_files(names: Iterable[str], index: Mapping[str, str] | None, where: str) -> tuple[str, ...]:
    """The weight files of the whole model, out of the names that a repository or folder has.

    Raises:
        UnsupportedModel: there are no safetensors.
    """
    if index is not None:
        return tuple(sorted(set(index.values())))
    if SINGLE in set(names):
        return (SINGLE,)
    raise UnsupportedModel(where, "a model without model.safetensors or its index", "weights as safetensors")


def files_for_layers(index: Mapping[str, str], layers: tuple[int, int], layer_count: int) -> set[str]:
    """The files that hold layers [i, j): with the first also the embedding, with the last final norm and LM head.

    Where the index has no LM head it is tied, and the last stage needs the embedding in its place.
    """
    return {index[name] for name in tensors_for_layers(index, layers, layer_count)}


def tensors_for_layers(names: Iterable[str], layers: tuple[int, int], layer_count: int) -> set[str]:
    """Those of a model's tensors that a node with layers [i, j) loads, or more."""
    names = set(names)
    start, end = layers
    first, last = start == 0, end == layer_count
    tied = not any("lm_head" in name or name == "output.weight" for name in names)
    wanted = set()
    for name in names:
        if _NOT_TEXT.search(name):
            continue
        layer = _LAYER.search(name)
        if name == HEADER or name.startswith("rope_"):  # of a GGUF file; every stage reads them
            needed = True
        elif layer:
            needed = start <= int(layer[1]) < end
        elif "embed_tokens" in name or name == "token_embd.weight":
            needed = first or (last and tied)
        else:
            needed = last
        if needed:
            wanted.add(name)
    return wanted


def check_layers(layers: tuple[int, int], layer_count: int) -> None:
    """Check a range against the model.

    Raises:
        BadLayers: empty, or beyond the model's layers.
    """
    start, end = layers
    if not 0 <= start < end <= layer_count:
        raise BadLayers(layer_range(start, end), f"the model has {layer_count} layers")
