"""What is known of a node from its own words. Others know it from these records alone.

A record is a view: it is put together from the signed parts that travel (`node.wire.parts`), so its fields and theirs
have the same names. A word that a newer node uses and we do not know reads as `unknown`.
"""

from __future__ import annotations

import math
from typing import Annotated

from msgspec import Meta, Struct
from msgspec.structs import force_setattr

from node.wire.ids import NodeId
from node.wire.models import Count, Dtype, ModelRef
from node.wire.text import printable

UNKNOWN = "unknown"

DEVICES = frozenset(("cpu", "cuda", "xpu", "mps", "mlx"))
RANGE_STATES = frozenset(("loading", "ready", "draining"))
NODE_STATES = frozenset(("starting", "serving", "standby", "failed"))

NAME_LIMIT, PROBLEM_LIMIT, DEVICE_NAME_LIMIT, SOFTWARE_LIMIT, REGION_LIMIT = 64, 512, 128, 64, 64
QUANTISATION_LIMIT, DRIFT_CLASS_LIMIT = 64, 128
"""Characters."""

MOST_RANGES = 8
MOST_PEERS = 1024
MOST_ADDRESSES = 16

Word = Annotated[str, Meta(max_length=32)]
"""One of a set that may grow."""
Name = Annotated[str, Meta(min_length=1, max_length=NAME_LIMIT)]
Id = Annotated[str, Meta(min_length=1, max_length=128)]
Rate = Annotated[float, Meta(ge=0, le=1e18)]
Milliseconds = Annotated[float, Meta(ge=0, le=1e9)]
Layer = Annotated[int, Meta(ge=0, le=10_000)]
Addresses = Annotated[tuple[Annotated[str, Meta(max_length=256)], ...], Meta(max_length=MOST_ADDRESSES)]


def _require_finite(owner: str, **figures: float | None) -> None:
    """msgspec's bounds let NaN through, since every comparison with it is false."""
    for field, figure in figures.items():
        if figure is not None and not math.isfinite(figure):
            raise ValueError(f"{owner}.{field} is {figure}, a finite number is needed")


def make_printable(struct: Struct, **limits: int) -> None:
    """Have text of people in a struct be one safe line, wherever it came from. To be called as it is made."""
    for field, limit in limits.items():
        text = getattr(struct, field)
        if text and (shown := printable(text, limit)) != text:
            force_setattr(struct, field, shown)


def make_known(struct: Struct, field: str, words: frozenset[str]) -> None:
    """Have a word that we do not know read as `unknown`. To be called as the struct is made."""
    if getattr(struct, field) not in words:
        force_setattr(struct, field, UNKNOWN)


class Hardware(Struct, frozen=True):
    """Measured at start, never looked up in a table."""

    device: Word
    """What runs the layers: one of `DEVICES`, or `unknown`."""
    device_name: Annotated[str, Meta(max_length=DEVICE_NAME_LIMIT)]
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
        make_known(self, "device", DEVICES)
        make_printable(self, device_name=DEVICE_NAME_LIMIT)
        _require_finite(
            "hardware",
            bandwidth_bytes_per_s=self.bandwidth_bytes_per_s,
            matmul_flops_per_s=self.matmul_flops_per_s,
        )


