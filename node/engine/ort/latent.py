"""DeepSeek's attention in its absorbed form: one narrow row a token is key and value of all heads.

Queries are taken into the narrow row's space, and what is seen is taken out of it, by a matrix for each head. So the
cache holds 576 numbers a token instead of 128 heads' keys and values; twice, since the kernel wants keys and values
apart. The kernel turns the first rows of a head, so the turned part comes first.

DeepSeek-V2, arXiv:2405.04434, section 2.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from node.engine.ort.shape import Attention, Latent

if TYPE_CHECKING:
    from node.engine.ort.layers import LayerBuilder


def latent_attention(builder: LayerBuilder, latent: Latent, rows: str) -> str:
    """Attention's output (R, S, hidden) from normed rows."""
    graph = builder.graph
    wide = latent.turned + latent.rank
    into, out_of = _by_head(builder, latent)
    plain, turned = _queries(builder, latent, rows)
    query = graph.node("Concat", [turned, _through(builder, plain, into, "into")], axis=-1)
    query = graph.node("Reshape", [query, graph.shape(0, 0, latent.heads * wide)])
    key = _narrow(builder, latent, rows)
    one_head = Attention(latent.heads, 1, wide, latent.scale, 0, 0.0, latent.rope)
    seen = builder.grouped_attention(one_head, query, key, key)
    apart = graph.node("Reshape", [seen, graph.shape(0, 0, latent.heads, wide)])
    _, narrow = graph.split(apart, [latent.turned, latent.rank])
    values = _through(builder, narrow, out_of, "out_of")
    values = graph.node("Reshape", [values, graph.shape(0, 0, latent.heads * latent.values)])
    output = builder.matrix("attn_output")
    builder.expect(output, "attn_output", builder.model.hidden, latent.heads * latent.values)
    return graph.linear(values, output, "attn_output")


def _queries(builder: LayerBuilder, latent: Latent, rows: str) -> tuple[str, str]:
    """(R, S, heads, plain) and (R, S, heads, turned)"""
    graph, width = builder.graph, latent.plain + latent.turned
    if builder.weights.has(builder.layer, "attn_q_a"):
        narrow = graph.linear(rows, builder.matrix("attn_q_a"), "attn_q_a")
        factors = builder.weights.vector(builder.layer, "attn_q_a_norm")
        query, role = graph.norm(narrow, "attn_q_a_norm", factors, builder.model.epsilon), "attn_q_b"
    else:
        query, role = rows, "attn_q"
    linear = builder.matrix(role)
    builder.expect(linear, role, latent.heads * width, linear.columns)
    heads = graph.node("Reshape", [graph.linear(query, linear, role), graph.shape(0, 0, latent.heads, width)])
    plain, turned = graph.split(heads, [latent.plain, latent.turned])
    return plain, turned


def _narrow(builder: LayerBuilder, latent: Latent, rows: str) -> str:
    """(R, S, turned + rank): what the cache holds of a token, before it is turned."""
    graph = builder.graph
    linear = builder.matrix("attn_kv_a_mqa")
    builder.expect(linear, "attn_kv_a_mqa", latent.rank + latent.turned, builder.model.hidden)
    narrow, turned = graph.split(graph.linear(rows, linear, "attn_kv_a_mqa"), [latent.rank, latent.turned])
    factors = builder.weights.vector(builder.layer, "attn_kv_a_norm")
    builder.expect_items(factors, "attn_kv_a_norm", latent.rank)
    normed = graph.norm(narrow, "attn_kv_a_norm", factors, builder.model.epsilon)
    return graph.node("Concat", [turned, normed], axis=-1)


def _by_head(builder: LayerBuilder, latent: Latent) -> tuple[np.ndarray, np.ndarray]:
    """Matrices into the narrow space (heads, 1, plain, rank) and out of it (heads, 1, rank, values)."""
    both = builder.floats("attn_kv_b")
    shape = [latent.heads * (latent.plain + latent.values), latent.rank]
    if list(both.shape) != shape:
        raise builder.misshapen("attn_kv_b", list(both.shape), shape)
    heads = both.reshape(latent.heads, 1, latent.plain + latent.values, latent.rank)
    return heads[:, :, : latent.plain], np.swapaxes(heads[:, :, latent.plain :], -1, -2)


def _through(builder: LayerBuilder, rows: str, matrices: np.ndarray, name: str) -> str:
    """(R, S, heads, columns) times a matrix for each head. Each sequence is a product of its own, so that the kernel
    does not depend on how many there are."""
    graph = builder.graph
    first = graph.node("Transpose", [rows], perm=[2, 0, 1, 3])
    product = graph.node("MatMul", [first, graph.constant(f"attn_kv_b.{name}", matrices)])
    return graph.node("Transpose", [product], perm=[1, 2, 0, 3])
