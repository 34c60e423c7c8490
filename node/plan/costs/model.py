"""What a model costs: bytes, FLOPs and KV cache of a layer and of the two ends, from a Hugging Face config.

The counts are those of the matrices; norms, biases and routers are left out, which is below a tenth of a per cent. A
matrix of n parameters costs 2·n FLOPs per token and n·width bytes to read; a step of t tokens touches

    E(t) = ⌊experts · (1 - (1 - top_k / experts)^t)⌋

experts when the router chooses evenly (the coupon collector's expectation, as the Parallax paper has it). The layers
of one model are taken as alike but for two things: leading dense layers of a mixture (DeepSeek, GLM, Kimi) and layers
whose attention sees a window only (gpt-oss, Gemma).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from node.errors import BadPool
from node.wire.models import DTYPE_BYTES, ModelFacts
from node.wire.plans import Plan

LARGEST = 1_000_000_000
"""No width or count in a config reaches this; keeps absurd values from the arithmetic."""

WIDTHS = {"fp8": 1.0, "compressed-tensors": 1.0, "mxfp4": 0.53125, "awq": 0.53125, "gptq": 0.53125}
"""Bytes per quantised weight, group scales included: 4 bits and one byte for 32 of them make 0.53125."""


@dataclass(frozen=True, slots=True)
class ModelCost:
    """One model in the widths that it is served in. Parameters are per layer, bytes are whole."""

    name: str
    """For people."""
    layers: int
    """Decoder layers."""
    hidden_size: int
    """Width of the activations between stages."""
    vocab_size: int
    """Rows of the embedding."""
    context_tokens: int
    """The longest sequence that the model takes."""
    attention_params: int
    """Projections of one layer's attention."""
    score_width: int
    """Multiply-adds of one query with one cached token: heads · (key width + value width)."""
    kv_width: int
    """Numbers that a token adds to one layer's cache."""
    dense_params: int = 0
    """Feed-forward part of a layer without experts."""
    dense_layers: int = 0
    """Leading layers without experts; all of them in a dense model."""
    experts: int = 0
    """Routed experts of a layer; 0 in a dense model."""
    top_k: int = 0
    """Experts that a token visits."""
    expert_params: int = 0
    """One routed expert."""
    shared_params: int = 0
    """Experts that every token visits."""
    windowed_layers: int = 0
    """Layers whose attention sees the last `window_tokens` only."""
    window_tokens: int = 0
    """Length of that window."""
    tied: bool = False
    """Whether the head is the embedding; a node that holds both ends then stores it once."""
    weight_bytes: float = 2.0
    """Per parameter outside the routed experts."""
    expert_bytes: float = 2.0
    """Per parameter of a routed expert."""
    kv_bytes: float = 2.0
    """Per number in the cache."""
    end_bytes: float = 2.0
    """Per parameter of the embedding and the head."""
    activation_bytes: float = 2.0
    """Per number that travels from stage to stage."""

    @property
    def embedding_bytes(self) -> int:
        """The embedding; the head is as large."""
        return round(self.vocab_size * self.hidden_size * self.end_bytes)

    def ends_bytes(self, *, first: bool, last: bool) -> int:
        """Weights of an end stage beside its layers."""
        if first and last and self.tied:
            return self.embedding_bytes
        return (int(first) + int(last)) * self.embedding_bytes

    @property
    def sparse_layer_bytes(self) -> int:
        """Weights of a layer with experts; of any layer in a dense model."""
        if not self.experts:
            return self.dense_layer_bytes
        always = (self.attention_params + self.shared_params) * self.weight_bytes
        return round(always + self.experts * self.expert_params * self.expert_bytes)

    @property
    def dense_layer_bytes(self) -> int:
        """Weights of a layer without experts."""
        return round((self.attention_params + self.dense_params) * self.weight_bytes)

    @property
    def layer_bytes(self) -> int:
        """Weights of the largest layer."""
        return max(self.sparse_layer_bytes, self.dense_layer_bytes if self.dense_layers else 0)

    def range_bytes(self, start: int, end: int) -> int:
        """Weights of layers [start, end) with the ends that belong to them."""
        dense = max(0, min(end, self.dense_layers) - start)
        layers = dense * self.dense_layer_bytes + (end - start - dense) * self.sparse_layer_bytes
        return layers + self.ends_bytes(first=start == 0, last=end == self.layers)

    @property
    def total_bytes(self) -> int:
        """All weights."""
        return self.range_bytes(0, self.layers)

    @property
    def total_params(self) -> int:
        """All parameters, ends included."""
        sparse = self.attention_params + self.shared_params + self.experts * self.expert_params
        dense = self.attention_params + self.dense_params
        ends = self.vocab_size * self.hidden_size * (1 if self.tied else 2)
        return self.dense_layers * dense + (self.layers - self.dense_layers) * sparse + ends

    @property
    def kv_token_bytes(self) -> int:
        """Cache of one token in one layer without a window."""
        return round(self.kv_width * self.kv_bytes)

    def kv_layer_bytes(self, context: int, sequences: int = 1) -> int:
        """Cache of `sequences` sequences of `context` tokens in a layer, over windowed and other layers alike."""
        if not self.windowed_layers:
            return self.kv_token_bytes * context * sequences
        seen = min(context, self.window_tokens)
        tokens = self.windowed_layers * seen + (self.layers - self.windowed_layers) * context
        return -(-self.kv_token_bytes * tokens * sequences // self.layers)

    def expected_experts(self, tokens: int) -> int:
        """Distinct experts that a step of `tokens` tokens touches in one layer; at least what one token visits.

        A step of no tokens costs as much as one of one: an idle node is asked what the next request would cost.
        """
        if not self.experts:
            return 0
        missed = (1 - self.top_k / self.experts) ** max(1, tokens)
        return max(min(self.top_k, self.experts), int(self.experts * (1 - missed)))

    def layer_read_bytes(self, batch: int, new_tokens: int = 1, context: int = 0) -> float:
        """Bytes that one step reads in a layer: weights that are touched, and the cache of every sequence."""
        batch = max(1, batch)
        always = (self.attention_params + self.shared_params) * self.weight_bytes
        sparse = always + self.expected_experts(batch * new_tokens) * self.expert_params * self.expert_bytes
        cache = self.kv_layer_bytes(context, batch)
        return self._mean(sparse, (self.attention_params + self.dense_params) * self.weight_bytes) + cache

    def layer_flops(self, batch: int, new_tokens: int = 1, context: int = 0) -> float:
        """FLOPs of one step in a layer: every token visits `top_k` experts, and scores what its attention sees."""
        tokens = max(1, batch) * new_tokens
        sparse = self.attention_params + self.shared_params + self.top_k * self.expert_params
        params = self._mean(sparse, self.attention_params + self.dense_params)
        seen: float = context
        if self.windowed_layers:
            windowed = self.windowed_layers * min(context, self.window_tokens)
            seen = (windowed + (self.layers - self.windowed_layers) * context) / self.layers
        return 2 * tokens * (params + self.score_width * seen)

    @property
    def head_flops(self) -> int:
        """LM head for one token; only the last token of a prompt needs it."""
        return 2 * self.hidden_size * self.vocab_size

    def hop_bytes(self, tokens: int) -> float:
        """Activations of `tokens` tokens between two stages."""
        return tokens * self.hidden_size * self.activation_bytes

    def _mean(self, sparse: float, dense: float) -> float:
        if not self.experts:
            return dense
        return sparse + (dense - sparse) * self.dense_layers / self.layers


def cost_of_facts(name: str, facts: ModelFacts, item_bytes: float = 2.0) -> ModelCost:
    """What a swarm's plan says of a model is enough to place and time it.

    In a mixture, what is neither a routed expert nor part of a dense layer counts as attention: every token reads it.
    """
    held_bytes = facts.weight_bits / 8 or item_bytes
    layer, expert = facts.layer_bytes / item_bytes, facts.expert_bytes / item_bytes
    always = max(0, round(layer - facts.experts * expert)) if facts.experts else 0
    dense = facts.dense_layer_bytes / item_bytes if facts.experts else layer
    kv_width = round(facts.kv_bytes_per_token_layer / item_bytes)
    return ModelCost(
        name=name,
        layers=facts.layers,
        hidden_size=facts.hidden_size,
        vocab_size=facts.vocab_size,
        context_tokens=facts.context_tokens,
        attention_params=min(always, round(dense)) if facts.dense_layers else always,
        score_width=facts.score_width or kv_width,
        kv_width=kv_width,
        dense_params=max(0, round(dense) - always),
        dense_layers=facts.dense_layers if facts.experts else facts.layers,
        experts=facts.experts,
        top_k=facts.top_k,
        expert_params=round(expert),
        shared_params=max(0, always - round(dense)) if facts.dense_layers else 0,
        windowed_layers=facts.windowed_layers,
        window_tokens=facts.window_tokens,
        tied=facts.tied,
        weight_bytes=held_bytes,
        expert_bytes=held_bytes,
        kv_bytes=item_bytes,
        end_bytes=max(facts.embedding_bytes, facts.head_bytes)
        / (facts.hidden_size * facts.vocab_size)
        * (held_bytes / item_bytes),
        activation_bytes=item_bytes,
    )


def cost_of_plan(plan: Plan) -> ModelCost:
    """What the plan's model costs."""
    return cost_of_facts(plan.model.name, plan.facts, DTYPE_BYTES[plan.dtype])


@dataclass(frozen=True, slots=True)
class _Config:
    """Checked access to a config; a multimodal model's language part is taken where there is one."""

    where: str
    values: Mapping[str, object]

    def size(self, *keys: str, default: int | None = None, least: int = 1) -> int:
        for key in keys:
            value = self.values.get(key)
            if value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= LARGEST:
                raise BadPool(self.where, key, f"{str(value)[:40]!r} is not a whole number of at least {least}")
            return value
        if default is None:
            raise BadPool(self.where, keys[0], "is missing")
        return default

    def names(self, key: str) -> Sequence[object]:
        value = self.values.get(key)
        return value if isinstance(value, (list, tuple)) else ()


def cost_of_config(
    name: str,
    config: Mapping[str, object],
    where: str = "config.json",
    *,
    weight_bytes: float | None = None,
    kv_bytes: float = 2.0,
    end_bytes: float = 2.0,
    latent_cache: bool = True,
) -> ModelCost:
    """The cost of the model that a Hugging Face `config` describes.

    `weight_bytes` overrides the width that the config's quantisation tells. `latent_cache` says whether the engine
    keeps MLA's compressed vector or the expanded keys and values of every head.

    Raises:
        BadPool: a key is missing or absurd; names `where` and the key.
    """
    text = config.get("text_config")
    values: Mapping[str, object] = {**config, **text} if isinstance(text, Mapping) else config
    read = _Config(where, values)
    hidden, layers = read.size("hidden_size", "n_embd"), read.size("num_hidden_layers", "n_layer")
    attention, score, kv = _attention(read, hidden, latent_cache)
    experts = read.size("num_experts", "n_routed_experts", "num_local_experts", default=0, least=0)
    inner = read.size("intermediate_size", default=4 * hidden, least=0)
    expert_inner = read.size("moe_intermediate_size", default=inner, least=0) if experts else 0
    shared = read.size("n_shared_experts", default=0, least=0) * expert_inner
    shared += read.size("shared_expert_intermediate_size", "shared_intermediate_size", default=0, least=0)
    width, expert_width = _widths(values, experts, weight_bytes)
    return ModelCost(
        name=name,
        layers=layers,
        hidden_size=hidden,
        vocab_size=read.size("vocab_size"),
        context_tokens=read.size("max_position_embeddings", "n_positions", default=4096),
        attention_params=attention,
        score_width=score,
        kv_width=kv,
        dense_params=3 * hidden * inner,
        dense_layers=_dense_layers(read, layers) if experts else layers,
        experts=experts,
        top_k=min(experts, read.size("num_experts_per_tok", "num_experts_per_token", default=1)) if experts else 0,
        expert_params=3 * hidden * expert_inner,
        shared_params=3 * hidden * shared if experts else 0,
        windowed_layers=_windowed_layers(read, layers),
        window_tokens=read.size("sliding_window", default=0, least=0),
        tied=values.get("tie_word_embeddings") is True,
        weight_bytes=width,
        expert_bytes=expert_width,
        kv_bytes=kv_bytes,
        end_bytes=end_bytes,
    )


def _attention(read: _Config, hidden: int, latent_cache: bool) -> tuple[int, int, int]:
    """Parameters, multiply-adds per cached token, and cached numbers per token of one layer's attention."""
    heads = read.size("num_attention_heads", "n_head")
    kv_heads = read.size("num_key_value_heads", default=heads)
    if "qk_nope_head_dim" not in read.values or "qk_rope_head_dim" not in read.values:
        head = read.size("head_dim", default=max(1, hidden // heads))
        return 2 * hidden * heads * head + 2 * hidden * kv_heads * head, 2 * heads * head, 2 * kv_heads * head
    nope, rope = read.size("qk_nope_head_dim"), read.size("qk_rope_head_dim")
    value = read.size("v_head_dim", "head_dim")
    rank = read.size("kv_lora_rank", default=0, least=0)
    query_rank = read.size("q_lora_rank", default=0, least=0)
    queries, outputs = heads * (nope + rope), heads * value
    params = query_rank * (hidden + queries) if query_rank else hidden * queries
    if rank:
        params += hidden * (rank + rope) + rank * heads * (nope + value)
    else:
        params += hidden * kv_heads * (nope + rope + value)
    params += outputs * hidden
    if rank and latent_cache:
        return params, heads * (2 * rank + rope), rank + rope
    return params, queries + outputs, kv_heads * (nope + rope + value)


def _dense_layers(read: _Config, layers: int) -> int:
    """Layers of a mixture that have no experts; those between others are counted as if they led."""
    leading = read.size("first_k_dense_replace", default=0, least=0)
    named = len(read.names("mlp_only_layers"))
    step = read.size("decoder_sparse_step", default=1)
    return min(layers, max(leading, named, layers - layers // step))


def _windowed_layers(read: _Config, layers: int) -> int:
    """Layers with a sliding window."""
    if not read.size("sliding_window", default=0, least=0) or read.values.get("use_sliding_window") is False:
        return 0
    kinds = read.names("layer_types")
    if kinds:
        return min(layers, sum(1 for kind in kinds if kind == "sliding_attention"))
    pattern = read.size("sliding_window_pattern", default=0, least=0)
    return layers - layers // pattern if pattern else layers


def _widths(values: Mapping[str, object], experts: int, override: float | None) -> tuple[float, float]:
    """Bytes per parameter, and per parameter of a routed expert."""
    if override is not None:
        return override, override
    quantisation = values.get("quantization_config")
    method = quantisation.get("quant_method") if isinstance(quantisation, Mapping) else None
    plain = 4.0 if values.get("torch_dtype", values.get("dtype")) == "float32" else 2.0
    if not isinstance(method, str):
        return plain, plain
    width = WIDTHS.get(method, 1.0)
    return (plain if method == "mxfp4" and experts else width), width