class HeldRange(Struct, frozen=True):
    """Layers [start, end) that the node really has, which may lag behind the plan."""

    start: Layer
    end: Layer
    state: Word
    """One of `RANGE_STATES`, or `unknown`."""
    epoch: Count
    """The plan that asked for it."""
    weights: Word = ""
    """Of which model in which arithmetic, as `Plan.weights`: ranges of another one cover nothing."""

    def __post_init__(self) -> None:
        make_known(self, "state", RANGE_STATES)
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
    """One node's word about itself, the newest of each part."""

    node_id: Id
    name: Name
    """Chosen by its owner; not unique."""
    seq: Count
    """Of the newest statement that is in it. Starts from the wall clock in ms, so that a restarted node outdoes its
    former life."""
    ttl_s: Annotated[float, Meta(gt=0, le=3600)]
    """A receiver forgets the record this long after it last heard of the node, by its own clock."""
    machine_id: Id
    """Equal for the nodes of one machine, which share its cores; a keyed hash that names nothing elsewhere."""
    addresses: Addresses
    """libp2p multiaddresses without the peer id."""
    software: Annotated[str, Meta(max_length=SOFTWARE_LIMIT)]
    hardware: Hardware | None = None
    """None until the measurement at start has ended."""
    backend: Word = ""
    """What runs the range that serves; empty until there is one."""
    quantisation: Annotated[str, Meta(max_length=QUANTISATION_LIMIT)] = ""
    """How its weights lie in memory, for people: `float32`, `Q4_K, Q6_K`, `int8`."""
    drift_class: Annotated[str, Meta(max_length=DRIFT_CLASS_LIMIT)] = ""
    """Nodes with equal ones give equal bits for equal rows, on one type of processor."""
    wanted_model: ModelRef | None = None
    """What it would serve if the swarm had no model yet."""
    wanted_dtype: Dtype | None = None
    pinned_layers: tuple[Layer, Layer] | None = None
    """Set by hand with `--layers`; half-open."""
    memory_cap_bytes: Count | None = None
    """Set by hand with `--memory`."""
    held: Annotated[tuple[HeldRange, ...], Meta(max_length=MOST_RANGES)] = ()
    plan_epoch: Count = 0
    """The plan it follows; until it has one, the last that it followed in its former life."""
    kv_tokens_total: Count = 0
    """Tokens of KV cache that its ready range has room for."""
    kv_tokens_used: Count = 0
    """By sequences on any of its ranges, and by layers that come or go beside the ready one."""
    sessions: Count = 0
    load: Annotated[float, Meta(ge=0, le=1e6)] = 0.0
    """Sequences that are here at a time when each is spread evenly over the hops of its chain; in thousandths."""
    queue_depth: Count = 0
    """Steps that wait for the engine now."""
    layer_latency: LayerLatency | None = None
    """Measured when the range was loaded, anew while nobody uses it, and by every step."""
    head_ms: Milliseconds | None = None
    """LM head and sampling of one decode step, where the range ends the model."""
    overhead_ms: Milliseconds | None = None
    """Of one decode step here, outside compute and queue: the pipe to the engine, checks, serialising."""
    prompt_row_ms: Milliseconds | None = None
    """One token of a prompt's chunk in one layer, measured in service; None: not yet, or by a version without it."""
    region: Annotated[str, Meta(max_length=REGION_LIMIT)] = ""
    """Set by hand with `--region`: nodes of one region are near one another until round trips have been measured."""
    rtt_ms: Annotated[dict[Id, Milliseconds], Meta(max_length=MOST_PEERS)] = {}
    """Round trip to each peer that it reaches, by its own heartbeat, to 5 %."""
    mbps: Annotated[dict[Id, Annotated[float, Meta(gt=0, le=1e6)]], Meta(max_length=MOST_PEERS)] = {}
    """Megabits per second that came in from a peer, by the prompts that it has sent, to 5 %."""
    unreachable: Annotated[tuple[Id, ...], Meta(max_length=MOST_PEERS)] = ()
    """Members that it has tried to reach for some seconds and could not; by id. Who is neither here nor in `rtt_ms`
    has not been tried."""
    state: Word = "starting"
    """One of `NODE_STATES`, or `unknown`."""
    problem: Annotated[str, Meta(max_length=PROBLEM_LIMIT)] = ""
    """Why it does not serve, for people."""
    leaving: bool = False
    """It has been asked to end: it serves what it holds until others do, and is planned for no longer."""

    def __post_init__(self) -> None:
        make_known(self, "state", NODE_STATES)
        make_printable(
            self, name=NAME_LIMIT, software=SOFTWARE_LIMIT, region=REGION_LIMIT, problem=PROBLEM_LIMIT, backend=32
        )
        make_printable(self, quantisation=QUANTISATION_LIMIT, drift_class=DRIFT_CLASS_LIMIT)
        _require_finite(
            "record",
            ttl_s=self.ttl_s,
            load=self.load,
            head_ms=self.head_ms,
            overhead_ms=self.overhead_ms,
            prompt_row_ms=self.prompt_row_ms,
        )
        if any(map(math.isnan, self.rtt_ms.values())) or any(map(math.isnan, self.mbps.values())):
            raise ValueError("record: a figure of a peer is NaN, a finite number is needed")
        if self.pinned_layers is not None and self.pinned_layers[1] <= self.pinned_layers[0]:
            raise ValueError(f"record.pinned_layers {self.pinned_layers} is empty")

    @property
    def id(self) -> NodeId:
        return NodeId(self.node_id)

    def ready_range(self) -> HeldRange | None:
        """The range that serves now, if any."""
        return next((held for held in self.held if held.state == "ready"), None)

    def reach_of(self, peer: str) -> bool | None:
        """Whether it reaches `peer`: None where it has not been tried, or it has not said so yet."""
        if peer in self.rtt_ms:
            return True
        return False if peer in self.unreachable else None
