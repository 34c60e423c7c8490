"""What each family calls its tensors: in transformers' checkpoints, and in GGUF files. No I/O.

One more family is one more table here. Names are those below `model.layers.N.`; of several the first that a checkpoint
has counts, since a family's files have come in more than one form; the last one is transformers' own, in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Rows = Literal["", "q", "k", "v", "gate", "up"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a role's tensor is in a checkpoint."""

    name: str
    """Without `.weight`; `{}` stands for an expert's number where each has tensors of its own."""
    rows: Rows = ""
    """Of a tensor that joins several roles, the rows that are meant: q, k, v, or gate, up, one after the other."""
    columns_first: bool = False
    """(experts, columns, rows), and where gate and up are joined, they take turns. So gpt-oss has it."""


Table = Mapping[str, tuple[Place, ...]]

OUTER = {"token_embd": "embed_tokens", "output_norm": "norm"}
"""Below the layers' own prefix; `output` is `lm_head`."""

BARE = frozenset({"attn_sinks", "exp_probs_b"})
"""Parameters without a module of their own: neither `.weight` nor `.bias` says anything about them."""


def _table(**names: str | Place | tuple[Place, ...]) -> dict[str, tuple[Place, ...]]:
    return {
        role: (Place(place),) if isinstance(place, str) else (place,) if isinstance(place, Place) else place
        for role, place in names.items()
    }


_ATTENTION = _table(
    attn_norm="input_layernorm",
    attn_q="self_attn.q_proj",
    attn_k="self_attn.k_proj",
    attn_v="self_attn.v_proj",
    attn_output="self_attn.o_proj",
    attn_q_norm="self_attn.q_norm",
    attn_k_norm="self_attn.k_norm",
    ffn_norm="post_attention_layernorm",
)
_DENSE = _table(ffn_gate="mlp.gate_proj", ffn_up="mlp.up_proj", ffn_down="mlp.down_proj")
_POST_NORMS = _table(post_attention_norm="post_attention_layernorm", post_ffw_norm="post_feedforward_layernorm")


def _experts(block: str, gate: str, up: str, down: str) -> dict[str, tuple[Place, ...]]:
    """One by one, as published; joined, as transformers 5 holds them."""
    joined = f"{block}.experts.gate_up_proj"
    return _table(
        ffn_gate_exps=(Place(f"{block}.experts.{{}}.{gate}"), Place(joined, "gate")),
        ffn_up_exps=(Place(f"{block}.experts.{{}}.{up}"), Place(joined, "up")),
        ffn_down_exps=(Place(f"{block}.experts.{{}}.{down}"), Place(f"{block}.experts.down_proj")),
    )


_MIXTURE = {**_experts("mlp", "gate_proj", "up_proj", "down_proj"), **_table(ffn_gate_inp="mlp.gate")}
_SHARED = _table(
    exp_probs_b="mlp.gate.e_score_correction_bias",
    ffn_gate_shexp="mlp.shared_experts.gate_proj",
    ffn_up_shexp="mlp.shared_experts.up_proj",
    ffn_down_shexp="mlp.shared_experts.down_proj",
)
_LATENT = _table(
    attn_norm="input_layernorm",
    attn_q="self_attn.q_proj",
    attn_q_a="self_attn.q_a_proj",
    attn_q_a_norm="self_attn.q_a_layernorm",
    attn_q_b="self_attn.q_b_proj",
    attn_kv_a_mqa="self_attn.kv_a_proj_with_mqa",
    attn_kv_a_norm="self_attn.kv_a_layernorm",
    attn_kv_b="self_attn.kv_b_proj",
    attn_output="self_attn.o_proj",
    ffn_norm="post_attention_layernorm",
)
_OLD_MIXTURE = "block_sparse_moe"

_LLAMA = {**_ATTENTION, **_DENSE}
_LATENT_MIXTURE = {**_LATENT, **_DENSE, **_MIXTURE, **_SHARED}
_GEMMA = {**_LLAMA, **_POST_NORMS, **_table(ffn_norm="pre_feedforward_layernorm")}

