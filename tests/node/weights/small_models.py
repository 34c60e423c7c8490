"""Tiny random models of every family, as transformers makes them, and the same as GGUF files.

GGUF names come from the `gguf` package's own map, what llama.cpp's converter does to the numbers is done here as there.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from gguf import ExpertGatingFuncType, GGMLQuantizationType, GGUFWriter, RopeScalingType, get_tensor_name_map, quants
from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES

HIDDEN, LAYERS = 64, 3
SIZES: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "n_group": 1,
    "topk_group": 1,
}

CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "llama tied": lambda: transformers.LlamaConfig(**{**SIZES, "tie_word_embeddings": True}),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, head_dim=16),
    "mistral": lambda: transformers.MistralConfig(**SIZES),
    "phi3": lambda: transformers.Phi3Config(**SIZES),
    "olmo2": lambda: transformers.Olmo2Config(**SIZES),
    "gemma2": lambda: transformers.Gemma2Config(
        **{**SIZES, "tie_word_embeddings": True}, head_dim=16, query_pre_attn_scalar=16, sliding_window=8
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **{**SIZES, "tie_word_embeddings": True}, head_dim=16, query_pre_attn_scalar=16, sliding_window=8
    ),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(**SIZES, **EXPERTS, num_experts=4, norm_topk_prob=True),
    "glm4_moe": lambda: transformers.Glm4MoeConfig(
        **SIZES, **{**EXPERTS, "head_dim": 32}, n_routed_experts=4, n_shared_experts=1, first_k_dense_replace=1,
        use_qk_norm=True,
    ),
    "minimax_m2": lambda: transformers.MiniMaxM2Config(
        **SIZES, head_dim=16, num_local_experts=4, num_experts_per_tok=2
    ),
    "deepseek_v3": lambda: transformers.DeepseekV3Config(
        **{**SIZES, **LATENT}, num_experts_per_tok=2, moe_intermediate_size=32, n_routed_experts=4, n_shared_experts=1,
        first_k_dense_replace=1,
    ),
    "gpt_oss": lambda: transformers.GptOssConfig(
        **SIZES, head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=8
    ),
}  # fmt: skip

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
VARIANTS: dict[str, Callable[[], Any]] = {
    "llama, yarn": lambda: transformers.LlamaConfig(**SIZES, rope_parameters=YARN),
    "llama, linear": lambda: transformers.LlamaConfig(
        **SIZES, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
    ),
    "llama, biases": lambda: transformers.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "phi3, longrope": lambda: transformers.Phi3Config(
        **SIZES,
        original_max_position_embeddings=64,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.75,
            "long_factor": [1.5 + i for i in range(6)],
            "short_factor": [1.0 + i / 8 for i in range(6)],
        },
    ),
    "gemma3, linear": lambda: transformers.Gemma3TextConfig(
        **{**SIZES, "num_hidden_layers": 7, "tie_word_embeddings": True},
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=8,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "deepseek_v3, yarn": lambda: transformers.DeepseekV3Config(
        **{**SIZES, **LATENT}, num_experts_per_tok=2, moe_intermediate_size=32, n_routed_experts=4, n_shared_experts=1,
        first_k_dense_replace=1, rope_parameters={**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    ),
}  # fmt: skip
"""Of the same families, with what their positions or biases may be otherwise."""

ARCHITECTURES = {
    "llama": MODEL_ARCH.LLAMA,
    "mistral": MODEL_ARCH.LLAMA,
    "qwen2": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3,
    "phi3": MODEL_ARCH.PHI3,
    "olmo2": MODEL_ARCH.OLMO2,
    "gemma2": MODEL_ARCH.GEMMA2,
    "gemma3_text": MODEL_ARCH.GEMMA3,
    "qwen3_moe": MODEL_ARCH.QWEN3MOE,
    "glm4_moe": MODEL_ARCH.GLM4_MOE,
    "minimax_m2": MODEL_ARCH.MINIMAXM2,
    "deepseek_v3": MODEL_ARCH.DEEPSEEK2,
    "gpt_oss": MODEL_ARCH.GPT_OSS,
}


def make_model(name: str) -> Any:
    """A model with random numbers in every tensor, norms and biases too."""
    torch.manual_seed(11)
    model = transformers.AutoModelForCausalLM.from_config(
        copy.deepcopy({**CONFIGS, **VARIANTS}[name]()), dtype=torch.float32
    )
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.normal_(std=0.2)
    return model.eval()


def numbers(model: Any) -> dict[str, np.ndarray]:
    """Its tensors by transformers' names."""
    return {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}


