"""The cheapest chain for one request, over prices that its prompt, its answer and the nodes' load give.

Two parts of the cost are no sum over stages. *The way back* depends on both ends: a first search charges every first
stage the shortest way from any tail, which bounds what each tail can do; for the tails that this leaves, another search
charges their own. *The slowest stage* of a long prompt: searches whose stages and links may take no longer for a chunk
than a bound, which falls until nothing better can come. Both end when a chain is proven CLOSE to the best.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from node.plan.chain_time import CHUNK_TOKENS, ChainTime, StageTime
from node.plan.machines.pool import Workload
from node.plan.routing.ground import Ground
from node.plan.routing.hosts import Host, Request
from node.plan.routing.segments import Floats
from node.plan.routing.shortest_paths import TIE, Barred, Network, Paths, Prices, Run, among

CLOSE, CLOSE_AMONG_MANY = 2e-3, 5e-3
"""A chain that is proven to cost at most this fraction more than the best one is taken."""
SEARCHES, FEW_SEARCHES = 16, 4
"""For one long prompt at most, each bounding the slowest stage; few among MANY hosts, where one takes a millisecond."""
MOST_BARRINGS = 5
LEAST_PACE = 1e-3
"""Of the slowest stage's time: what is faster than that decides nothing."""
NARROW = 1.05
"""Bounds so near one another are not halved."""
MANY = 64
"""Among fewer the way back is charged exactly, whatever that takes."""
TAILS = 4
"""Among MANY hosts, whose way back is charged exactly: those that may be best."""
ROWS = 2**20
"""Numbers in one step of a search over several tails."""


@dataclass(frozen=True, slots=True)
class Found:
    """A chain and what it costs per output token, the price of parts included."""

    runs: tuple[Run, ...]
    cost: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What hosts cost a request, per output token; R hosts."""

    layer: Floats
    """(R,): per layer: a decode step, and the first chunk's share."""
    chunk_layer: Floats
    """(R,): ms per layer for a whole chunk, load counted."""
    overhead: Floats
    """(R,): ms per visit; infinite where a host may not be used."""
    head: Floats
    """(R,): ms of the LM head, for ending there."""
    edge: float
    """For beginning or ending a run inside a held range."""


