"""Machines and the links between them, as the planner sees them: measured figures, priors where nothing was measured.

Every figure is checked when the object is made, so that all that follows is arithmetic on finite numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from node.errors import BadPool

PRIOR_BANDWIDTH = 20e9
"""Bytes per second of a node that has not measured its memory: an old laptop."""
PRIOR_FLOPS = 0.2e12
"""FLOPs per second of such a node."""
DRAINS = "drains"
"""Why a node is barred that gives its layers up as soon as others have them."""
PRIOR_NEAR_MS = 2.0
"""Round trip inside a region that nobody has measured."""
PRIOR_FAR_MS = 100.0
"""Round trip between regions, or to a node of no known region: pessimistic, but finite, so that all stay usable."""
PRIOR_NEAR_MBPS = 1000.0
PRIOR_FAR_MBPS = 100.0
ABSURD = 1e21
"""No rate, size or time of a machine reaches this."""


def checked(where: str, key: str, value: object, *, zero: bool = False, most: float = ABSURD) -> float:
    """`value` as a finite number above zero (or from zero).

    Raises:
        BadPool: it is none; names `where` and `key`.
    """
    if value is None:
        raise BadPool(where, key, "is missing")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadPool(where, key, f"{str(value)[:40]!r} is not a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise BadPool(where, key, f"{value} is not a finite number")
    if value < 0 or (value == 0 and not zero):
        raise BadPool(where, key, f"{value} is {'negative' if value < 0 else 'zero'}")
    if value > most:
        raise BadPool(where, key, f"{str(value)[:40]} is beyond any machine")
    return float(value)


@dataclass(frozen=True, slots=True)
class PoolNode:
    """One machine. Raises BadPool for figures that cannot be."""

    node_id: str
    """Unique in its pool; a peer id in a live swarm, the name in a pool file."""
    memory_bytes: int
    """For weights and KV cache together."""
    bandwidth_bytes_per_s: float | None = None
    """Of its memory, measured; None: a prior."""
    flops_per_s: float | None = None
    """Of a large matrix product, measured; None: a prior."""
    region: str = ""
    """Nodes of one region are near one another."""
    layer_ms: tuple[tuple[int, float], ...] = ()
    """Measured in service: sequences in a decode step, milliseconds that one layer took."""
    head_ms: float | None = None
    """LM head and sampling of one decode step, measured; None: not yet, or it has never ended the model."""
    prompt_row_ms: float | None = None
    """Measured in service: one token of a prompt's chunk in one layer; None: not yet."""
    overhead_ms: float = 0.0
    """Of one step, outside compute and queue: the way to the engine and back, checks, packing."""
    pinned: tuple[int, int] | None = None
    """Layers [start, end) set by hand."""
    barred: str = ""
    """Why it may hold nothing (`excluded by hand`, `drains`); empty: it may."""
    name: str = ""
    """For people; the id where empty."""

    def __post_init__(self) -> None:
        if not self.node_id:
            raise BadPool("node", "name", "is empty")
        checked(self.label, "memory", self.memory_bytes, zero=True)
        for key, rate in (("bandwidth", self.bandwidth_bytes_per_s), ("flops", self.flops_per_s)):
            if rate is not None:
                checked(self.label, key, rate)
        checked(self.label, "overhead_ms", self.overhead_ms, zero=True)
        if self.head_ms is not None:
            checked(self.label, "head_ms", self.head_ms, zero=True)
        if self.prompt_row_ms is not None:
            checked(self.label, "prompt_row_ms", self.prompt_row_ms)
        for sequences, milliseconds in self.layer_ms:
            checked(self.label, "layer_ms", sequences)
            checked(self.label, "layer_ms", milliseconds)
        if self.pinned is not None and not 0 <= self.pinned[0] < self.pinned[1]:
            raise BadPool(self.label, "layers", f"{self.pinned[0]}:{self.pinned[1]} is empty")

    @property
    def label(self) -> str:
        """What people call it."""
        return self.name or self.node_id

    @property
    def bandwidth(self) -> float:
        """Bytes per second, measured or prior."""
        return self.bandwidth_bytes_per_s or PRIOR_BANDWIDTH

    @property
    def flops(self) -> float:
        """FLOPs per second, measured or prior."""
        return self.flops_per_s or PRIOR_FLOPS


