"""Phase 2: which nodes serve one request. A shortest path over what is held, layer by layer.

    cost = Σ stages τ·(1 + LOAD·load)·layers + Σ hops (RTT·trips + bytes / bandwidth) + head → first + tail → head

Any part of a held range may be used, and a node may come twice. The states are (segment, host); from one segment to the
next the best host of each place (a region, or a node that links name) is enough, since all nodes of a place are equally
far. That is O(segments · (replicas + places²)). Where round trips obey the triangle inequality it never pays to change
between two edges of held ranges, for the cost is linear in the layer, so that a segment may reach from edge to edge.
Measured round trips do not always: a node in between can be a short cut, and so a segment is one layer, but in models
of more than DEEP layers.

`Router` keeps what does not depend on the request; make a new one when ranges or links change, not per request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from node.errors import NoRoute
from node.plan.allocation import Stage
from node.plan.distances import Distances
from node.plan.pool import Links, Located

LOAD = 1.0
"""One more request on a node delays the next by this many of its steps there."""
DEEP = 128
"""Layers of the deepest model whose every layer is a segment of its own."""
FEW_PLACES = 16
"""Below this, looking only at places that are reached costs more than it saves."""
PATIENCE = 3.0
"""A request waits for room rather than take a chain that costs this many times what the full one does."""
TIE = 1e-9
"""Costs that differ by less than this fraction are equal."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Host:
    """A held range that serves. A node that holds two has two."""

    node_id: str
    start: int
    end: int
    """Half-open."""
    layer_ms: float
    """Of one decode step in one layer, measured or predicted."""
    region: str = ""
    load: float = 0.0
    """Requests that it serves or that wait for it now."""
    kv_free_tokens: int | None = None
    """Room in its KV cache; None: not bounded here."""


@dataclass(frozen=True, slots=True)
class Request:
    """What routing must know about a request."""

    hop_bytes: float = 0.0
    """Activations that every hop carries per step."""
    kv_tokens: int = 0
    """Room that its keys and values need on every stage."""
    head: Located | None = None
    """The node that answers it: charged for the way to the first stage and from the tail; None: charged for neither."""
    spread: int = 0
    """Which of equally good nodes it takes; a hash of the request's id spreads requests evenly."""


@dataclass(frozen=True, slots=True)
class Route:
    """A chain for one request."""

    stages: tuple[Stage, ...]
    """They tile the model."""
    cost_ms: float
    """Time of one decode step along it, load counted."""

    @property
    def nodes(self) -> tuple[str, ...]:
        """In stage order."""
        return tuple(stage.node_id for stage in self.stages)


PLAIN = Request()


def route(layers: int, hosts: Sequence[Host], links: Links, request: Request = PLAIN) -> Route:
    """The fastest chain for `request` now.

    Raises:
        NoRoute: layers that no host with room holds; names them.
    """
    return Router(layers, hosts, links).route(request)


def route_or_wait(router: Router, request: Request) -> Route | None:
    """The fastest chain with room, or None when it is better to wait for room on a much faster one.

    Raises:
        NoRoute: some layers have no host with room.
    """
    found = router.route(request)
    if not request.kv_tokens:
        return found
    roomy = router.route(replace(request, kv_tokens=0))
    return found if found.cost_ms <= PATIENCE * roomy.cost_ms else None


def usable(layers: int, hosts: Sequence[Host], request: Request) -> list[Host]:
    """Hosts with room for the request.

    Raises:
        NoRoute: some layers have none; says whether they are full or not there.
    """
    sound = [h for h in hosts if 0 <= h.start < h.end <= layers and 0 <= h.layer_ms < np.inf]
    able = [h for h in sound if h.kv_free_tokens is None or h.kv_free_tokens >= request.kv_tokens]
    if (gap := uncovered(layers, able)) is not None:
        start, end = gap
        if uncovered(layers, sound) is None:
            why = f"are on nodes without KV room for {request.kv_tokens} more tokens; wait for a request to end"
        else:
            why = "have no ready node; wait for one to load or return, or see `parallax status`"
        raise NoRoute(f"layers {start}–{end - 1} of {layers} {why}")
    return able


def uncovered(layers: int, hosts: Sequence[Host]) -> tuple[int, int] | None:
    """The first layers [start, end) that nobody holds, or None."""
    reached = 0
    for start, end in sorted((host.start, host.end) for host in hosts):
        if start > reached:
            return reached, start
        reached = max(reached, end)
    return (reached, layers) if reached < layers else None


