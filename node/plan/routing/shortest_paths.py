"""Cheapest chains through the segments of a model: dynamic programming over (segment, host), many starts at a time.

Knows prices, not what they are of. A chain may be held to a longest run of layers per host: so that no stage takes
longer than wanted for a chunk of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from node.plan.routing.segments import Floats, Indices, Segment

AT_ONCE = 2**14
"""Numbers that are worth one operation for several starts; more of them are no longer near the processor."""
TIE = 1e-11
"""Costs that differ by less than this fraction are equal."""


@dataclass(frozen=True, slots=True)
class Barred:
    """No run of `host` may begin with segments [start, end)."""

    host: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Prices:
    """What a chain pays. R hosts in all; H of them, in G places, can run a segment."""

    layer: Floats
    """(R,): per layer; whatever where a host may not be used."""
    enter: Floats
    """(R,): for every visit; infinite where a host may not be used."""
    edge: float
    """To begin or to end inside a held range."""
    hops: Sequence[Floats]
    """(G before, G), into every segment but the first."""
    longest: Floats | None = None
    """(R,): layers that a host may run at a stretch; None: as many as it holds."""
    barred: tuple[Barred, ...] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """A stretch of segments on one host."""

    host: int
    start: int
    end: int
    """Half-open, in layers."""


class Network:
    """The segments as arrays, whatever the prices."""

    def __init__(self, segments: Sequence[Segment], hosts: int) -> None:
        self.segments, self.hosts = segments, hosts
        self.cuts = [*(segment.start for segment in segments), int(segments[-1].start + segments[-1].layers)]
        self._at = np.concatenate([segment.hosts for segment in segments])
        self._layers = np.repeat([s.layers for s in segments], [len(s.hosts) for s in segments])
        self._inside = np.concatenate([segment.entered_inside for segment in segments])
        self._begins: list[int] = np.cumsum([0, *(len(segment.hosts) for segment in segments)]).tolist()
        self._left_inside = np.concatenate([*(segment.left_inside for segment in segments[1:]), np.zeros(0)])

    def least(self, layer: Floats) -> float:
        """What all layers cost where each is run by its cheapest host; infinite where one has none."""
        if 0 in np.diff(self._begins):
            return float("inf")
        return float(np.minimum.reduceat(layer[self._at] * self._layers, self._begins[:-1]).sum())

    def slowest_layer(self, layer: Floats) -> float:
        """What the layer takes that takes longest even on its fastest host."""
        return float(np.minimum.reduceat(layer[self._at], self._begins[:-1]).max())

    def paths(self, starts: Floats, prices: Prices) -> Paths:
        """The cheapest chains from each of `starts`: (T, R), what it costs to begin at a host."""
        work = prices.layer[self._at] * self._layers
        entering = prices.enter[self._at] + prices.edge * self._inside
        begins = self._begins
        former = self.segments[0]
        for barred in prices.barred:
            for i in range(barred.start, min(barred.end, len(self.segments))):
                entering[begins[i] : begins[i + 1]][self.segments[i].hosts == barred.host] = np.inf
        enter: Floats = starts[:, former.hosts] + entering[: begins[1]]
        history = _History(self, starts.shape[0], prices) if prices.longest is not None else None
        cost = enter + work[: begins[1]] if history is None else history.cost(0, enter)
        entered, left = [enter], [np.zeros((len(starts), 0))]
        parting = prices.edge * self._left_inside
        # The last column stays infinite: where a host was not in the segment before, it cannot have stayed.
        before = np.full((len(starts), self.hosts + 1), np.inf)
        for i, hops in enumerate(prices.hops, start=1):
            segment, here = self.segments[i], slice(begins[i], begins[i + 1])
            leaving = cost + parting[begins[i - 1] : begins[i]]
            least = leaving if former.firsts is None else np.minimum.reduceat(leaving, former.firsts, axis=1)
            enter = _least_way(least, hops)
            if segment.firsts is not None:
                enter = enter[:, segment.group]
            enter += entering[here]
            if history is None:
                before[:, : cost.shape[1]] = cost
                cost = before.take(segment.before, axis=1)
                np.minimum(cost, enter, out=cost)
                cost += work[here]
            else:
                cost = history.cost(i, enter)
            entered.append(enter)
            left.append(leaving)
            former = segment
        return Paths(self, prices, cost, entered, left)


def _least_way(least: Floats, hops: Floats) -> Floats:
    """(T, G before) and (G before, G): from the cheapest place into each."""
    if len(least) == 1:
        one: Floats = (least[0][:, None] + hops).min(axis=0)[None]
        return one
    if len(least) * hops.size <= AT_ONCE:
        some: Floats = (least[:, :, None] + hops).min(axis=1)
        return some
    return np.stack([(row[:, None] + hops).min(axis=0) for row in least])


class _History:
    """What entering each segment has cost, for runs that may not be as long as one likes."""

    def __init__(self, network: Network, starts: int, prices: Prices) -> None:
        assert prices.longest is not None
        self._network, self._layer, self._longest = network, prices.layer, prices.longest
        self._cuts = np.array(network.cuts, dtype=np.float64)
        self._entered = np.full((len(network.segments), starts, network.hosts), np.inf)
        """Less what the host would have taken for the layers before."""
        self._begin = 0

    def cost(self, i: int, enter: Floats) -> Floats:
        """(T, H): at the end of segment `i`, entered at it or at one before that is near enough."""
        hosts = self._network.segments[i].hosts
        self._entered[i][:, hosts] = enter - self._layer[hosts] * self._cuts[i]
        run = self._cuts[i + 1] - self._cuts[: i + 1]
        too_long = run[:, None] > self._longest[hosts]
        known = np.where(too_long[:, None, :], np.inf, self._entered[: i + 1][:, :, hosts])
        cost: Floats = known.min(axis=0) + self._layer[hosts] * self._cuts[i + 1]
        return cost


@dataclass(frozen=True, slots=True)
class Paths:
    """The cheapest chains from every start."""

    network: Network
    prices: Prices
    ends: Floats
    """(T, H of the last segment): the least cost that ends there."""
    entered: Sequence[Floats]
    """Per segment (T, H): the least cost of entering it there, its overhead included."""
    left: Sequence[Floats]
    """Per segment (T, H of the one before): the least cost of leaving that one there."""

    def walk_back(self, row: int, end: int, spread: int) -> tuple[Run, ...]:
        """Of the cheapest chains from start `row` to the last segment's `end`-th host, one by `spread`."""
        segments, cuts = self.network.segments, self.network.cuts
        runs: list[Run] = []
        at, chosen = len(segments) - 1, end
        while True:
            entry, there = self._entry(row, at, chosen)
            segment = segments[entry]
            runs.append(Run(int(segment.hosts[there]), cuts[entry], cuts[at + 1]))
            if entry == 0:
                return tuple(runs[::-1])
            before = segments[entry - 1]
            ways = self.left[entry][row] + self.prices.hops[entry - 1][before.group, segment.group[there]]
            if (own := int(segment.before[there])) >= 0:
                ways[own] = np.inf
            at, chosen = entry - 1, among(ways, spread)

    def _entry(self, row: int, at: int, chosen: int) -> tuple[int, int]:
        """Where the run that ends with segment `at` began: at the first of equally good ones."""
        segments, cuts = self.network.segments, self.network.cuts
        host = int(segments[at].hosts[chosen])
        longest = np.inf if self.prices.longest is None else self.prices.longest[host]
        best, found = np.inf, (at, chosen)
        k, here = at, chosen
        while here >= 0 and (cuts[at + 1] - cuts[k] <= longest or k == at):
            cost = self.entered[k][row, here] + self.prices.layer[host] * (cuts[at + 1] - cuts[k])
            if cost <= best * (1 + TIE):
                best, found = min(best, cost), (k, here)
            k, here = k - 1, int(segments[k].before[here]) if k > 0 else -1
        return found


def among(costs: Floats, spread: int) -> int:
    """One of the cheapest, by the request's spread."""
    least = float(costs.min())
    cheapest: Indices = np.flatnonzero(costs <= least + abs(least) * TIE)
    return int(cheapest[spread % len(cheapest)])
