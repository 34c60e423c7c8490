"""Which metadata keys of a GGUF file we know: what changes the computation is honoured, or refused by name.

A key of the file's architecture or tokenizer is honoured by `gguf_config` (and what it uses) or `gguf_tokenizer`,
harmless, or harmless at a neutral value. Any other one means something that this code does not know. Keys of other
beginnings (`general.`, `quantize.`, what quantisers add) describe the file and compute nothing.
"""

from __future__ import annotations

import math

from node.errors import UnsupportedModel
from node.weights.gguf_file import GgufFile, Value

HONOURED = frozenset(
    {
        *("context_length", "embedding_length", "block_count", "feed_forward_length"),
        *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
        *("attention.layer_norm_rms_epsilon", "rope.dimension_count", "rope.freq_base"),
        *("rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length"),
        *("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"),
    }
)
_EXPERTS = ("expert_count", "expert_used_count", "expert_feed_forward_length")
_SHARED_EXPERTS = (
    *_EXPERTS,
    *("expert_shared_count", "expert_gating_func", "expert_weights_scale", "expert_weights_norm"),
    *("expert_group_count", "expert_group_used_count", "leading_dense_block_count", "nextn_predict_layers"),
    "expert_shared_feed_forward_length",
)
HONOURED_BY: dict[str, tuple[str, ...]] = {
    "phi3": ("attention.sliding_window", "rope.scaling.attn_factor"),
    "gemma2": ("attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping"),
    "gemma3": (
        *("attention.sliding_window", "attention.sliding_window_pattern", "final_logit_softcapping"),
        "rope.freq_base_swa",
    ),
    "qwen3moe": _EXPERTS,
    "gpt-oss": (*_EXPERTS, "attention.sliding_window", "attention.sliding_window_pattern"),
    "glm4moe": _SHARED_EXPERTS,
    "minimax-m2": (*_EXPERTS, "expert_gating_func"),
    "deepseek2": (
        *_SHARED_EXPERTS,
        *("attention.q_lora_rank", "attention.kv_lora_rank", "attention.key_length_mla"),
        *("attention.value_length_mla", "rope.scaling.yarn_log_multiplier"),
    ),
}
"""What one architecture's config takes over beside those."""
HARMLESS = frozenset(
    {
        "vocab_size",  # the embedding says it
        "tensor_data_layout",  # a note of old converters
        "attention.layer_norm_epsilon",  # of norms that these families do not have
        "rope.scaling.finetuned",  # says how the model was trained
    }
)
NEUTRAL: dict[str, tuple[Value, ...]] = {
    **dict.fromkeys(
        ("expert_count", "expert_used_count", "expert_shared_count", "expert_group_count", "expert_group_used_count"),
        (0,),
    ),
    **dict.fromkeys(("leading_dense_block_count", "nextn_predict_layers", "pooling_type"), (0,)),
    **dict.fromkeys(("logit_scale", "residual_scale", "embedding_scale"), (1, 0)),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "router_logit_softcapping"), (0,)),
    **dict.fromkeys(("attention.max_alibi_bias", "attention.clamp_kqv", "attention.sliding_window"), (0,)),
    **dict.fromkeys(("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor", "rope.scale_linear"), (1,)),
    "rope.scaling.yarn_ext_factor": (1,),
    "rope.scaling.yarn_log_multiplier": (0,),
    "use_parallel_residual": (False,),
    "attention.causal": (True,),
}
"""Keys that other models of llama.cpp have, and the values at which they change nothing."""

TOKENIZER_KNOWN = frozenset(
    {
        *("model", "pre", "tokens", "token_type", "scores", "merges", "add_bos_token", "add_space_prefix"),
        *(f"{kind}_token_id" for kind in ("bos", "eos", "eot", "eom", "unknown", "padding")),
        # for filling in the middle, for classifiers, and of another kind of tokenizer: no prompt of ours has them
        *(f"{kind}_token_id" for kind in ("seperator", "separator", "mask", "cls", "prefix", "suffix", "middle")),
        *(f"fim_{kind}_token_id" for kind in ("pre", "suf", "mid", "pad", "rep", "sep")),
        *("remove_extra_whitespaces", "token_type_count", "add_sep_token"),
    }
)
TOKENIZER_NEUTRAL: dict[str, tuple[Value, ...]] = {"add_eos_token": (False,)}
TOKENIZER_BESIDE = ("tokenizer.chat_template", "tokenizer.huggingface.")
"""The templates, of which the one without a name is used, and another program's description of the same tokenizer."""

OTHER_COMPUTATIONS = ("diffusion.", "xielu.")

KINDS = {
    "adapter": "a LoRA adapter, which changes another model and is none itself (merge it into its model first),",
    "mmproj": "a projector for pictures or sound, which belongs to another model and is none itself,",
    "imatrix": "an importance matrix, made for quantising another model,",
}


def refuse_what_is_no_model(file: GgufFile, supported: str) -> None:
    """Look at what kind of thing the file says that it is.

    Raises:
        UnsupportedModel: an adapter, a projector, an importance matrix, a vocabulary alone.
    """
    kind, architecture = file.metadata.get("general.type"), file.metadata.get("general.architecture")
    if any(key.startswith("adapter.") for key in file.metadata) or any(
        name.endswith(".lora_a") for name in file.tensors
    ):
        kind = "adapter"
    elif architecture == "clip" or any(key.startswith("clip.") for key in file.metadata):
        kind = "mmproj"
    elif any(key.startswith("imatrix.") for key in file.metadata):
        kind = "imatrix"
    if kind in KINDS:
        raise UnsupportedModel(str(file.path), KINDS[kind], supported)
    if architecture == "controlvector":
        raise UnsupportedModel(str(file.path), "a control vector, which changes another model,", supported)
    if not file.tensors:
        raise UnsupportedModel(str(file.path), "a vocabulary without weights", supported)


def refuse_unknown_keys(file: GgufFile, architecture: str, head_dim: int, context_tokens: int, supported: str) -> None:
    """Look at every key that may change what the model computes.

    Raises:
        UnsupportedModel: one is not known, or says what is not computed here; names it.
    """
    for key, value in file.metadata.items():
        if key.startswith(f"{architecture}."):
            name = key.removeprefix(f"{architecture}.")
            known = name in HONOURED or name in HARMLESS or value in NEUTRAL.get(name, ())
            known = known or name in HONOURED_BY.get(architecture, ())
            if name == "attention.sliding_window" and isinstance(value, int):
                known = known or value >= context_tokens  # a window that never leaves anything out
            if name == "attention.scale" and isinstance(value, int | float):
                known = value == 0 or math.isclose(value, head_dim**-0.5, rel_tol=1e-6)
        elif key.startswith("tokenizer.ggml."):
            name = key.removeprefix("tokenizer.ggml.")
            known = name in TOKENIZER_KNOWN or value in TOKENIZER_NEUTRAL.get(name, ())
        elif key.startswith("tokenizer."):
            known = key.startswith(TOKENIZER_BESIDE)
        else:
            known = not key.startswith(OTHER_COMPUTATIONS)
        if not known:
            shown = (
                f" = {value}" if isinstance(value, int | float) or (isinstance(value, str) and len(value) < 40) else ""
            )
            raise UnsupportedModel(str(file.path), f'the metadata key "{key[:80]}"{shown}', supported)
