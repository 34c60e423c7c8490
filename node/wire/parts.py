"""The parts of a record as they travel (`node.wire.statements` says which and when), and the way from and to the view.

Fields have the names that `NodeRecord` has for them. What travels each second is an array of whole numbers: a status of
one range is some 100 bytes. New fields go to the end of an array, where an older node does not see them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated

from msgspec import Meta, Struct

from node.wire.models import DTYPE_BYTES, Count, ModelRef
from node.wire.peer_figures import MARK_BYTES, Mark, pack_figures, pack_marks, unpack_figures, unpack_marks
from node.wire.records import (
    MOST_PEERS,
    MOST_RANGES,
    NODE_STATES,
    Addresses,
    Hardware,
    HeldRange,
    Id,
    Layer,
    LayerLatency,
    Name,
    NodeRecord,
    Word,
)

NS_PER_MS = 1_000_000
MOST_MBPS = 1e6
"""As a record takes; the scale of figures goes further."""
Nanoseconds = Annotated[int, Meta(ge=0, le=10**15)]
Figures = Annotated[bytes, Meta(max_length=(MARK_BYTES + 1) * MOST_PEERS)]
Marks = Annotated[bytes, Meta(max_length=MARK_BYTES * MOST_PEERS)]

_STATE_CODES = ("starting", "serving", "standby", "failed")
"""By number; one beyond is a newer node's."""
_RANGE_CODES = ("loading", "ready", "draining")
Code = Annotated[int, Meta(ge=0, le=255)]


class Profile(Struct, frozen=True, omit_defaults=True):
    """Who a node is. Told when it changes."""

    seq: Count
    name: Name
    ttl_s: Annotated[float, Meta(gt=0, le=3600)]
    machine_id: Id
    addresses: Addresses
    software: Annotated[str, Meta(max_length=64)]
    hardware: Hardware | None = None
    backend: Word = ""
    quantisation: Annotated[str, Meta(max_length=64)] = ""
    drift_class: Annotated[str, Meta(max_length=128)] = ""
    wanted_model: ModelRef | None = None
    wanted_dtype: Word | None = None
    pinned_layers: tuple[Layer, Layer] | None = None
    memory_cap_bytes: Count | None = None
    region: Annotated[str, Meta(max_length=64)] = ""
    problem: Annotated[str, Meta(max_length=512)] = ""
    leaving: bool = False


class _Held(Struct, frozen=True, array_like=True):
    start: Layer
    end: Layer
    state: Code
    epoch: Count
    weights: Word


class _Latency(Struct, frozen=True, array_like=True):
    mean_ns: Nanoseconds
    p50_ns: Nanoseconds
    p95_ns: Nanoseconds
    sequences: Annotated[int, Meta(ge=1, le=65_536)]


class Status(Struct, frozen=True, array_like=True):
    """How a node is. Told when it changes."""

    seq: Count
    profile_ago: Count
    """The number of its newest profile is so much smaller."""
    trips_ago: Count
    state: Code
    plan_epoch: Count
    held: Annotated[tuple[_Held, ...], Meta(max_length=MOST_RANGES)]
    kv_tokens_total: Count
    kv_tokens_used: Count
    sessions: Count
    load_thousandths: Annotated[int, Meta(ge=0, le=10**9)]
    queue_depth: Count
    layer_latency: _Latency | None
    head_ns: Nanoseconds | None
    overhead_ns: Nanoseconds | None
    prompt_row_ns: Nanoseconds | None = None
    """Not told by older versions."""


class Trips(Struct, frozen=True, array_like=True):
    """Whom a node reaches, and how far they are. Told when it changes by enough."""

    seq: Count
    rtt_ms: Figures
    mbps: Figures
    unreachable: Marks

    def __post_init__(self) -> None:
        unpack_figures(self.rtt_ms)
        unpack_figures(self.mbps)
        unpack_marks(self.unreachable)

    @property
    def reach(self) -> dict[Mark, float]:
        """Round trip in ms to each peer that it reaches."""
        return _figures(self.rtt_ms)


class Beat(Struct, frozen=True, array_like=True):
    """A node is still here and as it was."""

    seq: Count
    profile_ago: Count
    status_ago: Count
    trips_ago: Count


Part = Profile | Status | Trips | Beat

PART_TYPES: dict[str, type[Part]] = {"profile": Profile, "status": Status, "trips": Trips, "beat": Beat}
"""By the kind of the statement."""

KEPT_KINDS = ("profile", "trips", "status")
"""Of which the newest is kept and told to newcomers."""


def profile_of(record: NodeRecord) -> Profile:
    """The record's part that says who it is, with the record's number."""
    return Profile(**{field: getattr(record, field) for field in Profile.__struct_fields__})


