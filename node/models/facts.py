"""From config.json to the sizes that a layer assignment needs. Reads nothing but that file.

The sizes are computed, not measured: a planner asks before anything was fetched. They cover dense decoders, mixtures of
experts and latent attention (MLA); an unusual layer may differ by some per cent.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from node.errors import DamagedModel
from node.wire.models import DTYPE_BYTES, Dtype, ModelFacts

SIZE_LIMIT = 1_000_000_000
"""No size in a config is that large; keeps absurd values from the arithmetic."""


class ModelConfig:
    """Checked access to a config.json; a multimodal model's language part is taken where there is one."""

    def __init__(self, folder: Path) -> None:
        """Raises: DamagedModel, when the file is missing or no JSON object."""
        self.path = folder / "config.json"
        try:
            values = json.loads(self.path.read_bytes())
        except OSError as error:
            raise DamagedModel(str(self.path), f"cannot be read ({error.strerror})") from error
        except (ValueError, RecursionError) as error:
            raise DamagedModel(str(self.path), f"is not JSON ({error})") from error
        if not isinstance(values, dict):
            raise DamagedModel(str(self.path), "is not a JSON object")
        text = values.get("text_config")
        self.values: dict[str, object] = {**values, **text} if isinstance(text, dict) else values

    def size(self, *keys: str, default: int | None = None, least: int = 1) -> int:
        """The first of `keys` that is set, as a whole number from `least` to a billion.

        Raises:
            DamagedModel: it is no such number, or none is set and there is no default; names file and key.
        """
        for key in keys:
            value = self.values.get(key)
            if value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= SIZE_LIMIT:
                raise DamagedModel(
                    str(self.path), f'the key "{key}" is {str(value)[:40]!r}, not a number of at least {least}'
                )
            return value
        if default is None:
            raise DamagedModel(str(self.path), f'the key "{keys[0]}" is missing')
        return default

    def flag(self, key: str, default: bool) -> bool:
        """A truth value.

        Raises:
            DamagedModel: it is something else.
        """
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise DamagedModel(str(self.path), f'the key "{key}" is {str(value)[:40]!r}, not true or false')
        return value

    def names(self, key: str) -> Sequence[object]:
        """A list; empty where it is something else, which families use for other things."""
        value = self.values.get(key)
        return value if isinstance(value, list) else ()


def layer_count(folder: Path) -> int:
    """Decoder layers of the model in `folder`.

    Raises:
        DamagedModel: config.json does not say.
    """
    return ModelConfig(folder).size("num_hidden_layers", "n_layer")


def context_tokens(folder: Path) -> int:
    """The longest sequence that the model in `folder` takes.

    Raises:
        DamagedModel: config.json does not say.
    """
    return ModelConfig(folder).size("max_position_embeddings", "n_positions")


def read_facts(folder: Path, dtype: Dtype, weight_bits: float = 0.0) -> ModelFacts:
    """Sizes of the model in `folder` when its weights and KV cache are of `dtype`.

    Args:
        weight_bits: what a weight takes in memory, see `held`; 0: what the dtype says.

    Raises:
        DamagedModel: config.json is missing, or a key in it is missing or absurd; names file and key.
    """
    config = ModelConfig(folder)
    item = DTYPE_BYTES[dtype]
    layers, hidden = config.size("num_hidden_layers", "n_layer"), config.size("hidden_size")
    vocabulary = config.size("vocab_size")
    attention, mixture = _attention(config, hidden), _mixture(config, hidden, layers)
    dense = attention.parameters + _dense_mlp(config, hidden, mixture) + 2 * hidden
    sparse = attention.parameters + mixture.layer_parameters + 2 * hidden
    largest = dense if not mixture.experts else max(sparse, dense if mixture.dense_layers else 0)
    sizes = {
        "layers": layers,
        "layer_bytes": largest * item,
        "embedding_bytes": vocabulary * hidden * item,
        "head_bytes": (vocabulary * hidden + hidden) * item,
        "kv_bytes_per_token_layer": attention.cached * item,
        "hidden_size": hidden,
        "vocab_size": vocabulary,
        "context_tokens": config.size("max_position_embeddings", "n_positions"),
        "tied": config.flag("tie_word_embeddings", str(config.values.get("model_type")).startswith("gemma")),
        "score_width": attention.scored,
        "experts": mixture.experts,
        "top_k": mixture.top_k,
        "expert_bytes": mixture.expert_parameters * item,
        "dense_layers": mixture.dense_layers,
        "dense_layer_bytes": dense * item if mixture.dense_layers else 0,
        "windowed_layers": (windowed := _windowed_layers(config, layers)),
        "window_tokens": config.size("sliding_window") if windowed else 0,
        "weight_bits": weight_bits,
    }
    try:
        return msgspec.convert(sizes, ModelFacts)
    except msgspec.ValidationError as error:
        raise DamagedModel(str(config.path), f"describes no model that can be: {error}") from error


