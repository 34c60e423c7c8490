"""From config.json to the sizes that a layer assignment needs. Reads nothing but that file.

The sizes are computed, not measured: a planner asks before anything was fetched. They cover dense decoders, mixtures of
experts and latent attention (MLA); an unusual layer may differ by some per cent.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from node.errors import DamagedModel
from node.wire.models import Dtype, ModelFacts

DTYPE_BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
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


def read_facts(folder: Path, dtype: Dtype) -> ModelFacts:
    """Sizes of the model in `folder` when its weights and KV cache are of `dtype`.

    Raises:
        DamagedModel: config.json is missing, or a key in it is missing or absurd; names file and key.
    """
    config = ModelConfig(folder)
    item = DTYPE_BYTES[dtype]
    hidden, vocabulary = config.size("hidden_size"), config.size("vocab_size")
    attention, kv_width = _attention(config, hidden)
    layer = attention + _largest_mlp(config, hidden) + 2 * hidden
    facts = ModelFacts(
        layers=config.size("num_hidden_layers", "n_layer"),
        layer_bytes=layer * item,
        embedding_bytes=vocabulary * hidden * item,
        head_bytes=(vocabulary * hidden + hidden) * item,
        kv_bytes_per_token_layer=kv_width * item,
        hidden_size=hidden,
        vocab_size=vocabulary,
        context_tokens=config.size("max_position_embeddings", "n_positions"),
    )
    try:
        return msgspec.convert(msgspec.to_builtins(facts), ModelFacts)
    except msgspec.ValidationError as error:
        raise DamagedModel(str(config.path), f"describes no model that can be: {error}") from error


def _attention(config: ModelConfig, hidden: int) -> tuple[int, int]:
    """Parameters of one layer's attention, and numbers that one token adds to its KV cache."""
    heads = config.size("num_attention_heads", "n_head")
    if "kv_lora_rank" in config.values:
        return _latent_attention(config, hidden, heads)
    kv_heads = config.size("num_key_value_heads", default=heads)
    head_dim = config.size("head_dim", default=max(hidden // heads, 1))
    queries, keys = heads * head_dim, kv_heads * head_dim
    parameters = 2 * hidden * queries + 2 * hidden * keys
    if config.flag("attention_bias", config.values.get("model_type") in ("qwen2", "qwen2_moe")):
        parameters += queries + 2 * keys + hidden
    return parameters + 2 * head_dim, 2 * keys  # 2 * head_dim: norms of queries and keys, where a family has them


def _latent_attention(config: ModelConfig, hidden: int, heads: int) -> tuple[int, int]:
    """MLA keeps one compressed vector per token, and one rotated key that all heads share."""
    rank, rope = config.size("kv_lora_rank"), config.size("qk_rope_head_dim")
    nope, value = config.size("qk_nope_head_dim"), config.size("v_head_dim")
    query_rank = config.size("q_lora_rank", default=0, least=0)
    queries = heads * (nope + rope)
    parameters = query_rank * (hidden + 1 + queries) if query_rank else hidden * queries
    parameters += hidden * (rank + rope) + rank + rank * heads * (nope + value) + heads * value * hidden
    return parameters, rank + rope


def _largest_mlp(config: ModelConfig, hidden: int) -> int:
    """Parameters of the largest layer's feed-forward part."""
    experts = config.size("num_experts", "n_routed_experts", "num_local_experts", default=0, least=0)
    inner = config.size("intermediate_size", default=0 if experts else None, least=0 if experts else 1)
    dense = 3 * hidden * inner + 2 * inner + hidden if config.flag("mlp_bias", False) else 3 * hidden * inner
    if not experts:
        return dense
    expert_inner = config.size("moe_intermediate_size", "intermediate_size")
    shared = config.size("n_shared_experts", default=0, least=0) * expert_inner
    shared += config.size("shared_expert_intermediate_size", default=0, least=0)
    return max(dense, 3 * hidden * (experts * expert_inner + shared) + experts * hidden)