class Router:
    """Hosts sorted by place and id, and what they are to one another."""

    def __init__(self, layers: int, hosts: Sequence[Host], links: Links) -> None:
        self._layers, self._given, self._links = layers, hosts, links
        named = {end for pair in (*links.rtt_ms, *links.mbps) for end in pair}
        keyed = sorted(
            ((h.region, h.node_id if h.node_id in named else "", h.node_id, h.start), i)
            for i, h in enumerate(hosts)
            if 0 <= h.start < h.end <= layers and 0 <= h.layer_ms < np.inf
        )
        self._order = [i for _, i in keyed]
        self.hosts = [hosts[i] for i in self._order]
        """Those that can serve at all."""
        places: dict[tuple[str, str], int] = {}
        self._place = np.array([places.setdefault(key[:2], len(places)) for key, _ in keyed], dtype=np.int64)
        self._firsts = np.flatnonzero(np.diff(self._place, prepend=-1))
        shown = [self.hosts[i] for i in self._firsts.tolist()]
        self._distances = Distances(shown, links)
        self._single = np.array([h.node_id in named for h in shown], dtype=bool)
        starts = np.array([h.start for h in self.hosts], dtype=np.int64)
        ends = np.array([h.end for h in self.hosts], dtype=np.int64)
        edges = {0, layers, *starts.tolist(), *ends.tolist()}
        self._edges: list[int] = list(range(layers + 1)) if layers <= DEEP else sorted(edges)
        lower, upper = np.array(self._edges[:-1]), np.array(self._edges[1:])
        self._inside = (starts[None, :] <= lower[:, None]) & (ends[None, :] >= upper[:, None])
        self._widths = (upper - lower).astype(np.float64)

    def update(self, hosts: Sequence[Host]) -> None:
        """Takes new times, loads and room of the same ranges.

        `hosts` are in the order in which they were given when this router was made.
        """
        self._given = hosts
        self.hosts = [hosts[i] for i in self._order]

    def route(self, request: Request = PLAIN) -> Route:
        """The fastest chain for `request` now.

        Raises:
            NoRoute: layers that no host with room holds; names them.
        """
        room = np.array([h.kv_free_tokens is None or h.kv_free_tokens >= request.kv_tokens for h in self.hosts])
        if not len(self.hosts) or not (self._inside & room).any(axis=1).all():
            usable(self._layers, self.hosts, request)
        return self._best(request, room)

    def _best(self, request: Request, room: NDArray[np.bool_]) -> Route:
        """Forwards: the least cost per segment and host. Backwards: who had it, ties by the request's spread."""
        hops = self._distances.hop_ms(request.hop_bytes)
        np.fill_diagonal(hops, np.where(self._single, 0.0, np.diagonal(hops)))
        tau = np.array([h.layer_ms * (1 + LOAD * h.load) for h in self.hosts])
        steps = np.where(self._inside & room, self._widths[:, None] * tau[None, :], np.inf)
        cost = self._ways(request.head, from_head=True) + steps[0]
        costs: list[Floats] = [cost]
        enters: list[Floats] = []
        for segment, step in enumerate(steps[1:], start=1):
            least = np.minimum.reduceat(cost, self._firsts)
            enter = self._enter(least, hops, segment)[self._place]
            enters.append(enter)
            cost = np.minimum(cost, enter) + step
            costs.append(cost)
        final = cost + self._ways(request.head, from_head=False)
        return Route(self._walk_back(costs, enters, final, hops, request.spread), float(final.min()))

    def _enter(self, least: Floats, hops: Floats, segment: int) -> Floats:
        """(places,): the cheapest way into each place from any that a chain has reached."""
        if len(least) <= FEW_PLACES:
            ways: Floats = (least[:, None] + hops).min(axis=0)
            return ways
        reached = np.flatnonzero(np.isfinite(least))
        wanted = np.unique(self._place[self._inside[segment]])
        ways = np.full(len(least), np.inf)
        ways[wanted] = (least[reached, None] + hops[np.ix_(reached, wanted)]).min(axis=0)
        return ways

    def _ways(self, head: Located | None, *, from_head: bool) -> Floats:
        """(hosts,): a token's way between the head and each host."""
        if head is None:
            return np.zeros(len(self.hosts))
        shown = [self.hosts[i] for i in self._firsts.tolist()]
        other = [Host(f"{head.node_id} ", 0, 1, 0.0, head.region)] * len(shown)  # a neighbour, where names do not tell
        place = [h if h.node_id != head.node_id else o for h, o in zip(shown, other, strict=True)]
        pairs = [(head, h) if from_head else (h, head) for h in place]
        ways = np.array([self._links.hop_ms(a, b, 0.0) for a, b in pairs])[self._place]
        own = [i for i, host in enumerate(self.hosts) if host.node_id == head.node_id]
        ways[own] = 0.0
        return ways

    def _walk_back(
        self, costs: Sequence[Floats], enters: Sequence[Floats], final: Floats, hops: Floats, spread: int
    ) -> tuple[Stage, ...]:
        chosen = _among(final, spread)
        stages: list[Stage] = []
        end = self._edges[-1]
        for segment in range(len(costs) - 1, 0, -1):
            before = costs[segment - 1]
            if before[chosen] <= enters[segment - 1][chosen] * (1 + TIE):
                continue
            ways = before + hops[self._place, self._place[chosen]]
            ways[chosen] = np.inf
            start = self._edges[segment]
            stages.append(Stage(self.hosts[chosen].node_id, start, end))
            end, chosen = start, _among(ways, spread)
        stages.append(Stage(self.hosts[chosen].node_id, 0, end))
        return _joined(stages[::-1])


def _among(costs: Floats, spread: int) -> int:
    """One of the cheapest, by the request's spread."""
    least = float(costs.min())
    cheapest = np.flatnonzero(costs <= least + abs(least) * TIE)
    return int(cheapest[spread % len(cheapest)])


def _joined(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """Neighbouring stages of one node (two ranges that it holds) as one."""
    joined: list[Stage] = []
    for stage in stages:
        if joined and joined[-1].node_id == stage.node_id:
            joined[-1] = Stage(stage.node_id, joined[-1].start, stage.end)
        else:
            joined.append(stage)
    return tuple(joined)
