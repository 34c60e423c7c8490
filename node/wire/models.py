"""Which model, and what a planner must know about it. No files, no tensors."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct
from msgspec.structs import force_setattr

from node.wire.text import printable

Dtype = Literal["float32", "bfloat16", "float16"]
"""Arithmetic of a stage's weights and activations."""

Quantise = Literal["auto", "none", "int8", "int4"]
"""What becomes of weights when a stage is loaded. `auto`: a small model's in float32 (`weights/small.py`), others as
they are stored; 16-bit ones in float32 where there is memory for that, else in int8. `none`: float32 arithmetic.
`int8`, `int4`: so many bits, in blocks of 32."""

DTYPE_BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Of one number."""

Count = Annotated[int, Meta(ge=0, le=2**53)]
Text = Annotated[str, Meta(min_length=1, max_length=512)]


class ModelRef(Struct, frozen=True):
    """One exact model: two nodes with equal refs hold equal weights."""

    name: Text
    """What people and OpenAI clients call it: `smollm2-135m-instruct`."""
    source: Text
    """Where it comes from: `default`, `hub:org/name@commit`, `gguf:FILENAME` or `folder:NAME`."""
    digest: Text
    """Of every byte that is used, weights included, so that neither a namesake nor a fine-tune is mistaken for it: of a
    GGUF file its SHA-256, of a folder that of its tensors and the files beside them, of a hub model the commit."""

    def __post_init__(self) -> None:
        for field in ("name", "source", "digest"):
            text = getattr(self, field)
            if (shown := printable(text)) != text:
                force_setattr(self, field, shown)


class ModelFacts(Struct, frozen=True):
    """Sizes that a layer assignment needs, for one dtype of the weights."""

    layers: Annotated[int, Meta(ge=1, le=10_000)]
    """Decoder layers."""
    layer_bytes: Count
    """Weights of one decoder layer (the largest, where they differ)."""
    embedding_bytes: Count
    """Weights that the first stage holds beside its layers."""
    head_bytes: Count
    """Weights that the last stage holds beside its layers: final norm and LM head (the embedding, where tied)."""
    kv_bytes_per_token_layer: Count
    """KV cache of one token in one layer."""
    hidden_size: Annotated[int, Meta(ge=1, le=1_000_000)]
    """Width of the activations that travel between stages."""
    vocab_size: Annotated[int, Meta(ge=1, le=10_000_000)]
    """Rows of the embedding."""
    context_tokens: Annotated[int, Meta(ge=1, le=100_000_000)]
    """The longest sequence that the model takes."""
    tied: bool = False
    """Whether the head is the embedding; a stage that holds both ends then stores it once."""
    score_width: Count = 0
    """Multiply-adds of one query with one cached token in one layer; 0: as many as numbers in the cache."""
    experts: Annotated[int, Meta(ge=0, le=100_000)] = 0
    """Routed experts of a layer; 0 in a dense model."""
    top_k: Annotated[int, Meta(ge=0, le=100_000)] = 0
    """Experts that a token visits."""
    expert_bytes: Count = 0
    """Weights of one routed expert."""
    dense_layers: Annotated[int, Meta(ge=0, le=10_000)] = 0
    """Leading layers without experts, in a mixture."""
    dense_layer_bytes: Count = 0
    """Weights of such a layer."""
    windowed_layers: Annotated[int, Meta(ge=0, le=10_000)] = 0
    """Layers whose attention sees the last `window_tokens` only."""
    window_tokens: Count = 0
    """Length of that window."""
    weight_bits: Annotated[float, Meta(ge=0, le=64)] = 0.0
    """Bits that a weight takes in memory, on average, where that is not what the dtype says: quantised weights stay as
    small as they came. The sizes above are of the dtype; 0: as it says."""

    def __post_init__(self) -> None:
        if 0 < self.weight_bits < 1:
            raise ValueError(f"facts.weight_bits is {self.weight_bits}, less than any weight takes")
        if self.experts and not 1 <= self.top_k <= self.experts:
            raise ValueError(f"facts.top_k is {self.top_k} of {self.experts} experts")
        if self.experts and not 1 <= self.expert_bytes <= self.layer_bytes // self.experts:
            raise ValueError(f"facts.expert_bytes is {self.expert_bytes}, {self.experts} of them make a layer")
        if not self.experts and self.top_k:
            raise ValueError(f"facts.top_k is {self.top_k} in a model without experts")
        if self.dense_layers > self.layers:
            raise ValueError(f"facts.dense_layers is {self.dense_layers} of {self.layers} layers")
        if self.dense_layers and not 1 <= self.dense_layer_bytes <= self.layer_bytes:
            raise ValueError(
                f"facts.dense_layer_bytes is {self.dense_layer_bytes}, the largest layer {self.layer_bytes}"
            )
        if self.windowed_layers > self.layers:
            raise ValueError(f"facts.windowed_layers is {self.windowed_layers} of {self.layers} layers")
        if self.windowed_layers and not self.window_tokens:
            raise ValueError("facts.window_tokens is 0 where layers have a window")
