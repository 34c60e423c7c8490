"""A mixture of experts: scores, the choice among them, and the experts' products (`MoE` in float32, `QMoE` in 8 bits).

The library's operators divide the chosen experts' scores by their sum, whatever they are told. So each is given logits
of which only the chosen ones count, whose softmax is just that, and what is missing is multiplied to the result.

`QMoE` computes each row from that row alone; `MoE` adds up in another order in company (1e-6 apart), so in float32 a
mixture's last bits depend on the neighbours. No model is served so whose experts fit into 8 bits only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from node.engine.ort.linear import BLOCK, Arithmetic, Linear
from node.engine.ort.shape import Experts
from node.weights.blocks import Blocks, Floats, Matrix, floats, quantised

if TYPE_CHECKING:
    from node.engine.ort.layers import LayerBuilder

NOT_CHOSEN = -1e30
"""The logit of an expert that takes no part; softmax makes it 0."""


def mixture(builder: LayerBuilder, experts: Experts, rows: str) -> str:
    """The experts' output (R, S, hidden) from normed rows, and the shared experts' where there are some."""
    graph, hidden = builder.graph, builder.model.hidden
    flat = graph.node("Reshape", [rows, graph.shape(-1, hidden)])
    logits, factor = _choice(builder, experts, flat)
    given = _products(builder, experts, flat, logits)
    if factor:
        given = graph.node("Mul", [given, factor])
    shape = graph.node("Shape", [rows])
    given = graph.node("Reshape", [given, shape])
    if builder.weights.has(builder.layer, "ffn_up_shexp"):
        shared = builder.gated(rows, "silu", "ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp")
        given = graph.node("Add", [given, shared])
    return given


def _choice(builder: LayerBuilder, experts: Experts, flat: str) -> tuple[str, str]:
    """Logits (T, experts) whose softmax weighs the chosen experts, and the factor (T, 1) that is missing then."""
    graph = builder.graph
    role = "ffn_gate_inp"
    bias = (
        builder.weights.vector(builder.layer, role, "bias")
        if builder.weights.has(builder.layer, role, "bias")
        else None
    )
    router = Linear(builder.floats(role), None, bias)  # narrower numbers would choose other experts
    builder.expect(router, role, experts.count, builder.model.hidden)
    logits = graph.linear(flat, router, role)
    if experts.scores == "softmax":
        if experts.normalised:
            return logits, ""
        scores = graph.node("Softmax", [logits], axis=-1)
        chosen = _highest(builder, scores, experts.chosen)
        return logits, _sum_of(builder, scores, chosen, 1.0)
    scores = graph.node("Sigmoid", [logits])
    wanted = scores
    if builder.weights.has(builder.layer, "exp_probs_b"):
        lift = builder.weights.vector(builder.layer, "exp_probs_b")
        builder.expect_items(lift, "exp_probs_b", experts.count)
        wanted = graph.node("Add", [scores, graph.constant("exp_probs_b", lift)])
    if experts.groups_chosen < experts.groups:
        wanted = _in_chosen_groups(builder, experts, wanted)
    chosen = _highest(builder, wanted, experts.chosen)
    none = graph.constant("not_chosen", np.array(NOT_CHOSEN, np.float32))
    weighed = graph.node("Where", [chosen, graph.node("Log", [scores]), none])
    if experts.normalised:
        factor = graph.constant("factor", np.array(experts.factor, np.float32)) if experts.factor != 1 else ""
        return weighed, factor
    return weighed, _sum_of(builder, scores, chosen, experts.factor)


def _highest(builder: LayerBuilder, scores: str, count: int) -> str:
    """Which of (…, items) are among the `count` highest."""
    graph = builder.graph
    least = graph.node(
        "Slice", [_top(builder, scores, count), graph.shape(count - 1), graph.shape(count), graph.shape(-1)]
    )
    return graph.node("GreaterOrEqual", [scores, least])


def _top(builder: LayerBuilder, scores: str, count: int) -> str:
    """The `count` highest of (…, items), falling."""
    graph = builder.graph
    graph.serial += 1
    names = [f"{graph.prefix}top_{graph.serial}", f"{graph.prefix}top_places_{graph.serial}"]
    return graph.node("TopK", [scores, graph.shape(count)], outputs=names, axis=-1)


def _sum_of(builder: LayerBuilder, scores: str, chosen: str, factor: float) -> str:
    """The sum (T, 1) of the chosen scores, times a factor."""
    graph = builder.graph
    nothing = graph.constant("nothing", np.array(0, np.float32))
    total = graph.node("ReduceSum", [graph.node("Where", [chosen, scores, nothing]), graph.shape(-1)], keepdims=1)
    return total if factor == 1 else graph.node("Mul", [total, graph.constant("factor", np.array(factor, np.float32))])


def _in_chosen_groups(builder: LayerBuilder, experts: Experts, scores: str) -> str:
    """Scores (T, experts), those outside the groups with the highest two experts together far below all others."""
    graph, each = builder.graph, experts.count // experts.groups
    apart = graph.node("Reshape", [scores, graph.shape(-1, experts.groups, each)])
    of_groups = graph.node("ReduceSum", [_top(builder, apart, min(2, each)), graph.shape(-1)], keepdims=0)
    chosen = _highest(builder, of_groups, experts.groups_chosen)
    chosen = graph.node("Unsqueeze", [chosen, graph.shape(-1)])
    none = graph.constant("not_chosen", np.array(NOT_CHOSEN, np.float32))
    return graph.node("Reshape", [graph.node("Where", [chosen, apart, none]), graph.shape(-1, experts.count)])


# --- products -------------------------------------------------------------------------------------------------------


def _products(builder: LayerBuilder, experts: Experts, flat: str, logits: str) -> str:
    """The chosen experts' outputs (T, hidden), weighed."""
    weights, layer, graph = builder.weights, builder.layer, builder.graph
    gate, up, down = (weights.matrix(layer, f"ffn_{part}_exps") for part in ("gate", "up", "down"))
    inner, hidden = gate.shape[-2], builder.model.hidden
    for matrix, role, shape in (
        (gate, "gate", (inner, hidden)),
        (up, "up", (inner, hidden)),
        (down, "down", (hidden, inner)),
    ):
        if matrix.shape != (experts.count, *shape):
            raise builder.misshapen(f"ffn_{role}_exps", list(matrix.shape), [experts.count, *shape])
    biases = [_bias(builder, f"ffn_{part}_exps", experts.count) for part in ("gate", "up", "down")]
    both_bias = ""
    if biases[0] is not None and biases[1] is not None:
        both_bias = graph.constant("experts_up.bias", _in_turns(biases[0], biases[1]))
    down_bias = "" if biases[2] is None else graph.constant("experts_down.bias", biases[2])
    attributes: dict[str, Any] = {
        "k": experts.chosen,
        "activation_type": "swiglu",
        "swiglu_fusion": 1,
        "normalize_routing_weights": 1,
        "activation_alpha": experts.alpha,
        "activation_beta": 1.0 if experts.clamped else 0.0,
    }
    if experts.clamped:
        attributes["swiglu_limit"] = experts.clamped
    if _in_floats(builder.arithmetic, [gate, up, down], inner, hidden):
        first = graph.constant("experts_up", _in_turns(floats(gate), floats(up)))
        second = graph.constant("experts_down", floats(down))
        inputs = [flat, logits, first, both_bias, second, down_bias]
        graph.forms.add((32, 0))
        return graph.contrib("MoE", _without_end(inputs), **attributes)
    gate8, up8, down8 = (_eight_bits(matrix) for matrix in (gate, up, down))
    block = min(gate8.block, up8.block, down8.block)
    gate8, up8, down8 = (_in_blocks_of(block, blocks) for blocks in (gate8, up8, down8))
    both = [graph.constant(f"experts_up.{name}", _in_turns(a, b)) for name, a, b in (
        ("quants", _quants(gate8), _quants(up8)), ("scales", gate8.scales, up8.scales))]  # fmt: skip
    last = [graph.constant("experts_down.quants", _quants(down8)), graph.constant("experts_down.scales", down8.scales)]
    inputs = [flat, logits, *both, both_bias, *last, down_bias]
    return graph.contrib("QMoE", _without_end(inputs), expert_weight_bits=8, block_size=block, **attributes)


