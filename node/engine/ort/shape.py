"""What the layers of a model are like, from its config.json alone: one small record for each layer.

Knows no weights and no graph. A family is here as soon as its layers can be told by these records.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from node.engine.ort.config import Config

Activation = Literal["silu", "gelu"]
Norms = Literal["before", "after", "both"]
"""Where a layer normalises: what attention and feed forward take, what they give, or both."""

ROPES = ("full_attention", "sliding_attention")


@dataclass(frozen=True, slots=True)
class Attention:
    """One layer's attention with a head of keys and values for several heads of queries."""

    heads: int
    kv_heads: int
    head_size: int
    scale: float
    """That scores are multiplied with."""
    window: int
    """Positions that a token sees, itself included; 0: all."""
    softcap: float
    """Scores stay within it; 0: they may be any."""
    rope: str
    """The model's table that turns queries and keys; empty: they are not turned."""

    @property
    def kv_floats(self) -> int:
        """Of one token's keys and values."""
        return 2 * self.kv_heads * self.head_size


@dataclass(frozen=True, slots=True)
class Latent:
    """DeepSeek's attention: keys and values of all heads are made of one narrow row (multi-head latent attention)."""

    heads: int
    plain: int
    """Rows of a head's queries that are not turned."""
    turned: int
    values: int
    """Rows of a head's values."""
    rank: int
    """Of the row that keys and values are made of."""
    scale: float
    rope: str = "full_attention"

    @property
    def kv_floats(self) -> int:
        """The narrow row and the turned part of the keys, twice: the kernel wants keys and values of one width."""
        return 2 * (self.rank + self.turned)


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts in place of one feed forward."""

    count: int
    chosen: int
    """For each token."""
    scores: Literal["softmax", "sigmoid"]
    normalised: bool
    """Whether the chosen ones' scores are divided by their sum."""
    factor: float = 1.0
    """That the sum of the experts is multiplied with."""
    groups: int = 1
    groups_chosen: int = 1
    """Only experts of so many groups are looked at."""
    clamped: float = 0.0
    """gpt-oss: gate and up stay within it; 0: the usual silu."""
    alpha: float = 1.0
    """gpt-oss: of the gate's sigmoid."""


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One layer."""

    attention: Attention | Latent
    norms: Norms
    activation: Activation
    experts: Experts | None = None


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A model."""

    family: str
    hidden: int
    vocabulary: int
    epsilon: float
    """Of its norms."""
    context: int
    """Positions that it was made for; 0 where its config does not say."""
    layers: tuple[LayerShape, ...]
    ropes: Mapping[str, Mapping[str, object]]
    """Parameters of its rotary tables by name."""
    rotary: int
    """Rows of a head that are turned."""
    embedding_scale: float = 1.0
    """That embedding rows are multiplied with."""
    head_softcap: float = 0.0
    """Logits stay within it; 0: they may be any."""


FAMILIES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "smollm3",
    "phi3",
    "olmo2",
    "gemma2",
    "gemma3_text",
    "qwen3_moe",
    "glm4_moe",
    "minimax_m2",
    "gpt_oss",
    "deepseek_v3",
    "kimi_k2",
)
"""By transformers' `model_type`."""

BIGGEST_LAYERS, BIGGEST_ROW = 4096, 1 << 20
"""No model is near either; a config that says so is wrong."""
TURNED_IN = 16
"""The kernel turns rows of queries and keys by so many at a time."""


def family_of(config: Config) -> str:
    """The model's family.

    Raises:
        UnsupportedModel: there is no graph for it here.
    """
    family = config.text("model_type", "")
    if family not in FAMILIES:
        raise config.unsupported(f"the family {family or 'of no name'} with onnxruntime", ", ".join(FAMILIES))
    return family


