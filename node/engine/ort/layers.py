"""The nodes of one layer. What is added to the stream of hidden rows stays apart from it until the next norm, which
adds both in one kernel.

A stage begins with a zero to be added, so that its first norm is the same kernel as in the middle of a stage: another
one would give other last bits, and a chain of stages other ones than a single stage.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from node.engine.ort.experts import mixture
from node.engine.ort.graph import Graph
from node.engine.ort.latent import latent_attention
from node.engine.ort.linear import Arithmetic, Linear, joined, linear_of
from node.engine.ort.shape import Attention, LayerShape, ModelShape
from node.weights.base import Weights
from node.weights.blocks import Floats, floats


@dataclass(frozen=True, slots=True)
class Stream:
    """Hidden rows (R, S, hidden) on their way: the sum of two values."""

    rows: str
    added: str


class LayerBuilder:
    """Adds layers of one model to a graph."""

    def __init__(self, graph: Graph, model: ModelShape, weights: Weights, arithmetic: Arithmetic) -> None:
        self.graph, self.model, self.weights, self.arithmetic = graph, model, weights, arithmetic
        self.layer = 0

    def add(self, layer: int, stream: Stream) -> Stream:
        """One layer more."""
        self.layer, self.graph.prefix = layer, f"l{layer}."
        shape = self.model.layers[layer]
        if shape.norms == "after":
            rows = self.graph.node("Add", [stream.rows, stream.added])
            given = self._norm(self.attention(shape, rows), "post_attention_norm")
            rows = self.graph.node("Add", [rows, given])
            return Stream(rows, self._norm(self.feed_forward(shape, rows), "post_ffw_norm"))
        normed, rows = self._skip_norm(stream, "attn_norm")
        given = self.attention(shape, normed)
        if shape.norms == "both":
            given = self._norm(given, "post_attention_norm")
        normed, rows = self._skip_norm(Stream(rows, given), "ffn_norm")
        given = self.feed_forward(shape, normed)
        if shape.norms == "both":
            given = self._norm(given, "post_ffw_norm")
        return Stream(rows, given)

    # --- attention --------------------------------------------------------------------------------------------------

    def attention(self, shape: LayerShape, rows: str) -> str:
        """Attention's output (R, S, hidden) from normed rows."""
        attention = shape.attention
        if not isinstance(attention, Attention):
            return latent_attention(self, attention, rows)
        query, key, value = self._query_key_value(attention, rows)
        seen = self.grouped_attention(attention, query, key, value)
        return self.graph.linear(seen, self.matrix("attn_output"), "attn_output")

    def _query_key_value(self, attention: Attention, rows: str) -> tuple[str, str, str]:
        """The three products; joined in the first where no norm stands between them and the kernel takes them so."""
        roles = ("attn_q", "attn_k", "attn_v")
        linears = [self.matrix(role) for role in roles]
        widths = [attention.heads * attention.head_size] + [attention.kv_heads * attention.head_size] * 2
        for linear, width, role in zip(linears, widths, roles, strict=True):
            self.expect(linear, role, width, self.model.hidden)
        one = joined(linears)
        normed = self.weights.has(self.layer, "attn_q_norm")
        if one is not None:
            together = self.graph.linear(rows, one, "attn_qkv")
            if not normed:
                return together, "", ""
            parts = self.graph.split(together, widths)
        else:
            parts = [self.graph.linear(rows, linear, role) for linear, role in zip(linears, roles, strict=True)]
        query, key, value = parts
        if normed:
            query = self._head_norm(query, "attn_q_norm", attention.heads, attention.head_size)
            key = self._head_norm(key, "attn_k_norm", attention.kv_heads, attention.head_size)
        return query, key, value

    def _head_norm(self, rows: str, role: str, heads: int, size: int) -> str:
        """A norm over each head, or over all of them where its factors are as many."""
        factors = self.weights.vector(self.layer, role)
        if factors.shape == (heads * size,) and heads > 1:
            return self.graph.norm(rows, role, factors, self.model.epsilon)
        self.expect_items(factors, role, size)
        apart = self.graph.node("Reshape", [rows, self.graph.shape(0, 0, heads, size)])
        normed = self.graph.norm(apart, role, factors, self.model.epsilon)
        return self.graph.node("Reshape", [normed, self.graph.shape(0, 0, heads * size)])

    def grouped_attention(self, attention: Attention, query: str, key: str, value: str) -> str:
        """(R, S, heads * head size): rows go to the slots of the cache that they belong to, and come back."""
        graph, layer = self.graph, self.layer
        given = [graph.node("Gather", [part, "row_of"], axis=0) if part else "" for part in (query, key, value)]
        cache: list[int | str] = ["slots", attention.kv_heads, "room", attention.head_size]
        past = [graph.input(f"past_{part}_{layer}", cache) for part in ("key", "value")]
        present = [f"present_{part}_{layer}" for part in ("key", "value")]
        for name in present:
            graph.output(name, cache)
        tables = [f"cosines_{attention.rope}", f"sines_{attention.rope}"] if attention.rope else ["", ""]
        sinks = ""
        if self.weights.has(layer, "attn_sinks"):
            factors = self.weights.vector(layer, "attn_sinks")
            self.expect_items(factors, "attn_sinks", attention.heads)
            sinks = graph.constant("attn_sinks", factors)
        inputs = [*given, *past, "lengths", "longest", *tables, "", "", sinks]
        while not inputs[-1]:
            inputs.pop()
        extra: dict[str, object] = {}
        if attention.window:
            extra["local_window_size"] = attention.window
        if attention.softcap:
            extra["softcap"] = attention.softcap
        if attention.rope:
            extra["rotary_interleaved"] = int(self.weights.rotary_interleaved)
        seen = graph.contrib(
            "GroupQueryAttention",
            inputs,
            outputs=[f"{graph.prefix}seen", *present],
            num_heads=attention.heads,
            kv_num_heads=attention.kv_heads,
            do_rotary=int(bool(attention.rope)),
            scale=attention.scale,
            **extra,
        )
        return graph.node("Gather", [seen, "slot_of"], axis=0)

    # --- feed forward -----------------------------------------------------------------------------------------------

    def feed_forward(self, shape: LayerShape, rows: str) -> str:
        """Its output (R, S, hidden) from normed rows."""
        if shape.experts is not None:
            return mixture(self, shape.experts, rows)
        return self.gated(rows, shape.activation, "ffn_gate", "ffn_up", "ffn_down")

    def gated(self, rows: str, activation: str, gate_role: str, up_role: str, down_role: str) -> str:
        """down(act(gate(x)) * up(x))"""
        gate, up, down = self.matrix(gate_role), self.matrix(up_role), self.matrix(down_role)
        self.expect(gate, gate_role, gate.rows, self.model.hidden)
        self.expect(up, up_role, gate.rows, self.model.hidden)
        self.expect(down, down_role, self.model.hidden, gate.rows)
        if (both := joined([gate, up])) is not None:
            gated, lifted = self.graph.split(self.graph.linear(rows, both, f"{gate_role}_up"), [gate.rows, up.rows])
        else:
            gated, lifted = self.graph.linear(rows, gate, gate_role), self.graph.linear(rows, up, up_role)
        inner = self.graph.node("Mul", [self.activated(gated, activation), lifted])
        return self.graph.linear(inner, down, down_role)

    def activated(self, rows: str, activation: str) -> str:
        """silu, or gelu by its tangent formula."""
        if activation == "silu":
            return self.graph.contrib("QuickGelu", [rows], alpha=1.0)
        return self.graph.contrib("FastGelu", [rows])

    # --- weights ----------------------------------------------------------------------------------------------------

    def matrix(self, role: str) -> Linear:
        """A product of this layer."""
        bias = self.weights.vector(self.layer, role, "bias") if self.weights.has(self.layer, role, "bias") else None
        linear = linear_of(self.weights.matrix(self.layer, role), self.arithmetic, bias)
        if bias is not None:
            self.expect_items(bias, f"{role} bias", linear.rows)
        return linear

    def floats(self, role: str) -> Floats:
        """A matrix of this layer as float32."""
        return floats(self.weights.matrix(self.layer, role))

    def expect(self, linear: Linear, role: str, rows: int, columns: int) -> None:
        """Refuse a matrix of another shape."""
        if (linear.rows, linear.columns) != (rows, columns):
            raise self.misshapen(role, [linear.rows, linear.columns], [rows, columns])

    def expect_items(self, items: Floats, role: str, count: int) -> None:
        """Refuse a vector of another length."""
        if items.shape != (count,):
            raise self.misshapen(role, list(items.shape), [count])

    def misshapen(self, role: str, found: list[int], expected: list[int]) -> ValueError:
        """The error about a tensor's shape."""
        return ValueError(f"tensor {role} of layer {self.layer} has the shape {found}, {expected} expected")

    def _norm(self, rows: str, role: str) -> str:
        return self.graph.norm(rows, role, self._factors(role), self.model.epsilon)

    def _skip_norm(self, stream: Stream, role: str) -> tuple[str, str]:
        return self.graph.skip_norm(stream.rows, stream.added, role, self._factors(role), self.model.epsilon)

    def _factors(self, role: str) -> Floats:
        factors = self.weights.vector(self.layer, role)
        self.expect_items(factors, role, self.model.hidden)
        return np.asarray(factors, np.float32)