def _in_floats(arithmetic: Arithmetic, matrices: list[Matrix], inner: int, hidden: int) -> bool:
    if arithmetic in ("int8", "int4") and not inner % BLOCK and not hidden % BLOCK:
        return False
    return arithmetic != "stored" or not all(isinstance(matrix, Blocks) for matrix in matrices)


def _eight_bits(matrix: Matrix) -> Blocks:
    """Experts (experts, rows, columns) on grids of 8 bits around the middle; exact where the file's grid is one."""
    if isinstance(matrix, Blocks) and matrix.minimums is None and isinstance(matrix.zero, int):
        shift = 128 - matrix.zero
        if shift >= 0 and int(matrix.quants.max(initial=0)) + shift <= 255:
            quants = matrix.quants if not shift else matrix.quants + np.uint8(shift)
            return Blocks(8, matrix.block, quants, matrix.scales, 128)
    each = [
        quantised(_expert(matrix, number), 8, BLOCK) for number in range(matrix.shape[0])
    ]  # one at a time in floats
    return Blocks(8, BLOCK, np.stack([one.quants for one in each]), np.stack([one.scales for one in each]), 128)


def _expert(matrix: Matrix, number: int) -> Floats:
    if not isinstance(matrix, Blocks):
        return np.asarray(matrix[number], np.float32)
    zero = matrix.zero if isinstance(matrix.zero, int) else matrix.zero[number]
    minimums = None if matrix.minimums is None else matrix.minimums[number]
    return Blocks(matrix.bits, matrix.block, matrix.quants[number], matrix.scales[number], zero, minimums).values()


def _in_blocks_of(block: int, blocks: Blocks) -> Blocks:
    """The same numbers in smaller blocks."""
    times = blocks.block // block
    if times == 1:
        return blocks
    quants = blocks.quants.reshape(*blocks.quants.shape[:-2], -1, block)
    return Blocks(8, block, quants, np.repeat(blocks.scales, times, -1), 128)


def _quants(blocks: Blocks) -> np.ndarray:
    return blocks.quants.reshape(*blocks.quants.shape[:-2], -1)


def _in_turns(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Rows (or items) of both, one after the other: the gate's and the up's of one place lie together."""
    joined = np.empty((first.shape[0], 2 * first.shape[1], *first.shape[2:]), first.dtype)
    joined[:, 0::2], joined[:, 1::2] = first, second
    return joined


def _bias(builder: LayerBuilder, role: str, count: int) -> Floats | None:
    if not builder.weights.has(builder.layer, role, "bias"):
        return None
    return floats(builder.weights.matrix(builder.layer, role, "bias")).reshape(count, -1)


def _without_end(inputs: list[str]) -> list[str]:
    while not inputs[-1]:
        inputs.pop()
    return inputs