def shape_of(config: Config) -> ModelShape:
    """What a config describes.

    Raises:
        UnsupportedModel: a family, an activation or a kind of layer that there is no graph for.
        DamagedModel: a value that is missing or cannot be.
    """
    family = family_of(config)
    hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    head_size = config.whole("head_dim", 0) or hidden // heads
    if family in ("deepseek_v3", "kimi_k2"):
        head_size = _size(config, "qk_rope_head_dim")
    count = config.whole("num_hidden_layers")
    if not 1 <= count <= BIGGEST_LAYERS:
        raise config.damaged("num_hidden_layers", count, f"1 to {BIGGEST_LAYERS}")
    ropes = _ropes(config, family)
    part = config.number("partial_rotary_factor", 0.5 if family == "glm4_moe" else 1.0)
    for rope in ropes.values():
        part = Config(rope, config.where).number("partial_rotary_factor", part)
    rotary = config.whole("rotary_dim", 0) or int(head_size * part)
    if not 2 <= rotary <= head_size:
        raise config.damaged("partial_rotary_factor", part, f"a part of {head_size} rows")
    if rotary % TURNED_IN:
        raise config.unsupported(f"a head of which {rotary} rows are turned", f"multiples of {TURNED_IN}")
    gemma = family.startswith("gemma")
    return ModelShape(
        family=family,
        hidden=hidden,
        vocabulary=_size(config, "vocab_size", 1 << 24),
        epsilon=config.number("rms_norm_eps", 1e-6),
        context=config.whole("max_position_embeddings", 0),
        layers=tuple(_layer(config, family, index, head_size) for index in range(count)),
        ropes=ropes,
        rotary=rotary,
        embedding_scale=float(hidden) ** 0.5 if gemma else 1.0,
        head_softcap=config.number("final_logit_softcapping", 0.0) if gemma else 0.0,
    )


def _size(config: Config, key: str, most: int = BIGGEST_ROW) -> int:
    value = config.whole(key)
    if not 1 <= value <= most:
        raise config.damaged(key, value, f"1 to {most}")
    return value


def _ropes(config: Config, family: str) -> dict[str, dict[str, object]]:
    """Rotary parameters by table: one for all layers, or one for each kind of layer."""
    given = config.part("rope_parameters") or config.part("rope_scaling") or {}
    by_kind = {kind: part for kind, part in given.items() if isinstance(part, dict)}
    ropes: dict[str, dict[str, object]]
    if by_kind:
        ropes = {kind: dict(part) for kind, part in by_kind.items()}
    elif family == "gemma3_text":  # sliding layers have a table of their own, which is never scaled
        local = config.positive("rope_local_base_freq", 10_000.0)
        ropes = {"full_attention": dict(given), "sliding_attention": {"rope_type": "default", "rope_theta": local}}
        ropes["full_attention"].setdefault("rope_theta", config.positive("rope_theta", 1_000_000.0))
    else:
        ropes = {"full_attention": dict(given)}
    if family == "phi3":  # its configs call longrope by older names
        for rope in ropes.values():
            kind = rope.get("rope_type") or rope.get("type")
            if kind in ("su", "yarn"):
                rope["rope_type"] = "longrope"
    return ropes


def _layer(config: Config, family: str, index: int, head_size: int) -> LayerShape:
    activation = config.text("hidden_activation", config.text("hidden_act", "silu"))
    known: dict[str, Activation] = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu", "gelu_new": "gelu"}
    if family.startswith("gemma"):
        known["gelu"] = "gelu"  # what their first configs say, and do not mean
    if activation not in known:
        raise config.unsupported(f"the activation {activation}", ", ".join(known))
    norms: Norms = "after" if family == "olmo2" else "both" if family.startswith("gemma") else "before"
    attention = (
        _latent(config) if family in ("deepseek_v3", "kimi_k2") else _attention(config, family, index, head_size)
    )
    return LayerShape(attention, norms, known[activation], _experts(config, family, index))


def _attention(config: Config, family: str, index: int, head_size: int) -> Attention:
    heads = _size(config, "num_attention_heads")
    kv_heads = config.whole("num_key_value_heads", heads)
    if kv_heads < 1 or heads % kv_heads:
        raise config.damaged("num_key_value_heads", kv_heads, f"a number that divides {heads} heads")
    sliding = _is_sliding(config, family, index)
    window = config.whole("sliding_window", 0) if sliding else 0
    gemma = family.startswith("gemma")
    scale = config.positive("query_pre_attn_scalar", 256.0) ** -0.5 if gemma else head_size**-0.5
    rope = "sliding_attention" if sliding and family == "gemma3_text" else "full_attention"
    if family == "smollm3":
        turned = config.items("no_rope_layers")
        interval = config.whole("no_rope_layer_interval", 4)
        if not (turned[index] if turned and index < len(turned) else (index + 1) % max(interval, 1)):
            rope = ""
    softcap = config.number("attn_logit_softcapping", 0.0) if gemma else 0.0
    return Attention(heads, kv_heads, head_size, scale, window, softcap, rope)