FAMILIES: dict[str, Table] = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "mistral", "smollm3"), _LLAMA),
    "phi3": {
        **_ATTENTION,
        **_table(
            attn_q=Place("self_attn.qkv_proj", "q"),
            attn_k=Place("self_attn.qkv_proj", "k"),
            attn_v=Place("self_attn.qkv_proj", "v"),
            ffn_gate=Place("mlp.gate_up_proj", "gate"),
            ffn_up=Place("mlp.gate_up_proj", "up"),
            ffn_down="mlp.down_proj",
        ),
    },
    "olmo2": {
        role: place for role, place in {**_LLAMA, **_POST_NORMS}.items() if role not in ("attn_norm", "ffn_norm")
    },
    **dict.fromkeys(("gemma2", "gemma3", "gemma3_text"), _GEMMA),
    "qwen3_moe": {**_LLAMA, **_MIXTURE},
    "glm4_moe": {**_LLAMA, **_MIXTURE, **_SHARED},
    **dict.fromkeys(("deepseek_v3", "kimi_k2"), _LATENT_MIXTURE),
    "minimax_m2": {
        **_ATTENTION,
        **{
            role: (*old, *new)
            for (role, old), new in zip(
                _experts(_OLD_MIXTURE, "w1", "w3", "w2").items(),
                _experts("mlp", "gate_proj", "up_proj", "down_proj").values(),
                strict=True,
            )
        },
        "ffn_gate_inp": (Place(f"{_OLD_MIXTURE}.gate"), Place("mlp.gate")),
        "exp_probs_b": (
            Place(f"{_OLD_MIXTURE}.e_score_correction_bias"),
            Place("mlp.gate.e_score_correction_bias"),
            Place("mlp.e_score_correction_bias"),
        ),
    },
    "gpt_oss": {
        **_ATTENTION,
        **_table(
            attn_sinks="self_attn.sinks",
            ffn_gate_inp="mlp.router",
            ffn_gate_exps=Place("mlp.experts.gate_up_proj", "gate", columns_first=True),
            ffn_up_exps=Place("mlp.experts.gate_up_proj", "up", columns_first=True),
            ffn_down_exps=Place("mlp.experts.down_proj", columns_first=True),
        ),
    },
}
"""By transformers' `model_type`."""

NORM_FROM_ONE = frozenset({"gemma2", "gemma3", "gemma3_text"})
"""Families whose checkpoints store how far a norm's factors are from 1. GGUF files of them store the factors."""

ROTARY_INTERLEAVED = frozenset({"deepseek_v3", "kimi_k2"})
"""Families whose checkpoints rotate neighbouring rows, in both forms of file."""

ARCHITECTURES = {
    "llama": "llama",
    "mistral3": "mistral",
    "smollm3": "smollm3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "phi3": "phi3",
    "olmo2": "olmo2",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "qwen3moe": "qwen3_moe",
    "gpt-oss": "gpt_oss",
    "glm4moe": "glm4_moe",
    "minimax-m2": "minimax_m2",
    "deepseek2": "deepseek_v3",
}
"""GGUF's architectures, and the families that they are of."""

GGUF_INTERLEAVED = frozenset({"llama", "mistral3", "smollm3", "deepseek2"})
"""Architectures that llama.cpp rotates by neighbouring rows; of all but deepseek2 its converter has put the rows of
queries and keys in that order."""

GGUF_OTHER_NAMES: Mapping[tuple[str, str], str] = {
    ("gpt-oss", "ffn_norm"): "post_attention_norm",
    ("glm4moe", "ffn_norm"): "post_attention_norm",
}
"""Where an architecture's files call a role otherwise, by architecture and role."""

GGUF_JOINED: Mapping[str, tuple[tuple[str, Rows], ...]] = {
    "attn_q": (("attn_qkv", "q"),),
    "attn_k": (("attn_qkv", "k"),),
    "attn_v": (("attn_qkv", "v"),),
    "ffn_gate": (("ffn_up", "gate"),),
    "ffn_up": (("ffn_up", "up"),),
    "ffn_gate_exps": (("ffn_gate_up_exps", "gate"),),
    "ffn_up_exps": (("ffn_gate_up_exps", "up"),),
}
"""Tensors that join several roles, asked for where a layer has none of the role's own name. `ffn_up` alone joins both
where there is no `ffn_gate`."""
