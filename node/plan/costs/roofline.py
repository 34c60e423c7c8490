"""How long a stage takes: a roofline with a fitted efficiency.

    t(layer) = max(FLOPs / matmul rate / 0.7, bytes / memory bandwidth / efficiency) + overhead

(Williams, Waterman and Patterson, "Roofline", 2009). Decode reads all touched weights for one token per sequence, so
that bandwidth binds; prefill multiplies many tokens at once, so that the matmul rate binds. The efficiency is fitted to
what the node has measured in service, which are decode steps: the median of roofline / measured over its batch sizes;
the LM head has one of its own. It says nothing of large products: what makes small steps slow is paid once in those.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from node.plan.costs.model import ModelCost
from node.plan.machines.missing_memory import Capacity
from node.plan.machines.pool import PoolNode

EFFICIENCY = 0.7
"""Of the measured rates, before a node has run the model: typical of fused decode kernels."""
MOST_EFFICIENCY = 8.0
"""Small weights stay in a processor's cache, which is some times faster than its memory; more is not believed."""
ENDS = ((False, False), (True, False), (False, True), (True, True))
OVERHEAD_MS = 0.01
"""Launching one layer's kernels."""


@dataclass(frozen=True, slots=True)
class StepCost:
    """What one step asks of any node: computed once for a model, a batch and a context."""

    layer_bytes: float
    layer_flops: float
    head_bytes: float
    head_flops: float

    def layer_ms(self, node: PoolNode, efficiency: float = EFFICIENCY) -> float:
        """One layer on `node`."""
        reading = self.layer_bytes / node.bandwidth / efficiency
        return max(reading, self.layer_flops / node.flops / EFFICIENCY) * 1000 + OVERHEAD_MS

    def head_ms(self, node: PoolNode, efficiency: float = EFFICIENCY) -> float:
        """The LM head on `node`."""
        reading = self.head_bytes / node.bandwidth / efficiency
        return max(reading, self.head_flops / node.flops / EFFICIENCY) * 1000


def decode_cost(model: ModelCost, batch: int, context: int) -> StepCost:
    """A step that gives each of `batch` sequences of `context` tokens one more."""
    batch = max(1, batch)
    return StepCost(
        model.layer_read_bytes(batch, 1, context),
        model.layer_flops(batch, 1, context),
        model.embedding_bytes,
        model.head_flops * batch,
    )


def prefill_cost(model: ModelCost, tokens: int) -> StepCost:
    """A prompt of `tokens` tokens; each sees half of it on average, and the last alone needs the head."""
    tokens = max(1, tokens)
    return StepCost(
        model.layer_read_bytes(1, tokens, tokens),
        model.layer_flops(1, tokens, tokens // 2),
        model.embedding_bytes,
        model.head_flops,
    )


def prompt_chunk_cost(model: ModelCost, tokens: int, prompt_tokens: int) -> StepCost:
    """`tokens` tokens of a prompt at once: one of its chunks, that sees half of the prompt on average."""
    tokens, seen = max(1, tokens), max(1, prompt_tokens) // 2
    return StepCost(
        model.layer_read_bytes(1, tokens, seen),
        model.layer_flops(1, tokens, seen),
        model.embedding_bytes,
        model.head_flops,
    )


def fitted_efficiency(model: ModelCost, node: PoolNode, context: int = 512) -> float:
    """Roofline over measured time in this model's layers; the prior for a node that has not run it."""
    if not node.layer_ms:
        return EFFICIENCY
    ratios = []
    for sequences, measured_ms in node.layer_ms:
        ideal = decode_cost(model, round(sequences), context).layer_ms(node, 1.0) - OVERHEAD_MS
        ratios.append(ideal / max(measured_ms - OVERHEAD_MS, measured_ms * 0.1))
    return _credible(median(ratios))


def fitted_head_efficiency(model: ModelCost, node: PoolNode) -> float:
    """Likewise for the LM head and sampling; the layers' where the node has never ended the model."""
    if not node.head_ms:
        return fitted_efficiency(model, node)
    return _credible(decode_cost(model, 1, 1).head_ms(node, 1.0) / node.head_ms)


def _credible(efficiency: float) -> float:
    return min(MOST_EFFICIENCY, max(1e-6, efficiency))


def layer_capacity(
    model: ModelCost,
    memory_bytes: int,
    *,
    first: bool = False,
    last: bool = False,
    context: int = 0,
    sequences: int = 1,
) -> int:
    """Layers whose weights and KV cache of `sequences` sequences of `context` tokens fit beside the ends' weights."""
    room = memory_bytes - model.ends_bytes(first=first, last=last)
    cache = model.kv_layer_bytes(context, sequences)
    dense = 0
    if first and model.experts and model.dense_layers:
        dense = max(0, min(model.dense_layers, room // max(1, model.dense_layer_bytes + cache)))
        room -= dense * (model.dense_layer_bytes + cache)
        if dense < model.dense_layers:
            return dense
    largest = model.sparse_layer_bytes if first else model.layer_bytes
    return int(max(0, min(model.layers, dense + max(0, room) // max(1, largest + cache))))


def capacity_of(
    model: ModelCost,
    memory_bytes: int,
    context: int,
    sequences: int = 1,
    *,
    has_first: bool = True,
    has_last: bool = True,
    most: int | None = None,
) -> Capacity:
    """`layer_capacity` beside nothing, the embedding, the head, and both, where a span of `most` layers has them."""
    plain, first, last, both = (
        min(
            layer_capacity(
                model,
                memory_bytes,
                first=first and has_first,
                last=last and has_last,
                context=context,
                sequences=sequences,
            ),
            model.layers if most is None else most,
        )
        for first, last in ENDS
    )
    return plain, first, last, both