def status_of(record: NodeRecord, *, profile_seq: int, trips_seq: int) -> Status:
    """The record's part that says how it is, with the record's number."""
    latency = record.layer_latency
    return Status(
        seq=record.seq,
        profile_ago=record.seq - profile_seq,
        trips_ago=record.seq - trips_seq,
        state=_code(record.state, _STATE_CODES),
        plan_epoch=record.plan_epoch,
        held=tuple(_Held(h.start, h.end, _code(h.state, _RANGE_CODES), h.epoch, h.weights) for h in record.held),
        kv_tokens_total=record.kv_tokens_total,
        kv_tokens_used=record.kv_tokens_used,
        sessions=record.sessions,
        load_thousandths=round(record.load * 1000),
        queue_depth=record.queue_depth,
        layer_latency=None
        if latency is None
        else _Latency(_ns(latency.mean_ms), _ns(latency.p50_ms), _ns(latency.p95_ms), latency.sequences),
        head_ns=None if record.head_ms is None else _ns(record.head_ms),
        overhead_ns=None if record.overhead_ms is None else _ns(record.overhead_ms),
        prompt_row_ns=None if record.prompt_row_ms is None else _ns(record.prompt_row_ms),
    )


def trips_of(record: NodeRecord) -> Trips:
    """The record's part that says whom it reaches, with the record's number."""
    return Trips(record.seq, pack_figures(record.rtt_ms), pack_figures(record.mbps), pack_marks(record.unreachable))


def record_of(
    node_id: str,
    seq: int,
    profile: Profile,
    status: Status | None,
    rtt_ms: dict[str, float],
    mbps: dict[str, float],
    unreachable: tuple[str, ...],
) -> NodeRecord:
    """The view of a node: `seq` is the newest number heard. A node that has not said how it is yet is just starting."""
    dtype = next((known for known in DTYPE_BYTES if known == profile.wanted_dtype), None)
    readable = profile.wanted_dtype is None or dtype is not None
    return NodeRecord(
        node_id=node_id,
        seq=seq,
        name=profile.name,
        ttl_s=profile.ttl_s,
        machine_id=profile.machine_id,
        addresses=profile.addresses,
        software=profile.software,
        hardware=profile.hardware,
        backend=profile.backend,
        quantisation=profile.quantisation,
        drift_class=profile.drift_class,
        wanted_model=profile.wanted_model if readable else None,  # in an arithmetic that we do not know
        wanted_dtype=dtype,
        pinned_layers=profile.pinned_layers,
        memory_cap_bytes=profile.memory_cap_bytes,
        region=profile.region,
        problem=profile.problem,
        leaving=profile.leaving,
        rtt_ms=rtt_ms,
        mbps={peer: min(MOST_MBPS, rate) for peer, rate in mbps.items()},
        unreachable=unreachable,
        **_fields_of(status) if status is not None else {},  # type: ignore[arg-type]  # as the record names them
    )


def _fields_of(status: Status) -> dict[str, object]:
    latency = status.layer_latency
    return {
        "state": _word(status.state, _STATE_CODES),
        "plan_epoch": status.plan_epoch,
        "held": tuple(HeldRange(h.start, h.end, _word(h.state, _RANGE_CODES), h.epoch, h.weights) for h in status.held),
        "kv_tokens_total": status.kv_tokens_total,
        "kv_tokens_used": status.kv_tokens_used,
        "sessions": status.sessions,
        "load": status.load_thousandths / 1000,
        "queue_depth": status.queue_depth,
        "layer_latency": None
        if latency is None
        else LayerLatency(
            latency.mean_ns / NS_PER_MS, latency.p50_ns / NS_PER_MS, latency.p95_ns / NS_PER_MS, latency.sequences
        ),
        "head_ms": None if status.head_ns is None else status.head_ns / NS_PER_MS,
        "overhead_ms": None if status.overhead_ns is None else status.overhead_ns / NS_PER_MS,
        "prompt_row_ms": None if status.prompt_row_ns is None else status.prompt_row_ns / NS_PER_MS,
    }


@lru_cache(maxsize=2048)
def _figures(packed: bytes) -> dict[Mark, float]:
    return unpack_figures(packed)


def _ns(milliseconds: float) -> int:
    return round(milliseconds * NS_PER_MS)


def _code(word: str, words: tuple[str, ...]) -> int:
    return words.index(word) if word in words else 255


def _word(code: int, words: tuple[str, ...]) -> str:
    return words[code] if code < len(words) else "unknown"


assert set(_STATE_CODES) == NODE_STATES
