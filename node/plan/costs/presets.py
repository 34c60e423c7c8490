"""Models whose plan can be asked for with no download: their public config values, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from node.plan.costs.model import ModelCost, cost_of_config

_FP8: Mapping[str, object] = {"quant_method": "fp8"}
_MXFP4: Mapping[str, object] = {"quant_method": "mxfp4"}


def _dense(
    hidden: int, inner: int, layers: int, heads: int, kv: int, vocab: int, context: int, **more: object
) -> dict[str, object]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        **more,
    }


def _mixture(base: dict[str, object], experts: int, top_k: int, inner: int, **more: object) -> dict[str, object]:
    routed = {"num_experts": experts, "num_experts_per_tok": top_k, "moe_intermediate_size": inner}
    return {**base, **routed, **more}


_LATENT: dict[str, object] = {
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
_DEEPSEEK = _mixture(
    _dense(7168, 18432, 61, 128, 128, 129280, 163840, **_LATENT),
    256,
    8,
    2048,
    n_shared_experts=1,
    first_k_dense_replace=3,
    quantization_config=_FP8,
)
_GPT_OSS_WINDOW: dict[str, object] = {"head_dim": 64, "sliding_window": 128, "sliding_window_pattern": 2}

CONFIGS: Mapping[str, Mapping[str, object]] = {
    "llama-3.1-8b": _dense(4096, 14336, 32, 32, 8, 128256, 131072),
    "llama-3.1-70b": _dense(8192, 28672, 80, 64, 8, 128256, 131072),
    "llama-3.1-405b": _dense(16384, 53248, 126, 128, 8, 128256, 131072),
    "llama-3.2-1b": _dense(2048, 8192, 16, 32, 8, 128256, 131072, tie_word_embeddings=True),
    "llama-3.2-3b": _dense(3072, 8192, 28, 24, 8, 128256, 131072, tie_word_embeddings=True),
    "llama-3.3-70b": _dense(8192, 28672, 80, 64, 8, 128256, 131072),
    "qwen3-0.6b": _dense(1024, 3072, 28, 16, 8, 151936, 40960, head_dim=128, tie_word_embeddings=True),
    "qwen3-1.7b": _dense(2048, 6144, 28, 16, 8, 151936, 40960, head_dim=128, tie_word_embeddings=True),
    "qwen3-4b": _dense(2560, 9728, 36, 32, 8, 151936, 40960, head_dim=128, tie_word_embeddings=True),
    "qwen3-8b": _dense(4096, 12288, 36, 32, 8, 151936, 40960, head_dim=128),
    "qwen3-14b": _dense(5120, 17408, 40, 40, 8, 151936, 40960, head_dim=128),
    "qwen3-32b": _dense(5120, 25600, 64, 64, 8, 151936, 40960, head_dim=128),
    "qwen3-30b-a3b": _mixture(_dense(2048, 6144, 48, 32, 4, 151936, 40960, head_dim=128), 128, 8, 768),
    "qwen3-235b-a22b": _mixture(_dense(4096, 12288, 94, 64, 4, 151936, 40960, head_dim=128), 128, 8, 1536),
    "qwen3-coder-480b-a35b": _mixture(_dense(6144, 8192, 62, 96, 8, 151936, 262144, head_dim=128), 160, 8, 2560),
    "deepseek-v3": _DEEPSEEK,
    "deepseek-r1": _DEEPSEEK,
    "minimax-m2": _mixture(
        _dense(3072, 1536, 62, 48, 8, 200064, 196608, head_dim=128), 256, 8, 1536, quantization_config=_FP8
    ),
    "glm-4.6": _mixture(
        _dense(5120, 12288, 92, 96, 8, 151552, 202752, head_dim=128),
        160,
        8,
        1536,
        n_shared_experts=1,
        first_k_dense_replace=3,
    ),
    "kimi-k2": _mixture(
        _dense(7168, 18432, 61, 64, 64, 163840, 131072, **_LATENT),
        384,
        8,
        2048,
        n_shared_experts=1,
        first_k_dense_replace=1,
        quantization_config=_FP8,
    ),
    "gpt-oss-20b": _mixture(
        _dense(2880, 2880, 24, 64, 8, 201088, 131072, **_GPT_OSS_WINDOW), 32, 4, 2880, quantization_config=_MXFP4
    ),
    "gpt-oss-120b": _mixture(
        _dense(2880, 2880, 36, 64, 8, 201088, 131072, **_GPT_OSS_WINDOW), 128, 4, 2880, quantization_config=_MXFP4
    ),
}


SUFFIXES = ("instruct", "chat", "it", "base", "thinking", "hf", "0905", "0528", "0324", "2507")
"""Of names under which the same architecture is published."""
ALIASES = {"deepseek-v3.1": "deepseek-v3", "llama-3-8b": "llama-3.1-8b", "llama-3-70b": "llama-3.1-70b"}


def preset(name: str) -> ModelCost | None:
    """The preset that `name` means, whatever its case, owner and variant (`zai-org/GLM-4.6`, `glm-4.6`,
    `Qwen3-30B-A3B-Instruct-2507`), or None. A variant in FP8 has weights of one byte."""
    asked = name.rsplit("/", 1)[-1].lower().replace("_", "-").removeprefix("meta-")
    in_fp8 = False
    while (config := CONFIGS.get(ALIASES.get(asked, asked))) is None:
        asked, _, suffix = asked.rpartition("-")
        if suffix == "fp8":
            in_fp8 = True
        elif suffix not in SUFFIXES:
            return None
    known = ALIASES.get(asked, asked)
    if not in_fp8 or "quantization_config" in config:
        return cost_of_config(known, config, "preset")
    return cost_of_config(f"{known}-fp8", {**config, "quantization_config": _FP8}, "preset")
