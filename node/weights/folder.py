"""Which reader a folder's weights need."""

from __future__ import annotations

from pathlib import Path

from node.errors import UnsupportedModel
from node.weights.base import Weights
from node.weights.gguf_split import is_later_part
from node.weights.gguf_weights import GgufWeights
from node.weights.hub_weights import HubWeights


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
