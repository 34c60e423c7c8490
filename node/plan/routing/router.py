"""Phase 2: which nodes serve one request. The cheapest chain over what is held, layer by layer.

    cost = (prompt + (output tokens - 1) · loop) / output tokens        per output token, as `chain_time` has both

The loop is what every token takes: stages, LM head, hops, and the way from the tail back to the first stage; the prompt
is paid once: its chunks overlap, and its ways from and to the head. Load makes a node's layers slower by 1 + LOAD·load.

Any part of a held range may be used, and a node may come twice. The states are (segment, host), see `shortest_paths`;
from one segment to the next the best host of each place (a region, or a node that is told from others) is enough, since
all nodes of a place are equally far. That is O(segments · (replicas + places²)) for one search. Where round trips obey
the triangle inequality it never pays to change between two edges of held ranges, for the cost is linear in the layer,
so that a segment may reach from edge to edge. Measured round trips do not always: a node in between can be a short cut,
and so a segment is one layer, but in models of more than DEEP layers. Among equal chains those win that use held ranges
whole: a part of one must be loaded.

`Router` keeps what does not depend on the request; make a new one when ranges or links change, not per request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from node.errors import NoRoute
from node.plan.chain_time import CHUNK_TOKENS
from node.plan.live.round_trips import RoundTrips
from node.plan.machines.distances import Described
from node.plan.machines.pool import Links
from node.plan.placement.allocation import Stage
from node.plan.routing.ground import Ground, Places
from node.plan.routing.hosts import EDGE, PLAIN, is_sane, serves
from node.plan.routing.hosts import Host as Host
from node.plan.routing.hosts import Request as Request
from node.plan.routing.hosts import uncovered as uncovered
from node.plan.routing.hosts import usable as usable
from node.plan.routing.search import Figures, Search
from node.plan.routing.segments import segments_of
from node.plan.routing.shortest_paths import Network

PATIENCE = 3.0
"""A request waits for room rather than take a chain that costs this many times what the full one does."""


@dataclass(frozen=True, slots=True)
class Route:
    """A chain for one request."""

    stages: tuple[Stage, ...]
    """They tile the model, each within one range that its node holds."""
    token_ms: float
    """Mean time per output token, the prompt's share included: what is least. Load counted."""
    step_ms: float
    """Time of one decode step along it, load counted."""
    prompt_ms: float
    """Until the first output token is at the head, load counted."""
    relayed: bool = False
    """Whether nodes are neighbours in it that cannot reach one another: their frames go through a third."""

    @property
    def nodes(self) -> tuple[str, ...]:
        """In stage order."""
        return tuple(stage.node_id for stage in self.stages)


def route(layers: int, hosts: Sequence[Host], links: Links, request: Request = PLAIN) -> Route:
    """The cheapest chain for `request` now.

    Raises:
        NoRoute: layers that no host with room holds; names them.
    """
    return Router(layers, hosts, links).route(request)


def route_or_wait(router: Router, request: Request) -> Route | None:
    """The cheapest chain with room, or None when it is better to wait for room on a much faster one.

    Raises:
        NoRoute: some layers have no host with room.
    """
    found = router.route(request)
    if router.all_open(request):
        return found
    roomy = router.route(request, idle=True)
    return found if found.token_ms <= PATIENCE * roomy.token_ms else None


