"""What a node says of itself. Each node knows its peers from these records alone."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from msgspec import Meta, Struct

from node.wire.ids import NodeId
from node.wire.models import Count, Dtype, ModelRef

WIRE_VERSION = 2
"""Raised when an older node could misread what a newer one sends; unequal versions do not admit one another."""

RECORD_LIMIT_BYTES = 64 * 1024
"""A record of a node with 500 peers is about 30 KiB."""

ENVELOPE_LIMIT_BYTES = 192 * 1024
"""The largest that any kind of statement may have: a plan. Each kind is held to its own limit where it is read."""

Name = Annotated[str, Meta(min_length=1, max_length=64)]
Id = Annotated[str, Meta(min_length=1, max_length=128)]
Rate = Annotated[float, Meta(ge=0, le=1e18)]
Milliseconds = Annotated[float, Meta(ge=0, le=1e9)]
Layer = Annotated[int, Meta(ge=0, le=10_000)]


def _require_finite(owner: str, **figures: float | None) -> None:
    """msgspec's bounds let NaN through, since every comparison with it is false."""
    for field, figure in figures.items():
        if figure is not None and not math.isfinite(figure):
            raise ValueError(f"{owner}.{field} is {figure}, a finite number is needed")


class Hardware(Struct, frozen=True):
    """Measured at start, never looked up in a table."""

    device: Literal["cpu", "cuda", "mps", "mlx"]
    """What runs the layers."""
    device_name: Annotated[str, Meta(max_length=128)]
    """For people: `AMD EPYC`, `NVIDIA H200`."""
    memory_bytes: Count
    """Memory of that device that weights and KV cache may use."""
    bandwidth_bytes_per_s: Rate
    """Memory bandwidth seen by a large sum."""
    matmul_flops_per_s: Rate
    """Rate of a large matrix product in the dtype that the node runs."""
    cores: Annotated[int, Meta(ge=1, le=65_536)]
    """Processor cores of the machine."""

    def __post_init__(self) -> None:
        _require_finite(
            "hardware",
            bandwidth_bytes_per_s=self.bandwidth_bytes_per_s,
            matmul_flops_per_s=self.matmul_flops_per_s,
        )


class HeldRange(Struct, frozen=True):
    """Layers [start, end) that the node really has, which may lag behind the plan."""

    start: Layer
    end: Layer
    state: Literal["loading", "ready", "draining"]
    epoch: Count
    """The plan that asked for it."""

    def __post_init__(self) -> None:
        if self.end <= self.start:
            raise ValueError(f"held range [{self.start}, {self.end}) is empty")


class LayerLatency(Struct, frozen=True):
    """Time of one decode step in one layer, the model's ends left out, over the last steps."""

    mean_ms: Milliseconds
    p50_ms: Milliseconds
    p95_ms: Milliseconds
    sequences: Annotated[int, Meta(ge=1, le=65_536)] = 1
    """In the step."""

    def __post_init__(self) -> None:
        _require_finite("layer_latency", mean_ms=self.mean_ms, p50_ms=self.p50_ms, p95_ms=self.p95_ms)


class NodeRecord(Struct, frozen=True):
    """One node's word about itself: signed by its identity, numbered, expiring."""

    node_id: Id
    name: Name
    """Chosen by its owner; not unique."""
    seq: Count
    """Higher is newer. Starts from the wall clock in ms, so that a restarted node outdoes its former life."""
    ttl_s: Annotated[float, Meta(gt=0, le=3600)]
    """A receiver forgets the record this long after it arrived, by its own clock."""
    machine_id: Id
    """Equal for the nodes of one machine, which share its cores; a keyed hash that names nothing elsewhere."""
    addresses: Annotated[tuple[Annotated[str, Meta(max_length=256)], ...], Meta(max_length=16)]
    """libp2p multiaddresses without the peer id."""
    software: Annotated[str, Meta(max_length=64)]
    hardware: Hardware | None = None
    """None until the measurement at start has ended."""
    backend: Annotated[str, Meta(max_length=32)] = "torch"
    wanted_model: ModelRef | None = None
    """What it would serve if the swarm had no model yet."""
    wanted_dtype: Dtype | None = None
    pinned_layers: tuple[Layer, Layer] | None = None
    """Set by hand with `--layers`; half-open."""
    memory_cap_bytes: Count | None = None
    """Set by hand with `--memory`."""
    held: Annotated[tuple[HeldRange, ...], Meta(max_length=8)] = ()
    plan_epoch: Count = 0
    """The plan it follows; until it has one, the last that it followed in its former life."""
    kv_tokens_total: Count = 0
    """Tokens of KV cache that its ready range has room for."""
    kv_tokens_used: Count = 0
    """By sequences on any of its ranges, and by layers that come or go beside the ready one."""
    sessions: Count = 0
    load: Annotated[float, Meta(ge=0, le=1e6)] = 0.0
    """Sequences that are here at a time when each is spread evenly over the hops of its chain."""
    queue_depth: Count = 0
    """Steps that wait for the engine now."""
    layer_latency: LayerLatency | None = None
    """Measured when the range was loaded, anew while nobody uses it, and by every step."""
    head_ms: Milliseconds | None = None
    """LM head and sampling of one decode step, where the range ends the model."""
    overhead_ms: Milliseconds | None = None
    """Of one decode step here, outside compute and queue: the pipe to the engine, checks, serialising."""
    region: Annotated[str, Meta(max_length=64)] = ""
    """Set by hand with `--region`: nodes of one region are near one another until round trips have been measured."""
    rtt_ms: Annotated[dict[Id, Milliseconds], Meta(max_length=1024)] = {}
    """Round trip to each peer, by its own heartbeat."""
    mbps: Annotated[dict[Id, Annotated[float, Meta(gt=0, le=1e6)]], Meta(max_length=1024)] = {}
    """Megabits per second that came in from a peer, by the prompts that it has sent."""
    state: Literal["starting", "serving", "standby", "failed"] = "starting"
    problem: Annotated[str, Meta(max_length=512)] = ""
    """Why it does not serve, for people."""

    def __post_init__(self) -> None:
        _require_finite("record", ttl_s=self.ttl_s, load=self.load, head_ms=self.head_ms, overhead_ms=self.overhead_ms)
        _require_finite("record", **{f"rtt_ms[{peer}]": ms for peer, ms in self.rtt_ms.items()})
        _require_finite("record", **{f"mbps[{peer}]": rate for peer, rate in self.mbps.items()})
        if self.pinned_layers is not None and self.pinned_layers[1] <= self.pinned_layers[0]:
            raise ValueError(f"record.pinned_layers {self.pinned_layers} is empty")

    @property
    def id(self) -> NodeId:
        return NodeId(self.node_id)

    def ready_range(self) -> HeldRange | None:
        """The range that serves now, if any."""
        return next((held for held in self.held if held.state == "ready"), None)


class Envelope(Struct, frozen=True):
    """A signed statement. `payload` is the msgpack of a record or a plan; its signer is in `node_id` itself."""

    kind: Literal["record", "plan", "leave"]
    node_id: Id
    payload: Annotated[bytes, Meta(max_length=ENVELOPE_LIMIT_BYTES)]
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]
