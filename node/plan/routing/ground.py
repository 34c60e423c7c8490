"""How far the hosts of a router are from one another and from a request's head, by one kind of ways."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from node.plan.chain_time import NO_HOP, HopTime
from node.plan.live.round_trips import RoundTrips
from node.plan.machines.distances import Described
from node.plan.machines.pool import Located
from node.plan.routing.hosts import Host
from node.plan.routing.segments import Floats, Indices, Segment

HOPS_KEPT = 8
"""Sizes of what a hop carries whose times are kept: most prompts fill a chunk, answers are of a few usual lengths."""


@dataclass(frozen=True, slots=True)
class Places:
    """Groups of hosts that are equally far from all others; P places of R hosts."""

    of_host: Indices
    """(R,)"""
    shown: Sequence[Host]
    """(P,): one host of each."""
    single: NDArray[np.bool_]
    """(P,): whether all its hosts are on one node."""
    lone: NDArray[np.bool_]
    """(P,): whether it is one host."""


class Ground:
    """Ways between places; infinite where nodes cannot reach one another."""

    def __init__(
        self,
        links: Described | RoundTrips,
        hosts: Sequence[Located],
        places: Places,
        segments: Sequence[Segment],
    ) -> None:
        self._links, self._hosts, self._places, self._segments = links, hosts, places, segments
        distances = links.distances(places.shown)
        self._way, self._byte = distances.way_ms, distances.byte_ms
        for matrix in (self._way, self._byte):
            np.fill_diagonal(matrix, np.where(places.single, 0.0, np.diagonal(matrix)))
        self._hops: OrderedDict[float, list[Floats]] = OrderedDict()
        self._ends: tuple[tuple[str, str], Floats, Floats] | None = None
        self.back_ms: Floats = self._way[np.ix_(segments[-1].places, segments[0].places)]
        """(G of the last, G of the first segment): of an empty message from a tail to a first stage."""

    def hops(self, sent_bytes: float) -> list[Floats]:
        """(G before, G), into every segment but the first: of a message of so many bytes."""
        found = self._hops.get(sent_bytes)
        if found is None:
            found = self._hops[sent_bytes] = self._between(self._way + sent_bytes * self._byte)
            if len(self._hops) > HOPS_KEPT:
                self._hops.popitem(last=False)
        self._hops.move_to_end(sent_bytes)
        return found

    def blocked(self, byte_ms: float) -> list[Floats]:
        """Likewise: infinite from a host to itself, and where a byte takes longer than `byte_ms`; else 0."""
        too_thin = self._byte > byte_ms
        np.fill_diagonal(too_thin, np.diagonal(too_thin) | self._places.lone)
        return self._between(np.where(too_thin, np.inf, 0.0))

    def hop(self, a: int, b: int) -> HopTime:
        """From one host to another, by their numbers."""
        if self._hosts[a].node_id == self._hosts[b].node_id:
            return NO_HOP
        ends = self._places.of_host[a], self._places.of_host[b]
        return HopTime(float(self._way[ends]), float(self._byte[ends]))

    def ends_of(self, head: Located | None) -> tuple[Floats, Floats]:
        """(R,) twice: an empty message's way from the head to each host, and back from it. Kept for the last head."""
        places = self._places
        if head is None:
            return np.zeros(len(places.of_host)), np.zeros(len(places.of_host))
        key = head.node_id, head.region
        if self._ends is None or self._ends[0] != key:
            other = Host(f"{head.node_id} ", 0, 1, 0.0, head.region)  # a neighbour, where names do not tell
            others = [host if host.node_id != head.node_id else other for host in places.shown]
            there = np.array([self._links.way_ms(head, place) for place in others])[places.of_host]
            back = np.array([self._links.way_ms(place, head) for place in others])[places.of_host]
            own = [i for i, host in enumerate(self._hosts) if host.node_id == head.node_id]
            there[own] = back[own] = 0.0
            self._ends = key, there, back
        return self._ends[1:]

    def _between(self, matrix: Floats) -> list[Floats]:
        """The matrix of all places, for the places of each two neighbouring segments."""
        blocks: list[Floats] = []
        known: dict[tuple[bytes, bytes], Floats] = {}  # neighbouring layers often have the same nodes
        for a, b in pairwise(self._segments):
            key = a.places.tobytes(), b.places.tobytes()
            if key not in known:
                known[key] = matrix[np.ix_(a.places, b.places)]
            blocks.append(known[key])
        return blocks
