"""The published system's own estimates, kept to compare with: Gradient's Parallax counts FLOPs so.

It takes query and output projections as hidden x hidden, and charges every token for every expert that the whole batch
touches, so that FLOPs grow with the square of the batch. Nothing here is used to place or to route.
"""

from __future__ import annotations

from node.plan.costs.model import ModelCost


def published_layer_flops(model: ModelCost, batch: int, new_tokens: int, context: int) -> int:
    """FLOPs of a step in one layer as the published cost model has them."""
    hidden = model.hidden_size
    projections = new_tokens * (4 * hidden * hidden + 2 * hidden * model.kv_width)
    scores = 4 * hidden * new_tokens * context
    experts = model.expected_experts(batch * new_tokens) if model.experts and batch else (0 if model.experts else 1)
    one = model.expert_params if model.experts else model.dense_params
    return batch * (projections + scores + 2 * new_tokens * one * experts)
