"""The models of the engine's benchmark: SmolLM2 as it is published, and random weights in a 1B model's shapes.

Random blocks are made by ggml's own quantiser out of llama.cpp's wheel; no two layers share bytes, for a library that
finds equal ones keeps one of them, and caches do too.
"""

from __future__ import annotations

import ctypes
import json
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

HIDDEN, INNER, HEADS, KV_HEADS, VOCABULARY = 2048, 8192, 32, 8, 32_000
HEAD_SIZE = HIDDEN // HEADS
DISTINCT_ROWS = 128
"""That are quantised; the others repeat them, turned by another number of rows in each tensor."""


def random_model(folder: Path, kind: str, layers: int) -> Path:
    """A folder with a llama of these shapes in one GGUF type; its embedding and head are Q6_K in K types."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(layers)))
    file = folder / f"random-1b-{kind}.gguf"
    if not file.exists():
        part = file.with_suffix(".part")
        _write(part, GGMLQuantizationType[kind], layers)
        part.rename(file)
    return folder


def config(layers: int) -> dict[str, object]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "num_hidden_layers": layers,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    }


def _write(file: Path, kind: GGMLQuantizationType, layers: int) -> None:
    writer = GGUFWriter(file, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(8192)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500_000.0)
    writer.add_rope_dimension_count(HEAD_SIZE)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("none")
    head = GGMLQuantizationType.Q6_K if kind.name.endswith("_K") else kind
    writer.add_tensor("token_embd.weight", _matrix(VOCABULARY, HIDDEN, head, 1), raw_dtype=head)
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    rows = {"attn_q": HIDDEN, "attn_k": KV_HEADS * HEAD_SIZE, "attn_v": KV_HEADS * HEAD_SIZE, "attn_output": HIDDEN}
    rows |= {"ffn_gate": INNER, "ffn_up": INNER, "ffn_down": HIDDEN}
    turn = 1
    for layer in range(layers):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(HIDDEN, np.float32))
        for role, count in rows.items():
            turn += 1
            columns = INNER if role == "ffn_down" else HIDDEN
            writer.add_tensor(f"blk.{layer}.{role}.weight", _matrix(count, columns, kind, turn), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


_made: dict[tuple[int, GGMLQuantizationType], np.ndarray] = {}


def _matrix(rows: int, columns: int, kind: GGMLQuantizationType, turn: int) -> np.ndarray:
    """Raw blocks (rows, bytes of a row)."""
    if (columns, kind) not in _made:
        values = np.random.default_rng(columns).standard_normal((DISTINCT_ROWS, columns)) * 0.02
        _made[columns, kind] = ggml_quantised(values.astype(np.float32), kind)
    return np.roll(np.resize(_made[columns, kind], (rows, _made[columns, kind].shape[1])), turn, 0)


def ggml_quantised(values: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """float32 (rows, columns) as raw blocks (rows, bytes of a row), by ggml's own code."""
    from node.engine.llamacpp.library import open_library

    library = open_library()
    block, size = GGML_QUANT_SIZES[kind]
    rows, columns = values.shape
    out = np.zeros((rows, columns // block * size), np.uint8)
    base = ctypes.CDLL(_base_file(library))
    base.ggml_quantize_chunk.restype = ctypes.c_size_t
    base.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3
    base.ggml_quantize_chunk.argtypes += [ctypes.c_void_p]
    written = base.ggml_quantize_chunk(int(kind), values.ctypes.data, out.ctypes.data, 0, rows, columns, None)
    assert written == out.nbytes, kind
    return out


def _base_file(library: object) -> str:
    from node.engine.llamacpp.library import WHEEL, Path, _needed, importlib

    spec = importlib.util.find_spec(WHEEL.replace("-", "_"))
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return str(_needed(Path(next(iter(spec.submodule_search_locations))), "ggml-base"))
