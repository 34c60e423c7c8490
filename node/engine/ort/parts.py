"""A few neighbouring layers, or the head, as one session: what a stage is put together from.

Layers are taken together until they are large enough that the cost of a session's run does not show; parts of large
models are single layers. Parts begin at multiples of their size, whatever range they are made for, so that stages of
one worker share those that they have in common.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from onnx import TensorProto

from node.engine.ort.graph import Graph
from node.engine.ort.layers import LayerBuilder, Stream
from node.engine.ort.library import ort
from node.engine.ort.linear import Arithmetic, linear_of
from node.engine.ort.session import new_session
from node.engine.ort.shape import ModelShape
from node.errors import DamagedModel
from node.weights.base import Weights
from node.weights.blocks import Floats

PART_BYTES = 16 * 1024 * 1024
"""Of weights: reading them takes a millisecond or more, a session's own cost is some tens of microseconds."""
MOST_LAYERS = 8


@dataclass(frozen=True, slots=True)
class Source:
    """What parts of one model are made from."""

    model: ModelShape
    weights: Weights
    arithmetic: Arithmetic

    @property
    def key(self) -> tuple[object, ...]:
        """Differs as soon as a file is replaced."""
        files = tuple(
            (file, status.st_ino, status.st_mtime_ns) for file in self.weights.files if (status := file.stat())
        )
        return (*files, self.arithmetic)


@dataclass(slots=True, weakref_slot=True, eq=False)
class Part:
    """Layers [start, end), or the head, where `end` is 0."""

    start: int
    end: int
    session: ort.InferenceSession
    weight_bytes: int
    """As they were given to the library."""
    threads: int
    ropes: tuple[str, ...] = field(default=())
    """Tables that its layers turn by."""
    forms: frozenset[tuple[int, int]] = frozenset()
    """Bits and block of its matrices; see `kernels`."""
    made: int = 0
    """Times that its session was made anew: what is bound to an earlier one is of no use."""


def spans(layer_bytes: list[int], start: int, end: int) -> list[tuple[int, int]]:
    """Layers [start, end) in the ranges that parts are made of."""
    mean = sum(layer_bytes[start:end]) / (end - start)
    size = max(1, min(MOST_LAYERS, round(PART_BYTES / max(mean, 1))))
    cuts = [start, *(cut for cut in range(start + 1, end) if cut % size == 0), end]
    return list(pairwise(cuts))


def layers_part(source: Source, start: int, end: int, threads: int) -> Part:
    """Layers [start, end).

    Raises:
        ModelError: a tensor is missing, damaged or misshapen.
    """
    graph, ropes = layers_graph(source, start, end)
    weight_bytes = graph.nbytes
    return Part(start, end, new_session(graph, threads), weight_bytes, threads, ropes, frozenset(graph.forms))


def layers_graph(source: Source, start: int, end: int) -> tuple[Graph, tuple[str, ...]]:
    """The graph of layers [start, end), and the rotary tables that it takes.

    `hidden` (R, S, hidden): rows of R sequences. `row_of` (slots,): which of them each slot of the cache takes, and
    `slot_of` (R,): the slot of each. `lengths` (slots,): tokens of each slot with these, less 1. `longest`: the most.
    """
    model = source.model
    graph = Graph()
    graph.input("hidden", ["R", "S", model.hidden])
    graph.input("row_of", ["slots"], TensorProto.INT64)
    graph.input("slot_of", ["R"], TensorProto.INT64)
    graph.input("lengths", ["slots"], TensorProto.INT32)
    graph.input("longest", [], TensorProto.INT32)
    ropes = tuple(sorted({rope for layer in range(start, end) if (rope := model.layers[layer].attention.rope)}))
    for rope in ropes:
        graph.input(f"cosines_{rope}", ["positions", "pairs"])
        graph.input(f"sines_{rope}", ["positions", "pairs"])
    builder = LayerBuilder(graph, model, source.weights, source.arithmetic)
    stream = Stream("hidden", graph.node("Sub", ["hidden", "hidden"]))
    for layer in range(start, end):
        try:
            stream = builder.add(layer, stream)
        except (ValueError, KeyError) as error:
            raise DamagedModel(str(source.weights.files[0]), _said(error)) from error
    graph.prefix = ""
    graph.node("Add", [stream.rows, stream.added], outputs=["hidden_out"])
    graph.output("hidden_out", ["R", "S", model.hidden])
    return graph, ropes


def head_part(source: Source, threads: int) -> Part:
    """Final norm and head: hidden rows (R, 1, hidden) to logits (R, 1, vocabulary).

    Raises:
        ModelError: a tensor is missing, damaged or misshapen.
    """
    model, graph = source.model, Graph()
    graph.input("hidden", ["R", 1, model.hidden])
    where = str(source.weights.files[0])
    try:
        factors = source.weights.vector(None, "output_norm")
        bias = source.weights.vector(None, "output", "bias") if source.weights.has(None, "output", "bias") else None
        linear = linear_of(source.weights.matrix(None, "output"), source.arithmetic, bias)
    except (ValueError, KeyError) as error:
        raise DamagedModel(where, _said(error)) from error
    if factors.shape != (model.hidden,) or linear.columns != model.hidden or linear.rows < model.vocabulary:
        found = f"norm {list(factors.shape)}, head {[linear.rows, linear.columns]}"
        raise DamagedModel(where, f"{found} do not fit {model.hidden} columns and {model.vocabulary} ids")
    logits = graph.linear(graph.norm("hidden", "output_norm", factors, model.epsilon), linear, "output")
    if model.head_softcap:
        cap = graph.constant("softcap", _scalar(model.head_softcap))
        logits = graph.node("Mul", [graph.node("Tanh", [graph.node("Div", [logits, cap])]), cap])
    graph.node("Identity", [logits], outputs=["logits"])
    graph.output("logits", ["R", 1, linear.rows])
    weight_bytes = graph.nbytes
    return Part(0, 0, new_session(graph, threads), weight_bytes, threads, forms=frozenset(graph.forms))


def _said(error: Exception) -> str:
    """A KeyError's text is its argument's representation."""
    return f"there is no {error.args[0]}" if isinstance(error, KeyError) else str(error)


def _scalar(value: float) -> Floats:
    return np.array(value, np.float32)
