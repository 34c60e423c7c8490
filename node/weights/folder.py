"""Which reader a folder's weights need."""

from __future__ import annotations

from pathlib import Path

from node.weights.base import Weights
from node.weights.gguf_split import gguf_in
from node.weights.gguf_weights import GgufWeights
from node.weights.hub_weights import HubWeights


def open_weights(path: Path) -> Weights:
    """The weights of a model folder, or of a GGUF file. Reads headers; maps the rest.

    Raises:
        DamagedModel: there are none, or a header cannot be read.
        UnsupportedModel: a family or a form of file that is not known.
    """
    if path.is_file():
        return GgufWeights(path)
    gguf = gguf_in(path)
    return HubWeights(path) if gguf is None else GgufWeights(gguf)