def rotated_rows(matrix: np.ndarray, heads: int) -> np.ndarray:
    """As convert_hf_to_gguf's `permute`: rows half a head apart become neighbours."""
    return (
        matrix.reshape(heads, 2, matrix.shape[0] // heads // 2, *matrix.shape[1:]).swapaxes(1, 2).reshape(matrix.shape)
    )


def gguf_tensors(model: Any) -> dict[str, np.ndarray]:
    """The tensors that llama.cpp's converter would write, by GGUF's names."""
    config = model.config
    family = config.model_type
    names = get_tensor_name_map(ARCHITECTURES[family], config.num_hidden_layers)
    tensors: dict[str, np.ndarray] = {}
    for name, values in numbers(model).items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if match := re.fullmatch(r"model\.layers\.(\d+)\.mlp\.experts\.(gate_up_proj|down_proj)(_bias)?", name):
            part = "bias" if match[3] else "weight"
            prefix = f"blk.{match[1]}.ffn_"
            if family == "gpt_oss":
                values = values if match[3] else values.swapaxes(-1, -2)
                gate, up = values[:, 0::2], values[:, 1::2]
            else:
                gate, up = np.split(values, 2, axis=1)
            if match[2] == "down_proj":
                tensors[f"{prefix}down_exps.{part}"] = values
            else:
                tensors[f"{prefix}gate_exps.{part}"], tensors[f"{prefix}up_exps.{part}"] = gate, up
            continue
        if ARCHITECTURES[family] == MODEL_ARCH.LLAMA and (match := re.search(r"self_attn\.([qk])_proj", name)):
            values = rotated_rows(values, config.num_attention_heads if match[1] == "q" else config.num_key_value_heads)
        if family.startswith("gemma") and "norm" in name:
            values = values + np.float32(1)
        stem, _, suffix = name.rpartition(".")
        if name.endswith("e_score_correction_bias"):
            mapped, suffix = f"blk.{name.split('.')[2]}.exp_probs_b", "bias"
        elif name.endswith("sinks"):
            mapped, suffix = f"blk.{name.split('.')[2]}.attn_sinks", "weight"
        else:
            mapped = names.get_name(stem) or ""
        assert mapped, name
        tensors[f"{mapped}.{suffix}"] = values
    return tensors


def write_metadata(writer: GGUFWriter, config: Any) -> None:
    """The keys that llama.cpp's converter writes for a config."""
    family = config.model_type
    writer.add_name(f"Tiny {family}")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(1 if family == "deepseek_v3" else config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if family == "deepseek_v3":
        writer.add_key_length(config.qk_nope_head_dim + config.qk_rope_head_dim)
        writer.add_value_length(config.v_head_dim)
        writer.add_q_lora_rank(config.q_lora_rank)
        writer.add_kv_lora_rank(config.kv_lora_rank)
        writer.add_rope_dimension_count(config.qk_rope_head_dim)
    else:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    write_rope(writer, config, head_dim)
    if family.startswith("gemma") or family == "gpt_oss":
        writer.add_sliding_window(config.sliding_window)
    if family == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    experts = next(
        (n for name in ("num_experts", "n_routed_experts", "num_local_experts") if (n := getattr(config, name, 0))), 0
    )
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(getattr(config, "moe_intermediate_size", config.intermediate_size))
    if family in ("glm4_moe", "deepseek_v3"):
        writer.add_leading_dense_block_count(config.first_k_dense_replace)
        writer.add_expert_shared_count(config.n_shared_experts)
        writer.add_expert_weights_scale(config.routed_scaling_factor)
        writer.add_expert_weights_norm(config.norm_topk_prob)
        writer.add_expert_group_count(config.n_group)
        writer.add_expert_group_used_count(config.topk_group)
    if family in ("glm4_moe", "deepseek_v3", "minimax_m2"):
        writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)


def write_rope(writer: GGUFWriter, config: Any, head_dim: int) -> None:
    rope = config.rope_parameters
    if config.model_type == "gemma3_text":
        writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
        rope = rope["full_attention"]
    writer.add_rope_freq_base(rope["rope_theta"])
    if part := rope.get("partial_rotary_factor"):
        writer.add_rope_dimension_count(int(head_dim * part))
    kind = rope["rope_type"]
    if kind in ("yarn", "linear"):
        writer.add_rope_scaling_type(RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        if rope.get("mscale_all_dim"):
            writer.add_rope_scaling_yarn_log_mul(0.1 * rope["mscale_all_dim"])
    if kind == "longrope":
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
        for name in ("long", "short"):
            writer.add_tensor(f"rope_factors_{name}.weight", np.array(rope[f"{name}_factor"], dtype=np.float32))


def write_gguf_of(
    model: Any,
    path: Path,
    kind: str = "F32",
    *,
    describe: Callable[[GGUFWriter], None] | None = None,
    kinds: Mapping[str, str] | None = None,
) -> Path:
    """A GGUF file of the model. Matrices are stored as `kind`, or as `kinds` says for a tensor's name."""
    config = model.config
    writer = GGUFWriter(path, MODEL_ARCH_NAMES[ARCHITECTURES[config.model_type]])
    write_metadata(writer, config)
    if describe:
        describe(writer)
    for name, values in gguf_tensors(model).items():
        wanted = (kinds or {}).get(name, kind)
        values = np.ascontiguousarray(values)
        if values.ndim == 1 or wanted == "F32":
            writer.add_tensor(name, values)
        else:
            qtype = GGMLQuantizationType[wanted]
            writer.add_tensor(name, quants.quantize(values, qtype), raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