class Router:
    """Hosts sorted by place and id, and for each segment who may run it and how far they are from those before."""

    def __init__(self, layers: int, hosts: Sequence[Host], links: Links | RoundTrips) -> None:
        if layers < 1:
            raise NoRoute(f"there are no chains of {layers} layers")
        self._layers, self._links = layers, Described(links) if isinstance(links, Links) else links
        single = _told_apart(layers, hosts, frozenset(self._links.named))
        keyed = sorted(
            [
                (h.region, h.node_id if h.node_id in single else "", h.node_id, h.start, i)
                for i, h in enumerate(hosts)
                if serves(h, layers)
            ]
        )
        self._order = [key[-1] for key in keyed]
        self.hosts = [hosts[i] for i in self._order]
        """Those that can serve at all."""
        alike = [len(list(of_place)) for _, of_place in groupby(keyed, key=itemgetter(0, 1))]
        of_host = np.repeat(np.arange(len(alike)), alike)
        shown = [self.hosts[i] for i in np.flatnonzero(np.diff(of_host, prepend=-1)).tolist()]
        self._places = Places(
            of_host,
            shown,
            np.array([h.node_id in single for h in shown], dtype=bool),
            np.array(alike) == 1,
        )
        self._told = np.array([_told(host) for host in self.hosts], dtype=np.float64).reshape(len(self.hosts), 8)
        """(R, 8): their figures; read anew only where a host is another one."""
        self._network = Network(segments_of(layers, self.hosts, of_host), len(self.hosts))
        self._direct = Ground(self._links, self.hosts, self._places, self._network.segments)
        self._around: Ground | None = None

    def update(self, hosts: Sequence[Host]) -> None:
        """Takes new times, loads and room of the same ranges.

        `hosts` are in the order in which they were given when this router was made.
        """
        for at, i in enumerate(self._order):
            host = hosts[i]
            if host is not self.hosts[at]:
                self.hosts[at] = host
                self._told[at] = _told(host)

    def all_open(self, request: Request) -> bool:
        """Whether every host has room for it now."""
        return bool((self._told[:, 6] >= request.kv_tokens).all())

    def route(self, request: Request = PLAIN, *, idle: bool = False) -> Route:
        """The cheapest chain for `request` now; `idle`: with the room that there is when nothing runs.

        Nodes that cannot reach one another are neighbours in it only where no chain does without.

        Raises:
            NoRoom: some layers are only on nodes that are full; names them.
            NoRoute: layers that no host holds; names them.
        """
        if not self.hosts:
            usable(self._layers, self.hosts, request, idle=idle)
        sane, free, total = self._told[:, 5], self._told[:, 6], self._told[:, 7]
        able = (sane > 0) & ((total if idle else free) >= request.kv_tokens)
        if request.avoid:
            able &= np.array([host.node_id not in request.avoid for host in self.hosts], dtype=bool)
        figures = self._figures(request, able)
        if figures is None:
            usable(self._layers, self.hosts, request, idle=idle)
        assert figures is not None
        if (found := self._along(self._direct, figures, request)) is not None:
            return found
        if self._around is None:
            self._around = Ground(self._links.relayed(), self.hosts, self._places, self._network.segments)
        if (found := self._along(self._around, figures, request)) is not None:
            return replace(found, relayed=True)
        raise NoRoute(
            "the nodes that hold the layers cannot reach one another, and no third node reaches both ends; "
            "see `parallax status` for broken links"
        )

    def _figures(self, request: Request, able: NDArray[np.bool_]) -> Figures | None:
        """What every host costs; None where some layer has none that may be used."""
        once = request.once
        slower, decode, chunk, overhead, head = self._told[:, :5].T
        first = np.maximum(decode, chunk * (request.first_chunk / CHUNK_TOKENS))
        layer = slower * ((1 - once) * decode + once * first)
        least = self._network.least(np.where(able, layer, np.inf))
        if not least < np.inf:
            return None
        return Figures(
            layer=np.where(able, layer, 0.0),
            chunk_layer=np.where(able, slower * chunk, 0.0),
            overhead=np.where(able, overhead, np.inf),
            head=np.where(able, head, 0.0),
            edge=max(EDGE, request.part_worth) * least,
        )

    def _along(self, ground: Ground, figures: Figures, request: Request) -> Route | None:
        """The cheapest chain along these ways, or None."""
        search = Search(self._network, self.hosts, figures, ground, request)
        found = search.best()
        if found is None:
            return None
        stages = tuple(Stage(self.hosts[run.host].node_id, run.start, run.end) for run in found.runs)
        chain = search.time(found.runs)
        return Route(stages, chain.token_ms(search.work), chain.step_ms(), chain.prompt_ms(search.work.prompt_tokens))


def _told(host: Host) -> tuple[float, ...]:
    """Its load's factor, a layer's times for a token and for a chunk, overhead, head, whether they can be, and its room
    now and when nothing runs."""
    decode = host.layer_ms
    sane = is_sane(host)
    free = float("inf") if host.kv_free_tokens is None else host.kv_free_tokens
    total = float("inf") if host.kv_tokens is None else host.kv_tokens
    if not sane:
        return 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, free, total
    return host.slower, decode, max(decode, host.chunk_layer_ms), host.overhead_ms, host.head_ms, 1.0, free, total


def _told_apart(layers: int, hosts: Sequence[Host], named: frozenset[str]) -> frozenset[str]:
    """Nodes that are places of their own: links name them, or a chain may come to them twice or only to them."""
    seen: set[str] = set()
    again: set[str] = set()
    for host in hosts:
        if host.node_id in seen or (host.start == 0 and host.end == layers):
            again.add(host.node_id)
        seen.add(host.node_id)
    return named | again
