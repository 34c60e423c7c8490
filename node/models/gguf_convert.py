"""Converts a GGUF file into a folder that transformers reads: config.json, tokenizer, model.safetensors.

No torch: gguf's numpy code dequantises a few MiB at a time, straight from file to file. Quantised tensors become
float32, since any rounding to a narrower type would change what greedy decoding says; float tensors keep their type.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from node.errors import DamagedModel, UnsupportedModel
from node.models.disk import FreeBytes, free_bytes, require_room
from node.models.gguf_config import (
    ROPE_FACTORS,
    Config,
    check_tensors,
    config_from,
    dtype_of,
    llama3_scaling,
)
from node.models.gguf_tokenizer import tokenizer_files
from node.models.progress import Report
from node.weights.gguf_file import GgufFile, GgufTensor, read_gguf
from node.weights.safetensors_file import StoredDtype, TensorSpec, header_for

if TYPE_CHECKING:
    import numpy as np

CHUNK_BYTES = 8 * 1024 * 1024
"""Of the result, at a time; the numpy code needs a small multiple of it."""

WEIGHTS = "model.safetensors"

_KEPT: dict[str, StoredDtype] = {"F32": "F32", "F16": "F16", "BF16": "BF16"}
_QUANTISED = (
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "TQ2_0", "MXFP4"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
)


def convert(path: Path, out: Path, report: Report, *, free: FreeBytes = free_bytes) -> list[str]:
    """Convert the GGUF file at `path` into the existing folder `out`; returns the names of the files written.

    Raises:
        DamagedModel, UnsupportedModel: the file is not what it should be, or not what we can run.
        DiskFull: told before anything is written.
    """
    file = read_gguf(path)
    config = config_from(file, "float32")
    names = check_tensors(file, config)
    config["dtype"] = dtype_of(file, names)
    if ROPE_FACTORS in file.tensors:
        config["rope_scaling"] = llama3_scaling(file, config, _floats(file, ROPE_FACTORS))
    vocab_size = config["vocab_size"]
    assert isinstance(vocab_size, int)
    specs = {
        name: TensorSpec(_stored(file, file.tensors[gguf]), file.tensors[gguf].shape) for name, gguf in names.items()
    }
    small = {"config.json": json.dumps(config, indent=1).encode(), **tokenizer_files(file, vocab_size)}
    total_bytes = sum(spec.nbytes for spec in specs.values())
    require_room(out, total_bytes + sum(map(len, small.values())), free)
    for name, data in small.items():
        (out / name).write_bytes(data)
    done_bytes = 0
    with path.open("rb") as source, (out / WEIGHTS).open("wb") as sink:
        sink.write(header_for(specs))
        for name, gguf in names.items():
            heads = _interleaved_heads(config, gguf)
            for chunk in _chunks(file.path, source, file.tensors[gguf], heads):
                sink.write(chunk)
                done_bytes += chunk.nbytes
                report("convert", done_bytes, total_bytes, _part(name, config))
    return [*small, WEIGHTS]


def _part(name: str, config: Config) -> str:
    """Where a tensor belongs, for people."""
    words = name.split(".")
    if "layers" in words:
        return f"layer {int(words[words.index('layers') + 1]) + 1} of {config['num_hidden_layers']}"
    return "embedding" if "embed_tokens" in words else "output"


def _stored(file: GgufFile, tensor: GgufTensor) -> StoredDtype:
    if tensor.kind in _KEPT:
        return _KEPT[tensor.kind]
    if tensor.kind not in _QUANTISED:
        supported = ", ".join((*_KEPT, *_QUANTISED))
        raise UnsupportedModel(str(file.path), f"the tensor type {tensor.kind} of {tensor.name}", supported)
    if len(tensor.shape) == 1:
        raise UnsupportedModel(str(file.path), f"the quantised vector {tensor.name}", "vectors in F32, F16 or BF16")
    return "F32"


def _interleaved_heads(config: Config, name: str) -> int | None:
    """Heads whose rows llama.cpp stores as (pair, half) instead of (half, pair); None where the order is plain."""
    if config["model_type"] != "llama":
        return None
    key = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(name.split(".")[-2])
    heads = config[key] if key else None
    assert heads is None or isinstance(heads, int)
    return heads


def _chunks(path: Path, source: BinaryIO, tensor: GgufTensor, heads: int | None) -> Iterator[memoryview]:
    """The tensor's bytes as they are stored, some rows at a time.

    A chunk holds whole rows, and whole heads where their rows must be put in order.
    """
    import numpy as np

    rows = math.prod(tensor.shape[:-1])
    columns = tensor.shape[-1]
    if heads is not None and len(tensor.shape) == 1:  # a bias: one number for each row of the matrix
        rows, columns = columns, 1
    row_bytes = tensor.nbytes // rows
    unit = rows // heads if heads else 1
    step = max(CHUNK_BYTES // (4 * columns * unit), 1) * unit
    source.seek(tensor.offset)
    for start in range(0, rows, step):
        count = min(step, rows - start)
        data = source.read(count * row_bytes)
        if len(data) != count * row_bytes:
            raise DamagedModel(str(path), f"became shorter while {tensor.name} was read")
        raw = np.frombuffer(data, dtype=np.uint8).reshape(count, row_bytes)
        values = raw if tensor.kind in _KEPT else _dequantised(raw, tensor.kind)
        if heads is not None:
            values = values.reshape(count // unit, unit // 2, 2, -1).swapaxes(1, 2)
        yield np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def _dequantised(raw: np.ndarray, kind: str) -> np.ndarray:
    """float32 (rows, columns) from the quantised bytes (rows, row_bytes)."""
    import numpy as np
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    with np.errstate(all="ignore"):  # damaged scales may be infinite; that is for the engine to notice
        values: np.ndarray = dequantize(raw, GGMLQuantizationType[kind])
    return values


def _floats(file: GgufFile, name: str) -> list[float]:
    """A small F32 tensor's values."""
    import numpy as np

    tensor = file.tensors[name]
    if tensor.kind != "F32" or tensor.nbytes > 65536:
        raise UnsupportedModel(str(file.path), f"{name} of type {tensor.kind}", "F32")
    with file.path.open("rb") as source:
        source.seek(tensor.offset)
        return [float(value) for value in np.frombuffer(source.read(tensor.nbytes), dtype="<f4")]