class Located(Protocol):
    """Anything that links lead to."""

    @property
    def node_id(self) -> str: ...

    @property
    def region(self) -> str: ...


Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Links:
    """Round trips and rates between nodes or between regions; either direction of a pair counts for both."""

    rtt_ms: Mapping[Pair, float] = field(default_factory=dict)
    """Between two nodes, or two regions; a node pair outdoes the pair of their regions."""
    mbps: Mapping[Pair, float] = field(default_factory=dict)
    """Megabits per second, likewise."""
    near_ms: float = PRIOR_NEAR_MS
    """Prior inside a region."""
    far_ms: float = PRIOR_FAR_MS
    """Prior between regions."""
    trips: float = 0.5
    """Round trips that one hop takes: activations travel one way. The published formula charges a whole one."""
    named: frozenset[str] = field(init=False, repr=False, compare=False)
    """Nodes and regions with figures of their own: all others of a region are alike."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "named", frozenset(end for pair in (*self.rtt_ms, *self.mbps) for end in pair))
        for key in ("near_ms", "far_ms", "trips"):
            checked("links", key, getattr(self, key), zero=True)
        for (a, b), milliseconds in self.rtt_ms.items():
            checked(f"link {a}–{b}", "rtt_ms", milliseconds, zero=True)
        for (a, b), rate in self.mbps.items():
            checked(f"link {a}–{b}", "mbps", rate)
        for key in ("near_ms", "far_ms", "trips"):
            checked("links", key, getattr(self, key), zero=True)

    def rtt(self, a: Located, b: Located) -> float:
        """Round trip in ms; 0 to itself."""
        if a.node_id == b.node_id:
            return 0.0
        measured = self._between(self.rtt_ms, a, b)
        if measured is not None:
            return measured
        return self.near_ms if a.region == b.region else self.far_ms

    def rate_mbps(self, a: Located, b: Located) -> float:
        """Megabits per second."""
        measured = self._between(self.mbps, a, b)
        if measured is not None:
            return measured
        return PRIOR_NEAR_MBPS if a.region == b.region else PRIOR_FAR_MBPS

    def hop_ms(self, a: Located, b: Located, sent_bytes: float) -> float:
        """Time from `a` to `b`: trips · RTT + bytes / bandwidth; 0 to itself."""
        if a.node_id == b.node_id:
            return 0.0
        return self.rtt(a, b) * self.trips + sent_bytes * 8 / (self.rate_mbps(a, b) * 1000)

    @staticmethod
    def _between(known: Mapping[Pair, float], a: Located, b: Located) -> float | None:
        if not known:
            return None
        found = known.get((a.node_id, b.node_id))
        if found is None:
            found = known.get((b.node_id, a.node_id))
        if found is None and (a.region or b.region):
            found = known.get((a.region, b.region))
            if found is None:
                found = known.get((b.region, a.region))
        return found


@dataclass(frozen=True, slots=True)
class Pool:
    """Machines and links of one file or one moment."""

    nodes: tuple[PoolNode, ...]
    links: Links


@dataclass(frozen=True, slots=True)
class Workload:
    """What people ask of the swarm."""

    prompt_tokens: int = 512
    output_tokens: int = 256
    users: int = 16
    """Requests at once."""

    def __post_init__(self) -> None:
        for key in ("prompt_tokens", "output_tokens", "users"):
            checked("workload", key, getattr(self, key))

    @property
    def context(self) -> int:
        """Tokens of one sequence at its end."""
        return self.prompt_tokens + self.output_tokens
