"""A model folder around a GGUF file: config.json, tokenizer and template are written, the file itself is not touched.

The folder is laid out as one that transformers reads, but for the weights, which stay in their own form.
"""

from __future__ import annotations

import json
from pathlib import Path

from node.errors import DamagedModel
from node.models.disk import FreeBytes, free_bytes, require_room
from node.models.gguf_config import config_from
from node.models.gguf_rope import ROPE_TENSORS
from node.models.gguf_tensors import check_tensors
from node.models.gguf_tokenizer import tokenizer_files
from node.models.progress import Report
from node.models.taking import take_file
from node.weights.gguf_file import GgufFile
from node.weights.gguf_split import part_names, parts_of, read_model

FACTORS_LIMIT_BYTES = 65536


def describe_gguf(path: Path) -> dict[str, bytes]:
    """The small files of the folder, by name.

    Raises:
        DamagedModel, UnsupportedModel: the file is not what it should be, or not what we can run.
    """
    file = read_model(path)
    config, sizes = config_from(file, _factors(path, file))
    check_tensors(file, sizes, config)
    return {"config.json": json.dumps(config, indent=1).encode(), **tokenizer_files(file, sizes.vocabulary)}


def make_folder(path: Path, out: Path, report: Report, *, free: FreeBytes = free_bytes) -> tuple[list[str], list[str]]:
    """Make the existing folder `out` a model of the GGUF file at `path`, and of its other parts where it is split.

    Returns the names of all files, and of those that hold weights.

    Raises:
        DamagedModel, UnsupportedModel: as `describe_gguf`.
        DiskFull: told before anything is written.
    """
    parts = parts_of(path)
    small = describe_gguf(path)
    total_bytes = sum(part.stat().st_size for part in parts)
    require_room(out, sum(map(len, small.values())), free)
    for name, data in small.items():
        (out / name).write_bytes(data)
    before_bytes = 0
    names = part_names(len(parts))
    for part, name in zip(parts, names, strict=True):
        before = before_bytes

        def on_bytes(done_bytes: int, before: int = before, named: str = part.name) -> None:
            report("convert", before + done_bytes, total_bytes, f"copying {named}")

        on_bytes(0)
        take_file(part, out / name, on_bytes, free)
        before_bytes += part.stat().st_size
        on_bytes(part.stat().st_size)
    return [*small, *names], list(names)


def _factors(path: Path, file: GgufFile) -> dict[str, list[float]]:
    """Values of the small tensors that change the rotation."""
    wanted = ROPE_TENSORS & file.tensors.keys()
    if not wanted:
        return {}
    from node.weights.gguf_weights import GgufWeights  # numpy

    weights = GgufWeights(path)
    factors = {}
    for name in wanted:
        tensor = file.tensors[name]
        if tensor.kind != "F32" or tensor.nbytes > FACTORS_LIMIT_BYTES:
            raise DamagedModel(str(path), f"{name} is of type {tensor.kind} and {tensor.nbytes} bytes long")
        factors[name] = [float(value) for value in weights.vector(None, name.removesuffix(".weight"))]
    return factors