def _is_sliding(config: Config, family: str, index: int) -> bool:
    """Whether a layer sees a window of positions only."""
    if not config.whole("sliding_window", 0):
        return False
    if family in ("qwen2", "qwen3", "qwen3_moe", "smollm3") and not config.flag("use_sliding_window", False):
        return False
    kinds = config.items("layer_types")
    if kinds is not None and index < len(kinds):
        return kinds[index] == "sliding_attention"
    match family:
        case "mistral" | "phi3" | "qwen3_moe":
            return True
        case "qwen2" | "qwen3":
            return index >= config.whole("max_window_layers", 28)
        case "gemma2" | "gpt_oss":
            return index % 2 == 0
        case "gemma3_text":
            return (index + 1) % max(config.whole("sliding_window_pattern", 6), 1) != 0
        case _:
            return False


def _latent(config: Config) -> Latent:
    if not config.flag("rope_interleave", True):
        raise config.unsupported("rope_interleave: false", "rope_interleave: true")
    plain, turned = _size(config, "qk_nope_head_dim"), _size(config, "qk_rope_head_dim")
    scale = float(plain + turned) ** -0.5
    scaling = Config(config.part("rope_parameters") or config.part("rope_scaling") or {}, config.where)
    factor, all_dims = scaling.number("factor", 1.0), scaling.number("mscale_all_dim", 0.0)
    if all_dims and factor > 1:
        scale *= (0.1 * all_dims * math.log(factor) + 1.0) ** 2
    return Latent(
        _size(config, "num_attention_heads"),
        plain,
        turned,
        _size(config, "v_head_dim"),
        _size(config, "kv_lora_rank"),
        scale,
    )


def _experts(config: Config, family: str, index: int) -> Experts | None:
    match family:
        case "qwen3_moe":
            dense = config.items("mlp_only_layers") or []
            step = max(config.whole("decoder_sparse_step", 1), 1)
            if index in dense or (index + 1) % step:
                return None
            count = _size(config, "num_experts") if config.has("num_experts") else _size(config, "num_local_experts")
            return _mixture(config, count, "softmax", config.flag("norm_topk_prob", False))
        case "gpt_oss":
            mixture = _mixture(config, _size(config, "num_local_experts"), "softmax", True)
            limit, alpha = config.number("swiglu_limit", 7.0), config.number("swiglu_alpha", 1.702)
            return Experts(mixture.count, mixture.chosen, "softmax", True, clamped=limit, alpha=alpha)
        case "minimax_m2":
            return _mixture(config, _size(config, "num_local_experts"), "sigmoid", True)
        case "glm4_moe" | "deepseek_v3" | "kimi_k2":
            if index < config.whole("first_k_dense_replace", 1 if family == "glm4_moe" else 3):
                return None
            count = _size(config, "n_routed_experts")
            mixture = _mixture(config, count, "sigmoid", config.flag("norm_topk_prob", True))
            groups, chosen = max(config.whole("n_group", 1), 1), max(config.whole("topk_group", 1), 1)
            if count % groups or chosen > groups:
                raise config.damaged("n_group", groups, f"a number of equal groups of {count} experts")
            factor = config.number("routed_scaling_factor", 1.0)
            return Experts(count, mixture.chosen, "sigmoid", mixture.normalised, factor, groups, chosen)
        case _:
            return None


def _mixture(config: Config, count: int, scores: Literal["softmax", "sigmoid"], normalised: bool) -> Experts:
    chosen = config.whole("num_experts_per_tok")
    if not 1 <= chosen <= count:
        raise config.damaged("num_experts_per_tok", chosen, f"1 to {count}")
    return Experts(count, chosen, scores, normalised)
