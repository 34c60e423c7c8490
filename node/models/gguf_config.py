"""From GGUF metadata to transformers' config.json.

What a family adds to the sizes that all have is one function here. What a GGUF file does not tell, because llama.cpp
knows it of the architecture, is written here too, with where it comes from.
"""

from __future__ import annotations

from collections.abc import Callable

from node.errors import DamagedModel, UnsupportedModel
from node.models.gguf_keys import refuse_unknown_keys, refuse_what_is_no_model
from node.models.gguf_rope import rope_config
from node.models.gguf_sizes import Config, Sizes, as_float32, read_sizes
from node.weights.families import ARCHITECTURES
from node.weights.gguf_file import GgufFile

SUPPORTED = f"GGUF files of {', '.join(ARCHITECTURES)} models"

CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "glm4_moe": "Glm4MoeForCausalLM",
    "minimax_m2": "MiniMaxM2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
}

SIGMOID = 2
"""llama.cpp's number of the gate that is not a softmax."""


def architecture_of(file: GgufFile) -> str:
    """The file's architecture.

    Raises:
        UnsupportedModel: not one of ours, or no model at all.
    """
    refuse_what_is_no_model(file, SUPPORTED)
    name = file.text("general.architecture")
    if name not in ARCHITECTURES:
        raise UnsupportedModel(str(file.path), f'the architecture "{name[:40]}"', SUPPORTED)
    if name not in _FAMILY_KEYS and file.integer(f"{name}.expert_count", 0):
        raise UnsupportedModel(str(file.path), f"a mixture of experts of the architecture {name}", SUPPORTED)
    return name


