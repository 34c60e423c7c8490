"""Phase 2: which nodes serve one request. A shortest path over what is held, layer by layer.

    cost = Σ stages (τ·(1 + LOAD·load)·layers + overhead) + LM head of the last
         + Σ hops (RTT·trips + bytes / bandwidth) + head → first + tail → head

Any part of a held range may be used, and a node may come twice. The states are (segment, host); from one segment to the
next the best host of each place (a region, or a node that links name) is enough, since all nodes of a place are equally
far. That is O(segments · (replicas + places²)). Where round trips obey the triangle inequality it never pays to change
between two edges of held ranges, for the cost is linear in the layer, so that a segment may reach from edge to edge.
Measured round trips do not always: a node in between can be a short cut, and so a segment is one layer, but in models
of more than DEEP layers. Among equal chains those win that use held ranges whole: a part of one must be loaded.

`Router` keeps what does not depend on the request; make a new one when ranges or links change, not per request.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import itemgetter

import numpy as np

from node.errors import NoRoom, NoRoute
from node.plan.live.round_trips import RoundTrips
from node.plan.machines.distances import Described
from node.plan.machines.pool import Links, Located
from node.plan.placement.allocation import Stage
from node.plan.routing.segments import Floats, Ranged, Segment, segments_of

LOAD = 1.0
"""A sequence that is at a node delays the next one by this many of its steps there."""
PATIENCE = 3.0
"""A request waits for room rather than take a chain that costs this many times what the full one does."""
TIE = 1e-11
"""Costs that differ by less than this fraction are equal."""
EDGE = 1e-8
"""To use a part of a held range counts at least this fraction of the fastest compute: it decides among equal chains."""
SLOWEST_MS = 1e12
"""A layer that takes longer never ends."""


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
    """Sequences that are there at a time: of each request on a chain of n stages, 1/n is at every one of them."""
    kv_free_tokens: int | None = None
    """Room in its KV cache; None: not bounded here."""
    kv_tokens: int | None = None
    """The same when nothing runs on it."""
    overhead_ms: float = 0.0
    """Of every visit, beside its layers."""
    head_ms: float = 0.0
    """LM head and sampling, where a chain ends here."""


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
    avoid: frozenset[str] = frozenset()
    """Node ids that it must not use."""
    part_worth: float = EDGE
    """To use a part of a held range must save this fraction of the fastest compute: figures that nodes measure are not
    exact, and a further node is one more that may fail."""


@dataclass(frozen=True, slots=True)
class Route:
    """A chain for one request."""

    stages: tuple[Stage, ...]
    """They tile the model, each within one range that its node holds."""
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
    if all(_has_room(host, request) for host in router.hosts):
        return found
    roomy = router.route(request, idle=True)
    return found if found.cost_ms <= PATIENCE * roomy.cost_ms else None


def usable(layers: int, hosts: Sequence[Host], request: Request, *, idle: bool = False) -> list[Host]:
    """Hosts with room for the request; `idle`: those that have it when nothing runs on them.

    Raises:
        NoRoom: some layers are only on nodes that are full.
        NoRoute: some layers have no node.
    """
    sound = [host for host in hosts if _serves(host, layers) and host.node_id not in request.avoid]
    able = [host for host in sound if _has_room(host, request, idle=idle)]
    if (gap := uncovered(layers, sound)) is not None:
        why = "have no ready node; wait for one to load or return, or see `parallax status`"
        raise NoRoute(f"layers {gap[0]}–{gap[1] - 1} of {layers} {why}")
    if (gap := uncovered(layers, able)) is not None:
        why = f"are on nodes without KV room for {request.kv_tokens} more tokens; wait for a request to end"
        raise NoRoom(f"layers {gap[0]}–{gap[1] - 1} of {layers} {why}")
    return able


def _serves(host: Host, layers: int) -> bool:
    """Whether its figures make sense at all."""
    return 0 <= host.start < host.end <= layers and 0 <= host.layer_ms <= SLOWEST_MS


def _has_room(host: Host, request: Request, *, idle: bool = False) -> bool:
    room = host.kv_tokens if idle else host.kv_free_tokens
    return room is None or room >= request.kv_tokens


def uncovered(layers: int, ranges: Iterable[Ranged]) -> tuple[int, int] | None:
    """The first layers [start, end) that nobody holds, or None."""
    reached = 0
    for start, end in sorted((held.start, held.end) for held in ranges):
        if start > reached:
            return reached, start
        reached = max(reached, end)
    return (reached, layers) if reached < layers else None


class Router:
    """Hosts sorted by place and id, and for each segment who may run it and how far they are from those before."""

    def __init__(self, layers: int, hosts: Sequence[Host], links: Links | RoundTrips) -> None:
        self._layers, self._links = layers, Described(links) if isinstance(links, Links) else links
        named = self._links.named
        keyed = sorted(
            [
                (h.region, h.node_id if h.node_id in named else "", h.node_id, h.start, i)
                for i, h in enumerate(hosts)
                if _serves(h, layers)
            ]
        )
        self._order = [key[-1] for key in keyed]
        self.hosts = [hosts[i] for i in self._order]
        """Those that can serve at all."""
        alike = [len(list(of_place)) for _, of_place in groupby(keyed, key=itemgetter(0, 1))]
        self._place = np.repeat(np.arange(len(alike)), alike)
        self._shown = [self.hosts[i] for i in np.flatnonzero(np.diff(self._place, prepend=-1)).tolist()]
        self._distances = self._links.distances(self._shown)
        self._single = np.array([h.node_id in named for h in self._shown], dtype=bool)
        self._segments = segments_of(layers, self.hosts, self._place)
        self._states = np.concatenate([segment.hosts for segment in self._segments])
        self._layers_of = np.repeat([s.layers for s in self._segments], [len(s.hosts) for s in self._segments])
        self._entered_inside = np.concatenate([segment.entered_inside for segment in self._segments])
        self._begins = np.cumsum([0, *(len(segment.hosts) for segment in self._segments)])
        self._hops: tuple[float, list[Floats]] | None = None
        self._ends: tuple[tuple[str, str], Floats, Floats] | None = None

    def update(self, hosts: Sequence[Host]) -> None:
        """Takes new times, loads and room of the same ranges.

        `hosts` are in the order in which they were given when this router was made.
        """
        self.hosts = [hosts[i] for i in self._order]

    def route(self, request: Request = PLAIN, *, idle: bool = False) -> Route:
        """The fastest chain for `request` now; `idle`: with the room that there is when nothing runs.

        Raises:
            NoRoom: some layers are only on nodes that are full; names them.
            NoRoute: layers that no host holds; names them.
        """
        if not self.hosts:
            usable(self._layers, self.hosts, request, idle=idle)
        rooms = [h.kv_tokens if idle else h.kv_free_tokens for h in self.hosts]
        able = [
            h.layer_ms <= SLOWEST_MS and (room is None or room >= request.kv_tokens)
            for h, room in zip(self.hosts, rooms, strict=True)
        ]
        if request.avoid:
            able = [yes and h.node_id not in request.avoid for yes, h in zip(able, self.hosts, strict=True)]
        tau = np.where(able, [h.layer_ms * (1 + LOAD * h.load) for h in self.hosts], np.inf)
        work = tau[self._states] * self._layers_of
        least = np.inf if 0 in np.diff(self._begins) else float(np.minimum.reduceat(work, self._begins[:-1]).sum())
        if not least < np.inf:
            usable(self._layers, self.hosts, request, idle=idle)
        return self._best(request, work, max(EDGE, request.part_worth) * least)

    def _best(self, request: Request, work: Floats, edge_ms: float) -> Route:
        """Forwards: the least cost per segment and host. Backwards: who had it, ties by the request's spread.

        `work` is the time of every segment on each of its hosts, `edge_ms` the price of using a range in part.
        """
        to_first, from_tail = self._ways(request.head)
        overhead = np.array([host.overhead_ms for host in self.hosts])
        entering = overhead[self._states] + edge_ms * self._entered_inside
        begins: list[int] = self._begins.tolist()
        former = self._segments[0]
        nothing = np.zeros(0)
        cost = np.empty(begins[1] + 1)  # one more: where a host was not in the segment before, it cannot have stayed
        cost[-1] = np.inf
        np.add((to_first + overhead)[former.hosts], work[: begins[1]], out=cost[:-1])
        steps = [_Step(former, nothing, nothing, nothing, nothing)]
        for i, hops in enumerate(self._between(request.hop_bytes), start=1):
            segment, here = self._segments[i], slice(begins[i], begins[i + 1])
            leaving = cost[:-1] + edge_ms * segment.left_inside
            least = leaving if former.firsts is None else np.minimum.reduceat(leaving, former.firsts)
            enter = (least[:, None] + hops).min(axis=0)[segment.group]
            enter += entering[here]
            stay = cost[segment.before]
            cost = np.empty(len(stay) + 1)
            cost[-1] = np.inf
            np.minimum(stay, enter, out=cost[:-1])
            cost[:-1] += work[here]
            steps.append(_Step(segment, stay, enter, leaving, hops))
            former = segment
        last = np.array([host.head_ms for host in self.hosts])[former.hosts]
        final: Floats = cost[:-1] + last + from_tail[former.hosts]
        return Route(self._walk_back(steps, final, request.spread), float(final.min()))

    def _between(self, hop_bytes: float) -> list[Floats]:
        """(places before, places): the hops into every segment but the first. Kept: a model's hops are all alike."""
        if self._hops is None or self._hops[0] != hop_bytes:
            hops = self._distances.hop_ms(hop_bytes)
            np.fill_diagonal(hops, np.where(self._single, 0.0, np.diagonal(hops)))
            blocks: list[Floats] = []
            known: dict[tuple[bytes, bytes], Floats] = {}  # neighbouring layers often have the same nodes
            for a, b in pairwise(self._segments):
                key = a.places.tobytes(), b.places.tobytes()
                if key not in known:
                    known[key] = hops[np.ix_(a.places, b.places)]
                blocks.append(known[key])
            self._hops = hop_bytes, blocks
        return self._hops[1]

    def _ways(self, head: Located | None) -> tuple[Floats, Floats]:
        """(hosts,) twice: a token's way from the head to each host, and back from it. Kept for the last head."""
        if head is None:
            return np.zeros(len(self.hosts)), np.zeros(len(self.hosts))
        key = head.node_id, head.region
        if self._ends is None or self._ends[0] != key:
            other = Host(f"{head.node_id} ", 0, 1, 0.0, head.region)  # a neighbour, where names do not tell
            places = [host if host.node_id != head.node_id else other for host in self._shown]
            there = np.array([self._links.way_ms(head, place) for place in places])[self._place]
            back = np.array([self._links.way_ms(place, head) for place in places])[self._place]
            own = [i for i, host in enumerate(self.hosts) if host.node_id == head.node_id]
            there[own] = back[own] = 0.0
            self._ends = key, there, back
        return self._ends[1:]

    def _walk_back(self, steps: Sequence[_Step], final: Floats, spread: int) -> tuple[Stage, ...]:
        chosen = _among(final, spread)
        stages: list[Stage] = []
        end = self._layers
        for before, step in zip(steps[-2::-1], steps[:0:-1], strict=True):
            segment = step.segment
            if step.stay[chosen] <= step.enter[chosen] * (1 + TIE):
                chosen = int(segment.before[chosen])
                continue
            ways = step.leaving + step.hops[before.segment.group, segment.group[chosen]]
            if (own := int(segment.before[chosen])) >= 0:
                ways[own] = np.inf
            stages.append(Stage(self.hosts[int(segment.hosts[chosen])].node_id, segment.start, end))
            end, chosen = segment.start, _among(ways, spread)
        stages.append(Stage(self.hosts[int(steps[0].segment.hosts[chosen])].node_id, 0, end))
        return tuple(stages[::-1])


@dataclass(frozen=True, slots=True)
class _Step:
    """What a search knows of one segment."""

    segment: Segment
    stay: Floats
    """(hosts,): the cheapest way to its begin for who runs it, where the same host ran the one before."""
    enter: Floats
    """(hosts,): likewise, where another did."""
    leaving: Floats
    """(hosts before,): what it costs there to go over now."""
    hops: Floats
    """(places before, places)"""


def _among(costs: Floats, spread: int) -> int:
    """One of the cheapest, by the request's spread."""
    least = float(costs.min())
    cheapest = np.flatnonzero(costs <= least + abs(least) * TIE)
    return int(cheapest[spread % len(cheapest)])
