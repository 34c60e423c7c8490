"""The fields of our own record that others than the swarm fill in, with their types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

from node.wire.models import Dtype, ModelRef
from node.wire.records import Hardware, HeldRange, LayerLatency


class RecordChanges(TypedDict, total=False):
    """New values by field, as `NodeRecord` explains them. The swarm itself says who and where the node is, and whom it
    reaches; values are checked as they are told."""

    hardware: Hardware | None
    backend: str
    quantisation: str
    drift_class: str
    wanted_model: ModelRef | None
    wanted_dtype: Dtype | None
    pinned_layers: tuple[int, int] | None
    memory_cap_bytes: int | None
    held: tuple[HeldRange, ...]
    plan_epoch: int
    kv_tokens_total: int
    kv_tokens_used: int
    sessions: int
    load: float
    queue_depth: int
    layer_latency: LayerLatency | None
    head_ms: float | None
    overhead_ms: float | None
    prompt_row_ms: float | None
    region: str
    mbps: Mapping[str, float]
    state: str
    problem: str
    leaving: bool
