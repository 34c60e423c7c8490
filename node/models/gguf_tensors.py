"""Which tensors a model of these sizes has in a GGUF file, and how large each is."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from node.errors import DamagedModel, UnsupportedModel
from node.models.gguf_config import SUPPORTED
from node.models.gguf_rope import ROPE_TENSORS
from node.models.gguf_sizes import Config, Sizes
from node.weights.families import ARCHITECTURES, BARE, FAMILIES
from node.weights.ggml_types import BY_NAME
from node.weights.gguf_file import GgufFile

Shape = tuple[int, ...]

_WIDE_NORMS = frozenset({"olmo2", "minimax-m2"})
"""Architectures whose norms of queries and keys go over all heads together."""


def check_tensors(file: GgufFile, sizes: Sizes, config: Config) -> None:
    """Look whether the file has the tensors that the model needs, and no others.

    Raises:
        DamagedModel: one is missing or has another shape than the metadata say.
        UnsupportedModel: the file has tensors that this family does not use, or a vector that is quantised.
    """
    where = str(file.path)
    expected = dict(_expected(file, sizes, config))
    for name, shape in expected.items():
        tensor = file.tensors.get(name)
        if tensor is None:
            raise DamagedModel(where, f"the tensor {name} is missing")
        if tensor.shape != shape:
            raise DamagedModel(where, f"the tensor {name} has the shape {tensor.shape}, not {shape}")
        if len(shape) == 1 and BY_NAME[tensor.kind].block_items != 1:
            raise UnsupportedModel(where, f"the quantised vector {name}", "vectors in F32, F16 or BF16")
    for name in file.tensors.keys() - expected.keys() - ROPE_TENSORS:
        layer = re.fullmatch(r"blk\.(\d{1,5})\..+", name)
        if layer is None or int(layer[1]) < sizes.layers:  # those after the last predict further tokens
            raise UnsupportedModel(where, f"the tensor {name[:80]}", SUPPORTED)


def _expected(file: GgufFile, sizes: Sizes, config: Config) -> Iterator[tuple[str, Shape]]:
    yield "token_embd.weight", (sizes.vocabulary, sizes.hidden)
    yield "output_norm.weight", (sizes.hidden,)
    if not config["tie_word_embeddings"]:
        yield "output.weight", (sizes.vocabulary, sizes.hidden)
    for layer in range(sizes.layers):
        for role, shape in _layer(file, sizes, config, layer):
            yield f"blk.{layer}.{role}", shape


def _layer(file: GgufFile, sizes: Sizes, config: Config, layer: int) -> Iterator[tuple[str, Shape]]:
    """Names without the layer, and shapes. A name of several is the one that the file has."""
    family, hidden = FAMILIES[ARCHITECTURES[sizes.architecture]], sizes.hidden
    for norm in ("attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm"):
        if norm in family:
            named = {"gpt-oss": "post_attention_norm", "glm4moe": "post_attention_norm"}.get(sizes.architecture, norm)
            name = named if norm == "ffn_norm" and f"blk.{layer}.{named}.weight" in file.tensors else norm
            yield f"{name}.weight", (hidden,)
    yield from _latent(file, sizes, layer) if sizes.latent else _attention(file, sizes, config, layer)
    experts = sizes.experts
    if experts is not None and layer >= experts.dense_layers:
        yield from _mixture(sizes, family.keys())
    elif sizes.architecture == "phi3":
        yield "ffn_up.weight", (2 * sizes.inner, hidden)
        yield "ffn_down.weight", (hidden, sizes.inner)
    else:
        yield from _linear("ffn_gate", sizes.inner, hidden, bias=bool(config["mlp_bias"]))
        yield from _linear("ffn_up", sizes.inner, hidden, bias=bool(config["mlp_bias"]))
        yield from _linear("ffn_down", hidden, sizes.inner, bias=bool(config["mlp_bias"]))


def _linear(name: str, rows: int, columns: int, *, bias: bool = False) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (rows, columns)
    if bias:
        yield f"{name}.bias", (rows,)


def _attention(file: GgufFile, sizes: Sizes, config: Config, layer: int) -> Iterator[tuple[str, Shape]]:
    name, hidden = sizes.architecture, sizes.hidden
    queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    bias = bool(config["attention_bias"]) or name == "qwen2"
    if f"blk.{layer}.attn_qkv.weight" in file.tensors and name == "phi3":
        yield "attn_qkv.weight", (queries + 2 * keys, hidden)
    else:
        for part, rows in zip("qkv", (queries, keys, keys), strict=True):
            yield from _linear(f"attn_{part}", rows, hidden, bias=bias)
    # of Qwen2 and GLM the output projection never has one
    yield from _linear("attn_output", hidden, queries, bias=bias and name not in ("qwen2", "glm4moe"))
    wide = name in _WIDE_NORMS
    if name in ("qwen3", "qwen3moe", "gemma3", *_WIDE_NORMS) or config.get("use_qk_norm"):
        yield "attn_q_norm.weight", (queries if wide else sizes.head_dim,)
        yield "attn_k_norm.weight", (keys if wide else sizes.head_dim,)
    if name == "gpt-oss":
        yield _bare(file, layer, "attn_sinks", "weight"), (sizes.heads,)
    if name in ("glm4moe", "minimax-m2") and sizes.experts and layer >= sizes.experts.dense_layers:
        yield _bare(file, layer, "exp_probs_b", "bias"), (sizes.experts.count,)


def _bare(file: GgufFile, layer: int, name: str, usual: str) -> str:
    """A parameter that files have called with and without an ending."""
    assert name in BARE
    endings = (f".{usual}", "", ".weight", ".bias")
    return next((name + end for end in endings if f"blk.{layer}.{name}{end}" in file.tensors), f"{name}.{usual}")


def _latent(file: GgufFile, sizes: Sizes, layer: int) -> Iterator[tuple[str, Shape]]:
    latent, hidden, heads = sizes.latent, sizes.hidden, sizes.heads
    assert latent is not None
    queries = heads * (latent.nope + latent.rope)
    if latent.query_rank:
        yield "attn_q_a.weight", (latent.query_rank, hidden)
        yield "attn_q_a_norm.weight", (latent.query_rank,)
        yield "attn_q_b.weight", (queries, latent.query_rank)
    else:
        yield "attn_q.weight", (queries, hidden)
    yield "attn_kv_a_mqa.weight", (latent.rank + latent.rope, hidden)
    yield "attn_kv_a_norm.weight", (latent.rank,)
    if f"blk.{layer}.attn_k_b.weight" in file.tensors:  # as newer converters split it
        yield "attn_k_b.weight", (heads, latent.rank, latent.nope)
        yield "attn_v_b.weight", (heads, latent.value, latent.rank)
    else:
        yield "attn_kv_b.weight", (heads * (latent.nope + latent.value), latent.rank)
    yield "attn_output.weight", (hidden, heads * latent.value)
    if sizes.experts and layer >= sizes.experts.dense_layers:
        yield _bare(file, layer, "exp_probs_b", "bias"), (sizes.experts.count,)


def _mixture(sizes: Sizes, roles: Collection[str]) -> Iterator[tuple[str, Shape]]:
    experts, hidden = sizes.experts, sizes.hidden
    assert experts is not None
    biased = sizes.architecture == "gpt-oss"
    wide = experts.inner * experts.shared
    yield from _linear("ffn_gate_inp", experts.count, hidden, bias=biased)
    for name, shape, shared in (
        ("ffn_gate", (experts.inner, hidden), (wide, hidden)),
        ("ffn_up", (experts.inner, hidden), (wide, hidden)),
        ("ffn_down", (hidden, experts.inner), (hidden, wide)),
    ):
        yield f"{name}_exps.weight", (experts.count, *shape)
        if biased:
            yield f"{name}_exps.bias", (experts.count, shape[0])
        if experts.shared and f"{name}_shexp" in roles:
            yield f"{name}_shexp.weight", shared
