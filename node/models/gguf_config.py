"""From GGUF metadata to transformers' config.json, and the tensors that such a model must have.

Families: llama (Llama, SmolLM2, Mistral and others that GGUF files under that name), qwen2, qwen3; dense models alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from node.errors import DamagedModel, UnsupportedModel
from node.models.gguf_keys import refuse_unknown_keys, refuse_what_is_no_model
from node.weights.gguf_file import GgufFile

CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
SUPPORTED = "GGUF files of dense llama, qwen2 and qwen3 models"

Config = dict[str, object]

_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
ROPE_FACTORS = "rope_freqs.weight"

LLAMA3_LOW_FACTOR, LLAMA3_HIGH_FACTOR, LLAMA3_CONTEXT = 1.0, 4.0, 8192
"""What every Llama 3.1 to 3.3 has; GGUF keeps only the frequencies that follow from them."""


def hub_name(gguf_name: str) -> str | None:
    """What transformers calls a tensor of a GGUF file; None where it knows no such thing."""
    if gguf_name in _OUTSIDE:
        return _OUTSIDE[gguf_name]
    match = re.fullmatch(r"blk\.(\d{1,5})\.(\w+)\.(weight|bias)", gguf_name)
    if match is None or match[2] not in _BLOCK:
        return None
    return f"model.layers.{int(match[1])}.{_BLOCK[match[2]]}.{match[3]}"


def family(file: GgufFile) -> str:
    """The file's architecture.

    Raises:
        UnsupportedModel: not one of ours, a mixture of experts, or no model at all.
    """
    refuse_what_is_no_model(file, SUPPORTED)
    if file.integer("split.count", 0) > 1:
        raise UnsupportedModel(str(file.path), "a model split into several GGUF files", "a single GGUF file")
    name = file.text("general.architecture")
    if name not in CLASSES:
        raise UnsupportedModel(str(file.path), f'the architecture "{name[:40]}"', SUPPORTED)
    if file.integer(f"{name}.expert_count", 0):
        raise UnsupportedModel(str(file.path), "a mixture of experts in a GGUF file", SUPPORTED)
    return name


def config_from(file: GgufFile, dtype: str) -> Config:
    """config.json of the model, without the rope scaling that only a tensor tells (see `llama3_scaling`).

    Raises:
        DamagedModel: a key is missing or absurd.
        UnsupportedModel: a variant that transformers' code of this family does not compute.
    """
    name = family(file)

    def integer(key: str, default: int | None = None) -> int:
        value = file.integer(f"{name}.{key}", default)
        if value == 0 or value > 1_000_000_000:
            raise DamagedModel(str(file.path), f'the metadata key "{name}.{key}" is {value}')
        return value

    heads, hidden = integer("attention.head_count"), integer("embedding_length")
    kv_heads = integer("attention.head_count_kv", heads)
    head_dim = integer("attention.key_length", max(hidden // heads, 1))
    if heads % kv_heads or head_dim % 2:
        raise DamagedModel(str(file.path), f"{heads} heads, {kv_heads} of keys and values, {head_dim} wide")
    if integer("attention.value_length", head_dim) != head_dim:
        raise UnsupportedModel(str(file.path), "values of another width than keys", SUPPORTED)
    if integer("rope.dimension_count", head_dim) != head_dim:
        raise UnsupportedModel(str(file.path), "rotation of a part of each head", SUPPORTED)
    refuse_unknown_keys(file, name, head_dim, integer("context_length"), SUPPORTED)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise DamagedModel(str(file.path), "the tensor token_embd.weight is missing")
    return {
        "architectures": [CLASSES[name]],
        "model_type": name,
        "hidden_size": hidden,
        "intermediate_size": integer("feed_forward_length"),
        "num_hidden_layers": integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": _as_float32(file.number(f"{name}.attention.layer_norm_rms_epsilon")),
        "rope_theta": _as_float32(file.number(f"{name}.rope.freq_base", 10000.0)),
        "rope_scaling": _rope_scaling(file, name),
        "max_position_embeddings": integer("context_length"),
        "vocab_size": embedding.shape[0],
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "dtype": dtype,
        "bos_token_id": file.optional_integer("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.optional_integer("tokenizer.ggml.eos_token_id"),
        "pad_token_id": file.optional_integer("tokenizer.ggml.padding_token_id"),
    }


def _as_float32(value: float) -> float:
    """The shortest decimal that names the same float32: 1e-05, where the file's bytes say 9.99999974e-06."""
    import numpy as np

    with np.errstate(over="ignore"):
        return float(str(np.float32(value)))


def _rope_scaling(file: GgufFile, name: str) -> dict[str, object] | None:
    factor = file.number(f"{name}.rope.scaling.factor", 0.0)
    kind = file.text(f"{name}.rope.scaling.type", "linear")  # llama.cpp's default
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return None
    if kind not in ("linear", "yarn"):
        raise UnsupportedModel(str(file.path), f'rope scaling "{kind[:40]}"', "none, linear, yarn and llama3")
    scaling: dict[str, object] = {"rope_type": kind, "factor": file.number(f"{name}.rope.scaling.factor")}
    if kind == "yarn":
        for end in ("beta_fast", "beta_slow"):
            if (key := f"{name}.rope.scaling.yarn_{end}") in file.metadata:
                scaling[end] = file.number(key)
        scaling["original_max_position_embeddings"] = file.integer(f"{name}.rope.scaling.original_context_length")
    return scaling


