"""What this processor's kernels do with one row, tried out: whether it comes out as it does among others.

onnxruntime chooses kernels by the processor. For 4-bit blocks on some (AVX2) the one for a single row adds up in
another order. There a row that would be alone is given a twin, which costs a quarter of its products' time, so that a
sequence gets the same bits alone and in company.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from onnx import TensorProto

from node.engine.ort.graph import Graph
from node.engine.ort.linear import Linear
from node.engine.ort.session import new_session
from node.weights.blocks import quantised

Form = tuple[int, int]
"""Bits and block of a matrix; (32, 0): float32."""
FLOAT: Form = (32, 0)
COLUMNS, ROWS = 256, 96
TRIED_ROWS = 16


@cache
def least_rows(form: Form) -> int:
    """Rows of which a product must have at least so many, for each to come out as it does in any larger one."""
    random = np.random.default_rng(1)
    matrix = random.standard_normal((ROWS, COLUMNS)).astype(np.float32)
    bits, block = form
    graph = Graph()
    graph.input("rows", ["R", "S", COLUMNS])
    linear = Linear(matrix if form == FLOAT else quantised(matrix, 4 if bits == 4 else 8, block))
    graph.node("Identity", [graph.linear("rows", linear, "tried")], outputs=["product"])
    graph.output("product", ["R", "S", ROWS], TensorProto.FLOAT)
    session = new_session(graph, 1)
    rows = random.standard_normal((TRIED_ROWS, 1, COLUMNS)).astype(np.float32)
    together = session.run(None, {"rows": rows})[0]
    alone = np.concatenate([session.run(None, {"rows": row[None]})[0] for row in rows])
    return 1 if np.array_equal(alone, together) else 2
