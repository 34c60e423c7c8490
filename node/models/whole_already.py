"""The usual start: the model lies here whole. Found out without a child process, which costs a fifth of a second."""

from __future__ import annotations

from pathlib import Path

from node.errors import ParallaxError
from node.models.cached_model import CachedModel
from node.models.checking import first_flaw
from node.models.default_model import DEFAULT_REF
from node.models.progress import Report
from node.wire.models import ModelRef

MOST_READ_BYTES = 4 * 1024**3
"""Of weights that are read and held against their hashes here; for more a child's start is nothing."""


def whole_already(ref: ModelRef, models: Path, layers: tuple[int, int] | None, report: Report) -> Path | None:
    """The model's folder, where it was made on this machine and is as it was then; None: `prepare` has to look.

    Blocks for as long as it takes to read the weights of `layers` (None: none of them). Changes nothing.
    """
    kind = ref.source.partition(":")[0]
    if kind not in ("default", "gguf") or (kind == "default" and ref != DEFAULT_REF):
        return None
    cell = CachedModel(models, ref)
    try:
        manifest = cell.manifest()
        if manifest is None or cell.damage() is not None:
            return None
        if layers is not None and sum(manifest.files.get(name, 0) for name in manifest.weights) > MOST_READ_BYTES:
            return None
        return cell.folder if first_flaw(cell, layers, report) is None else None
    except (OSError, ParallaxError):
        return None  # `prepare` says what it is