class Search:
    """One request's, on one ground."""

    def __init__(
        self, network: Network, hosts: Sequence[Host], figures: Figures, ground: Ground, request: Request
    ) -> None:
        self._network, self._hosts, self._figures, self._ground = network, hosts, figures, ground
        self._request = request
        self._close = CLOSE if len(hosts) <= MANY else CLOSE_AMONG_MANY
        self.work = Workload(max(1, request.prompt_tokens), max(1, request.output_tokens))
        self._first, self._last = network.segments[0], network.segments[-1]
        to_first, to_head = ground.ends_of(request.head)
        self._start = (to_first * request.once)[self._first.hosts]
        self._end = (figures.head + to_head * request.once)[self._last.hosts]
        self._hops = ground.hops(request.sent_bytes)
        self._back = ground.back_ms * (1 - request.once) if request.once < 1 else np.zeros_like(ground.back_ms)

    def best(self) -> Found | None:
        """The cheapest chain, or nearly; None where there is none along these ways."""
        found = self._least_sum(self._prices(()))
        more = max(0.0, self._request.prompt_tokens / CHUNK_TOKENS - 1) * self._request.once
        if found is None or more == 0:
            return found
        return self._paced(found, more)

    def _prices(self, barred: tuple[Barred, ...]) -> Prices:
        figures = self._figures
        return Prices(figures.layer, figures.overhead, figures.edge, self._hops, None, barred)

    def _paced(self, found: Found, more: float) -> Found:
        """Likewise with `more` chunks that wait for the slowest stage or link; `found` is cheapest without them.

        Where a node comes twice it works for both stages, which the search does not see: then it looks for chains as
        well in which that node comes in an earlier or in a later one of the two places only.
        """
        best, small = self._timed(found)[0], self._network.hosts <= MANY
        left = SEARCHES if small else FEW_SEARCHES
        barrings: list[tuple[Barred, ...]] = [()]
        for barred in barrings:
            if left <= 0:
                break
            start = self._least_sum(self._prices(barred), best.cost) if barred else found
            left -= 1
            if start is None:
                continue
            for chain in self._ever_faster(start, more, barred, best, left):
                left -= 1
                if chain.cost < best.cost:
                    best = chain
                if small and len(barred) < 2 and len(barrings) < MOST_BARRINGS:
                    barrings += [(*barred, bar) for bar in self._not_twice(chain.runs)]
        return self._with_fewer_stages(best)

    def _ever_faster(
        self, start: Found, more: float, barred: tuple[Barred, ...], best: Found, searches: int
    ) -> Iterator[Found]:
        """Chains that may be the best, with their true cost: each the cheapest whose slowest stage is below some bound.

        `start` is the cheapest without a bound. Those whose slowest stage takes between two bounds cost at least the
        sum found for the upper and the pace of the lower one: the most promising gap is looked into first.
        """
        timed, slowest = self._timed(start)
        yield timed
        cost = min(best.cost, timed.cost)
        least = max(self._least_pace_ms(), slowest * LEAST_PACE)
        gaps = [(start.cost + more * least, least, slowest, start.cost, False)]
        while gaps and searches > 0:
            at_least, lower, upper, least_sum, halve = heapq.heappop(gaps)
            if at_least >= cost * (1 - self._close) or upper <= lower:
                break
            halve = halve and upper > NARROW * lower
            bound = math.sqrt(lower * upper) if halve else upper * (1 - 1e-9)
            found = self._least_sum(self._held_to(bound, barred), cost - more * lower)
            searches -= 1
            if halve:
                heapq.heappush(gaps, (least_sum + more * bound, bound, upper, least_sum, False))
            if found is not None:
                timed, slowest = self._timed(found)
                yield timed
                cost = min(cost, timed.cost)
                heapq.heappush(gaps, (found.cost + more * lower, lower, min(bound, slowest), found.cost, not halve))

    def _not_twice(self, runs: Sequence[Run]) -> Iterator[Barred]:
        """Of the first node that comes twice: none of it later than its first run, or none before its last."""
        hosts, cuts = self._hosts, self._network.cuts
        by_node: dict[str, list[Run]] = {}
        for run in runs:
            by_node.setdefault(hosts[run.host].node_id, []).append(run)
        for visits in by_node.values():
            if len(visits) > 1:
                yield Barred(visits[-1].host, cuts.index(visits[0].start) + 1, len(cuts))
                yield Barred(visits[0].host, 0, cuts.index(visits[-1].start))
                return

    def _with_fewer_stages(self, best: Found) -> Found:
        """A stage's layers to one of its neighbours, as long as that helps: a node that comes twice is slower for a
        prompt than the search can see."""
        while len(best.runs) > 1:
            least = min((self._timed(Found(runs, 0.0))[0] for runs in self._merged(best.runs)), default=best, key=_cost)
            if least.cost >= best.cost:
                break
            best = least
        return best

    def _merged(self, runs: Sequence[Run]) -> Iterator[tuple[Run, ...]]:
        hosts = self._hosts
        for i, (a, b) in enumerate(pairwise(runs)):
            if b.end <= hosts[a.host].end:
                yield _joined((*runs[:i], Run(a.host, a.start, b.end), *runs[i + 2 :]))
            if a.start >= hosts[b.host].start:
                yield _joined((*runs[:i], Run(b.host, a.start, b.end), *runs[i + 2 :]))

    def time(self, runs: Sequence[Run]) -> ChainTime:
        """A chain's times, load counted."""
        stages = []
        for i, run in enumerate(runs):
            host, layers = self._hosts[run.host], run.end - run.start
            slower = host.slower * layers
            head_ms = host.head_ms if i == len(runs) - 1 else 0.0
            stages.append(
                StageTime(
                    slower * host.layer_ms,
                    slower * max(host.layer_ms, host.chunk_layer_ms),
                    host.overhead_ms,
                    head_ms,
                    node=host.node_id,
                )
            )
        ground = self._ground
        hops = [ground.hop(run.host, runs[(i + 1) % len(runs)].host) for i, run in enumerate(runs)]
        to_first, to_head = ground.ends_of(self._request.head)
        ends = float(to_first[runs[0].host]), float(to_head[runs[-1].host])
        return ChainTime(stages, hops, self._request.hop_bytes, *ends)

    def _timed(self, found: Found) -> tuple[Found, float]:
        """With its true cost; and what its slowest stage or link takes for a chunk."""
        chain, hosts = self.time(found.runs), self._hosts
        inside = sum((run.start > hosts[run.host].start) + (run.end < hosts[run.host].end) for run in found.runs)
        return Found(found.runs, chain.token_ms(self.work) + self._figures.edge * inside), chain.slowest_ms()

    def _least_pace_ms(self) -> float:
        """What the slowest stage of every chain takes for a chunk at least: the layer that is slow everywhere."""
        figures = self._figures
        return self._network.slowest_layer(figures.chunk_layer + figures.overhead)

    def _held_to(self, bound_ms: float, barred: tuple[Barred, ...]) -> Prices:
        """No stage and no link may take longer for a chunk."""
        figures = self._figures
        spare = bound_ms - figures.overhead
        longest = np.where(spare >= 0, np.inf, 0.0)
        np.divide(spare * (1 + 1e-12), figures.chunk_layer, out=longest, where=figures.chunk_layer > 0)
        blocked = self._ground.blocked(bound_ms / max(self._request.hop_bytes * CHUNK_TOKENS, 1e-300))
        hops = [hop + never for hop, never in zip(self._hops, blocked, strict=True)]
        return Prices(figures.layer, figures.overhead, figures.edge, hops, longest, barred)

    def _least_sum(self, prices: Prices, below: float = np.inf) -> Found | None:
        """The cheapest chain by what adds up over its stages; None where all cost `below` or more."""
        network, last = self._network, self._last
        nearest = self._back.min(axis=0)[self._first.group]
        paths = network.paths(self._starts(self._start + nearest), prices)
        ends = paths.ends[0] + self._end
        least = float(ends.min())
        if not least < below:
            return None
        chosen = among(ends, self._request.spread)
        runs = _joined(paths.walk_back(0, chosen, self._request.spread))
        first = int(np.flatnonzero(self._first.hosts == runs[0].host)[0])
        back = float(self._back[last.group[chosen], self._first.group[first]])
        real = float(ends[chosen]) - float(nearest[first]) + back
        if real <= least * (1 + (CLOSE_AMONG_MANY if network.hosts > MANY else TIE)):
            return Found(runs, real)
        found = self._by_tail(prices, ends, min(real, below))
        return Found(runs, real) if found is None and real < np.inf else found

    def _by_tail(self, prices: Prices, ends: Floats, below: float) -> Found | None:
        """The cheapest chain whose way back is charged as it is, where one costs less than `below`.

        `ends` is what each tail costs at least.
        """
        last, first = self._last, self._first
        bounds = ends if last.firsts is None else np.minimum.reduceat(ends, last.firsts)
        order = [int(place) for place in np.argsort(bounds, kind="stable") if bounds[place] < below]
        rows = max(1, ROWS // max(hops.size for hops in (*self._hops, self._back)))
        tolerance = TIE
        if self._network.hosts > MANY:
            del order[TAILS:]
            tolerance = -self._close
        final = np.full(len(ends), np.inf)
        walks: dict[int, tuple[Paths, int]] = {}
        for begin in range(0, len(order), rows):
            places = [
                place for place in order[begin : begin + rows] if bounds[place] <= float(final.min()) * (1 + tolerance)
            ]
            if not places:
                break
            paths = self._network.paths(self._starts(self._start + self._back[places][:, first.group]), prices)
            for row, place in enumerate(places):
                own = last.group == place
                final[own] = paths.ends[row][own] + self._end[own]
                walks[place] = paths, row
        if not final.min() < below:
            return None
        chosen = among(final, self._request.spread)
        paths, row = walks[int(last.group[chosen])]
        return Found(_joined(paths.walk_back(row, chosen, self._request.spread)), float(final[chosen]))

    def _starts(self, costs: Floats) -> Floats:
        """(T, R) from (T, H) or (H,) of the first segment."""
        rows = np.atleast_2d(costs)
        starts = np.full((len(rows), self._network.hosts), np.inf)
        starts[:, self._first.hosts] = rows
        return starts


def _cost(found: Found) -> float:
    return found.cost


def _joined(runs: Sequence[Run]) -> tuple[Run, ...]:
    """Neighbouring runs of one host as one: a bound on runs makes it no other node."""
    joined: list[Run] = []
    for run in runs:
        if joined and joined[-1].host == run.host:
            joined[-1] = Run(run.host, joined[-1].start, run.end)
        else:
            joined.append(run)
    return tuple(joined)