@dataclass(frozen=True, slots=True)
class _Attention:
    """Of one layer."""

    parameters: int
    cached: int
    """Numbers that one token adds to the KV cache."""
    scored: int
    """Multiply-adds of one query with one cached token."""


def _attention(config: ModelConfig, hidden: int) -> _Attention:
    heads = config.size("num_attention_heads", "n_head")
    if "kv_lora_rank" in config.values:
        return _latent_attention(config, hidden, heads)
    kv_heads = config.size("num_key_value_heads", default=heads)
    head_dim = config.size("head_dim", default=max(hidden // heads, 1))
    queries, keys = heads * head_dim, kv_heads * head_dim
    parameters = 2 * hidden * queries + 2 * hidden * keys
    if config.flag("attention_bias", config.values.get("model_type") in ("qwen2", "qwen2_moe")):
        parameters += queries + 2 * keys + hidden
    # 2 * head_dim: norms of queries and keys, where a family has them
    return _Attention(parameters + 2 * head_dim, 2 * keys, 2 * queries)


def _latent_attention(config: ModelConfig, hidden: int, heads: int) -> _Attention:
    """MLA keeps one compressed vector per token, and one rotated key that all heads share."""
    rank, rope = config.size("kv_lora_rank"), config.size("qk_rope_head_dim")
    nope, value = config.size("qk_nope_head_dim"), config.size("v_head_dim")
    query_rank = config.size("q_lora_rank", default=0, least=0)
    queries = heads * (nope + rope)
    parameters = query_rank * (hidden + 1 + queries) if query_rank else hidden * queries
    parameters += hidden * (rank + rope) + rank + rank * heads * (nope + value) + heads * value * hidden
    return _Attention(parameters, rank + rope, heads * (2 * rank + rope))


@dataclass(frozen=True, slots=True)
class _Mixture:
    """Routed experts; all zero in a dense model."""

    experts: int = 0
    top_k: int = 0
    expert_parameters: int = 0
    """Of one."""
    layer_parameters: int = 0
    """Of a layer's feed-forward part: all experts, those that every token visits, and the router."""
    dense_layers: int = 0


def _mixture(config: ModelConfig, hidden: int, layers: int) -> _Mixture:
    experts = config.size("num_experts", "n_routed_experts", "num_local_experts", default=0, least=0)
    if not experts:
        return _Mixture()
    inner = config.size("moe_intermediate_size", "intermediate_size")
    shared = config.size("n_shared_experts", default=0, least=0) * inner
    shared += config.size("shared_expert_intermediate_size", "shared_intermediate_size", default=0, least=0)
    leading = config.size("first_k_dense_replace", default=0, least=0)
    step = config.size("decoder_sparse_step", default=1)
    return _Mixture(
        experts,
        config.size("num_experts_per_tok", "num_experts_per_token", default=1),
        3 * hidden * inner,
        3 * hidden * (experts * inner + shared) + experts * hidden,
        # those between others count as if they led
        min(layers, max(leading, len(config.names("mlp_only_layers")), layers - layers // step)),
    )


def _dense_mlp(config: ModelConfig, hidden: int, mixture: _Mixture) -> int:
    """Parameters of the feed-forward part of a layer without experts."""
    inner = config.size("intermediate_size", default=0 if mixture.experts else None, least=0 if mixture.experts else 1)
    bias = 2 * inner + hidden if config.flag("mlp_bias", False) else 0
    return 3 * hidden * inner + bias


def _windowed_layers(config: ModelConfig, layers: int) -> int:
    """Layers whose attention sees a window only."""
    if not config.size("sliding_window", default=0, least=0) or not config.flag("use_sliding_window", True):
        return 0
    kinds = config.names("layer_types")
    if kinds:
        return min(layers, sum(kind == "sliding_attention" for kind in kinds))
    pattern = config.size("sliding_window_pattern", default=0, least=0)
    return layers - layers // pattern if pattern else layers
