"""Which model, and what a planner must know about it. No files, no tensors."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

Dtype = Literal["float32", "bfloat16", "float16"]
"""Arithmetic of a stage's weights and activations."""

Count = Annotated[int, Meta(ge=0, le=2**53)]
Text = Annotated[str, Meta(min_length=1, max_length=512)]


class ModelRef(Struct, frozen=True):
    """One exact model: two nodes with equal refs hold equal weights."""

    name: Text
    """What people and OpenAI clients call it: `smollm2-135m-instruct`."""
    source: Text
    """Where it comes from: `default`, `hub:org/name@commit`, `gguf:FILENAME` or `folder:NAME`."""
    digest: Text
    """Hash of the content (for a hub model: the commit), so that a namesake is not mistaken for it."""


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
