"""Tiny random GGUF models of any family that llama.cpp knows: it is told the sizes, makes the tensors that it wants
itself, and they are written beside the metadata as it was told."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from node.engine.llamacpp.gguf_writing import Entry, Source, Tensor, write
from node.engine.llamacpp.library import Library, open_library
from node.engine.llamacpp.model import Placement, _params
from node.weights.ggml_types import TYPES
from node.weights.gguf_file import read_gguf

Value = bool | int | float | str | tuple[bool, ...] | tuple[int, ...] | tuple[float, ...]

LAYERS, WIDTH, VOCABULARY = 6, 64, 128

SIZES: dict[str, Value] = {
    "vocab_size": VOCABULARY,
    "context_length": 512,
    "embedding_length": WIDTH,
    "block_count": LAYERS,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.key_length": 16,
    "attention.value_length": 16,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "attention.layer_norm_epsilon": 1e-5,
    "rope.dimension_count": 16,
}
EXPERTS: dict[str, Value] = {
    "expert_count": 4,
    "expert_used_count": 2,
    "expert_feed_forward_length": 32,
    "expert_shared_count": 1,
    "expert_shared_feed_forward_length": 32,
    "expert_gating_func": 2,
    "expert_weights_scale": 1.0,
    "expert_weights_norm": True,
}
LATENT: dict[str, Value] = {
    "attention.head_count_kv": 1,
    "attention.q_lora_rank": 32,
    "attention.kv_lora_rank": 32,
    "attention.key_length": 40,
    "attention.value_length": 32,
    "attention.key_length_mla": 24,
    "attention.value_length_mla": 16,
    "rope.dimension_count": 8,
}

_DEFINITIONS = """
typedef void (*fill_callback)(struct ggml_tensor * tensor, void * user_data);
struct gguf_init_params { bool no_alloc; void ** ctx; };
void * gguf_init_from_file(const char * path, struct gguf_init_params params);
void gguf_free(void * metadata);
void * llama_model_init_from_user(void * metadata, fill_callback fill, void * user_data, struct llama_model_params p);
void llama_model_save_to_file(void * model, const char * path);
struct llama_model_quantize_params {
    int32_t nthread; int ftype; int output_tensor_type; int token_embedding_type;
    bool allow_requantize, quantize_output_tensor, only_copy, pure, keep_split, dry_run;
    const void * imatrix; const void * kv_overrides; const void * tt_overrides; const int32_t * prune_layers;
    size_t max_buf_size;
};
struct llama_model_quantize_params llama_model_quantize_default_params(void);
uint32_t llama_model_quantize(const char * from, const char * to, const struct llama_model_quantize_params * params);
"""


def save_tiny(folder: Path, architecture: str, **changes: Value | None) -> Path:
    """A model folder with a random model of this family; `changes` to its sizes, None leaves one out. Dots in the
    metadata's names are written as two underscores."""
    sizes = {**SIZES, **{name.replace("__", "."): value for name, value in changes.items()}}
    entries = [Entry("general.architecture", 8, architecture), Entry("tokenizer.ggml.model", 8, "none")]
    entries += [entry_of(f"{architecture}.{name}", value) for name, value in sizes.items() if value is not None]
    folder.mkdir(parents=True, exist_ok=True)
    told, made, path = folder / "told", folder / "made", folder / "model.gguf"
    _write(told, entries, [])
    _make(told, made)
    tensors = [
        Tensor(tensor.name, NUMBERS[tensor.kind], tensor.shape, tensor.nbytes, Source(made, tensor.offset))
        for tensor in read_gguf(made).tensors.values()
    ]
    _write(path, entries, tensors)
    told.unlink()
    made.unlink()
    return folder


def quantise(folder: Path, into: Path, ftype: int) -> Path:
    """The folder's model as llama.cpp's own quantiser makes it of a kind of file (`llama_ftype`)."""
    library = open_library()
    library.load_processor()
    ffi, llama, _ = _functions(library)
    params = llama.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.pure = ftype, 1, True
    into.mkdir(parents=True, exist_ok=True)
    source, target = (str(each / "model.gguf").encode() for each in (folder, into))
    assert llama.llama_model_quantize(source, target, ffi.addressof(params)) == 0, library.log.last_error()
    return into


NUMBERS = {kind.name: number for number, kind in TYPES.items()}


def entry_of(key: str, value: Value) -> Entry:
    first = value[0] if isinstance(value, tuple) else value
    kind = 8 if isinstance(first, str) else 7 if isinstance(first, bool) else 4 if isinstance(first, int) else 6
    return Entry(key, kind, value)


def _write(path: Path, entries: list[Entry], tensors: list[Tensor]) -> None:
    with path.open("wb") as out:
        for _ in write(out, entries, tensors):
            pass


def _make(told: Path, made: Path) -> None:
    library = open_library()
    library.load_processor()
    ffi, llama, base = _functions(library)

    @ffi.callback("fill_callback")
    def fill(tensor: Any, _: Any) -> None:
        name = ffi.string(tensor.name).decode()
        count = int(np.prod([max(1, size) for size in tensor.ne]))
        values = random_values(name, count)
        base.ggml_backend_tensor_set(tensor, ffi.cast("void *", values.ctypes.data), 0, values.nbytes)

    metadata = base.gguf_init_from_file(str(told).encode(), ffi.new("struct gguf_init_params *", [True, ffi.NULL])[0])
    params, kept = _params(library, Placement())
    model = llama.llama_model_init_from_user(metadata, fill, ffi.NULL, params)
    assert model != ffi.NULL, library.log.last_error()
    del kept
    llama.llama_model_save_to_file(model, str(made).encode())
    library.llama.llama_model_free(model)
    base.gguf_free(metadata)


def random_values(name: str, count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The same for the same name."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    values = random.standard_normal(count).astype(np.float32) * np.float32(0.15)
    if "ssm_a" in name:
        return -np.abs(values)
    return values + np.float32(1.0) if "norm" in name else values


_known: list[tuple[Any, Any, Any]] = []


def _functions(library: Library) -> tuple[Any, Any, Any]:
    """What only tests call."""
    if not _known:
        library.ffi.cdef(_DEFINITIONS)
        _known.append((library.ffi, library.llama, library.base))
    return _known[0]