def llama3_scaling(file: GgufFile, config: Config, factors: list[float]) -> dict[str, object]:
    """The rope scaling that gives these frequency divisors, one for each pair of a head's dimensions.

    Raises:
        UnsupportedModel: no Llama 3 scaling gives them.
    """
    theta, head_dim = config["rope_theta"], config["head_dim"]
    assert isinstance(theta, float)
    assert isinstance(head_dim, int)
    factor = max(factors, default=0.0)
    expected = [_llama3_factor(2 * math.pi * theta ** (2 * i / head_dim), factor) for i in range(head_dim // 2)]
    same = len(factors) == len(expected) and all(
        math.isclose(found, wanted, rel_tol=1e-4) for found, wanted in zip(factors, expected, strict=True)
    )
    if not same:
        raise UnsupportedModel(str(file.path), f"the frequencies in {ROPE_FACTORS}", "those of Llama 3.1 to 3.3")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LLAMA3_LOW_FACTOR,
        "high_freq_factor": LLAMA3_HIGH_FACTOR,
        "original_max_position_embeddings": LLAMA3_CONTEXT,
    }


def _llama3_factor(wavelength: float, factor: float) -> float:
    """By how much Llama 3 slows the rotation with this wavelength (in tokens) down."""
    if wavelength < LLAMA3_CONTEXT / LLAMA3_HIGH_FACTOR:
        return 1.0
    if wavelength > LLAMA3_CONTEXT / LLAMA3_LOW_FACTOR or factor == 0:
        return factor
    smooth = (LLAMA3_CONTEXT / wavelength - LLAMA3_LOW_FACTOR) / (LLAMA3_HIGH_FACTOR - LLAMA3_LOW_FACTOR)
    return 1 / ((1 - smooth) / factor + smooth)


def expected_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Every tensor, by transformers' name, that a model of this config has."""

    def size(key: str) -> int:
        value = config[key]
        assert isinstance(value, int)
        return value

    hidden, inner, vocabulary, head_dim = (
        size(key) for key in ("hidden_size", "intermediate_size", "vocab_size", "head_dim")
    )
    queries, keys = size("num_attention_heads") * head_dim, size("num_key_value_heads") * head_dim
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    if config["attention_bias"] or config["model_type"] == "qwen2":
        layer |= {
            f"self_attn.{part}_proj.bias": (rows,) for part, rows in zip("qkv", (queries, keys, keys), strict=True)
        }
        if config["model_type"] != "qwen2":  # whose output projection never has one
            layer["self_attn.o_proj.bias"] = (hidden,)
    if config["mlp_bias"]:
        layer |= {"mlp.gate_proj.bias": (inner,), "mlp.up_proj.bias": (inner,), "mlp.down_proj.bias": (hidden,)}
    if config["model_type"] == "qwen3":
        layer |= {"self_attn.q_norm.weight": (head_dim,), "self_attn.k_norm.weight": (head_dim,)}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    shapes |= {
        f"model.layers.{i}.{name}": shape for i in range(size("num_hidden_layers")) for name, shape in layer.items()
    }
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocabulary, hidden)
    return shapes


def check_tensors(file: GgufFile, config: Config) -> dict[str, str]:
    """GGUF's name of each tensor that the model needs, by transformers' name, in transformers' order.

    Raises:
        DamagedModel: one is missing or has another shape than the metadata say.
        UnsupportedModel: the file has tensors that transformers' code of this family does not use.
    """
    where = str(file.path)
    layers = config["num_hidden_layers"]
    assert isinstance(layers, int)
    if layers > len(file.tensors):
        raise DamagedModel(where, f"{layers} layers are claimed, there are {len(file.tensors)} tensors")
    found: dict[str, str] = {}
    for name in file.tensors:
        if name == ROPE_FACTORS:
            continue
        known = hub_name(name)
        if known is None:
            raise UnsupportedModel(where, f"the tensor {name[:80]}", SUPPORTED)
        found[known] = name
    expected = expected_shapes(config)
    for name, shape in expected.items():
        if name not in found:
            raise DamagedModel(where, f"the tensor {name} is missing")
        if file.tensors[found[name]].shape != shape:
            raise DamagedModel(where, f"the tensor {name} has the shape {file.tensors[found[name]].shape}, not {shape}")
    if extra := found.keys() - expected.keys():
        raise UnsupportedModel(where, f"the tensor {min(extra)}", SUPPORTED)
    return {name: found[name] for name in expected}


def dtype_of(file: GgufFile, names: Mapping[str, str]) -> str:
    """The dtype that loses nothing: that of the matrices where all have the same narrow one, float32 otherwise."""
    kinds = {file.tensors[name].kind for name in names.values() if len(file.tensors[name].shape) > 1}
    return {frozenset({"F16"}): "float16", frozenset({"BF16"}): "bfloat16"}.get(frozenset(kinds), "float32")