def config_from(file: GgufFile, factors: dict[str, list[float]] | None = None) -> tuple[Config, Sizes]:
    """config.json of the model, and its sizes.

    Args:
        factors: values of the tensors that change the rotation, by name.

    Raises:
        DamagedModel: a key is missing or absurd.
        UnsupportedModel: a variant that transformers' code of this family does not compute.
    """
    name = architecture_of(file)
    sizes = read_sizes(file, name, SUPPORTED)
    refuse_unknown_keys(file, name, sizes.head_dim, sizes.context, SUPPORTED)
    family = ARCHITECTURES[name]
    gelu = family.startswith("gemma")
    config: Config = {
        "architectures": [CLASSES[family]],
        "model_type": family,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.inner,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "hidden_activation" if gelu else "hidden_act": "gelu_pytorch_tanh" if gelu else "silu",
        "rms_norm_eps": as_float32(file.number(f"{name}.attention.layer_norm_rms_epsilon")),
        **rope_config(file, sizes, factors or {}),
        "max_position_embeddings": sizes.context,
        "vocab_size": sizes.vocabulary,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "dtype": dtype_of(file),
        "bos_token_id": file.optional_integer("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.optional_integer("tokenizer.ggml.eos_token_id"),
        "pad_token_id": file.optional_integer("tokenizer.ggml.padding_token_id"),
    }
    if sizes.rope_dim != sizes.head_dim and sizes.latent is None:
        config["partial_rotary_factor"] = sizes.rope_dim / sizes.head_dim
    if name in _FAMILY_KEYS:
        config |= _FAMILY_KEYS[name](file, sizes)
    return config, sizes


def dtype_of(file: GgufFile) -> str:
    """The dtype that loses nothing: that of the matrices where all have the same narrow one, float32 otherwise."""
    kinds = {tensor.kind for tensor in file.tensors.values() if len(tensor.shape) > 1}
    return {frozenset({"F16"}): "float16", frozenset({"BF16"}): "bfloat16"}.get(frozenset(kinds), "float32")


def _window(file: GgufFile, sizes: Sizes, pattern: int) -> Config:
    """Which layers see a window only: of `pattern` layers all but the last, unless the file says it layer by layer."""
    name = sizes.architecture
    key = f"{name}.attention.sliding_window_pattern"
    told = file.metadata.get(key)
    if isinstance(told, tuple):
        if len(told) < sizes.layers or not all(isinstance(windowed, bool) for windowed in told):
            raise DamagedModel(
                str(file.path), f'the metadata key "{key}" is no list of true and false, one for each layer'
            )
        windowed = [bool(one) for one in told[: sizes.layers]]
    else:
        pattern = file.integer(key, pattern)
        windowed = [pattern == 0 or bool((layer + 1) % pattern) for layer in range(sizes.layers)]
    return {
        "sliding_window": file.integer(f"{name}.attention.sliding_window"),
        "layer_types": ["sliding_attention" if one else "full_attention" for one in windowed],
    }


def _phi3(file: GgufFile, sizes: Sizes) -> Config:
    window = file.integer("phi3.attention.sliding_window", 0)
    return {"sliding_window": window or None, "attention_bias": False}


def _gemma_scale(sizes: Sizes, layers_of_27b: int) -> int:
    """llama.cpp tells the 27B models by their number of layers; they alone scale by the hidden size."""
    return sizes.hidden // sizes.heads if sizes.layers == layers_of_27b else sizes.head_dim


def _gemma2(file: GgufFile, sizes: Sizes) -> Config:
    return {
        **_window(file, sizes, 2),
        "attn_logit_softcapping": file.number("gemma2.attn_logit_softcapping", 50.0),
        "final_logit_softcapping": file.number("gemma2.final_logit_softcapping", 30.0),
        "query_pre_attn_scalar": _gemma_scale(sizes, 46),
    }


def _gemma3(file: GgufFile, sizes: Sizes) -> Config:
    return {
        **_window(file, sizes, 6),
        "rope_theta": as_float32(file.number("gemma3.rope.freq_base", 1_000_000.0)),
        "rope_local_base_freq": as_float32(file.number("gemma3.rope.freq_base_swa", 10_000.0)),
        "final_logit_softcapping": file.number("gemma3.final_logit_softcapping", 0.0) or None,
        "query_pre_attn_scalar": _gemma_scale(sizes, 62),
    }


def _smollm3(file: GgufFile, sizes: Sizes) -> Config:
    # every fourth layer knows no positions, in llama.cpp and in the model's own code
    return {"no_rope_layers": [int((layer + 1) % 4 != 0) for layer in range(sizes.layers)], "no_rope_layer_interval": 4}


def _chosen(sizes: Sizes) -> int:
    assert sizes.experts is not None
    return sizes.experts.chosen


def _qwen3moe(file: GgufFile, sizes: Sizes) -> Config:
    assert sizes.experts is not None
    return {
        "num_experts": sizes.experts.count,
        "num_experts_per_tok": _chosen(sizes),
        "moe_intermediate_size": sizes.experts.inner,
        "norm_topk_prob": True,  # so llama.cpp computes it for this architecture
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _gpt_oss(file: GgufFile, sizes: Sizes) -> Config:
    assert sizes.experts is not None
    return {
        **_window(file, sizes, 2),
        "num_local_experts": sizes.experts.count,
        "num_experts_per_tok": _chosen(sizes),
        "attention_bias": True,
        "swiglu_limit": 7.0,  # of the model's own code, and llama.cpp's
    }


def _shared_mixture(file: GgufFile, sizes: Sizes) -> Config:
    """Of GLM-4.5 and DeepSeek V3, whose routers are alike."""
    assert sizes.experts is not None
    name = sizes.architecture
    if file.integer(f"{name}.expert_gating_func", SIGMOID) != SIGMOID:
        raise UnsupportedModel(str(file.path), "experts that are chosen by a softmax", SUPPORTED)
    return {
        "n_routed_experts": sizes.experts.count,
        "num_experts_per_tok": _chosen(sizes),
        "n_shared_experts": sizes.experts.shared,
        "moe_intermediate_size": sizes.experts.inner,
        "first_k_dense_replace": sizes.experts.dense_layers,
        "routed_scaling_factor": as_float32(file.number(f"{name}.expert_weights_scale", 1.0)),
        "norm_topk_prob": file.flag(f"{name}.expert_weights_norm", True),
        "n_group": max(1, file.integer(f"{name}.expert_group_count", 1)),
        "topk_group": max(1, file.integer(f"{name}.expert_group_used_count", 1)),
    }


def _glm4moe(file: GgufFile, sizes: Sizes) -> Config:
    return {**_shared_mixture(file, sizes), "use_qk_norm": "blk.0.attn_q_norm.weight" in file.tensors}


def _minimax(file: GgufFile, sizes: Sizes) -> Config:
    assert sizes.experts is not None
    return {
        "num_local_experts": sizes.experts.count,
        "num_experts_per_tok": _chosen(sizes),
        "rotary_dim": sizes.rope_dim,
    }


def _deepseek(file: GgufFile, sizes: Sizes) -> Config:
    latent = sizes.latent
    assert latent is not None
    groups: Config = {}
    if "deepseek2.expert_group_count" not in file.metadata:  # older converters left them out; llama.cpp then uses one
        groups = {"n_group": 1, "topk_group": 1}
    return {
        **_shared_mixture(file, sizes),
        **groups,
        "num_key_value_heads": sizes.heads,
        "q_lora_rank": latent.query_rank or None,
        "kv_lora_rank": latent.rank,
        "qk_nope_head_dim": latent.nope,
        "qk_rope_head_dim": latent.rope,
        "v_head_dim": latent.value,
        "head_dim": latent.rope,
        "rope_interleave": True,
    }


_FAMILY_KEYS: dict[str, Callable[[GgufFile, Sizes], Config]] = {
    "phi3": _phi3,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "smollm3": _smollm3,
    "qwen3moe": _qwen3moe,
    "gpt-oss": _gpt_oss,
    "glm4moe": _glm4moe,
    "minimax-m2": _minimax,
    "deepseek2": _deepseek,
}
