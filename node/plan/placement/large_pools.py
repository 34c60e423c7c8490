"""Chains for pools too large to search: near nodes first, few stages, then the best number of chains by Z(k).

Places (regions, or single nodes where links name them) are joined into clusters at growing round trips. At each level
every cluster makes what whole chains it can of its own nodes and passes the rest on to the next level; so no chain
crosses an ocean while its own region could do. Inside a cluster a chain begins with the largest (or the fastest) node,
takes further ones while even the largest does not complete it, then the smallest that does. All is counts per class, so
a thousand nodes of sixteen kinds take as long as their chains are many. `upper_bound` tells how far off it can be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from node.plan.machines.distances import Described
from node.plan.machines.missing_memory import ends_that_fit
from node.plan.placement.chain import Chain, build_chain, hops_ms
from node.plan.placement.exact_search import best_partition, score_of, state_count
from node.plan.placement.pool_table import LARGE_BATCH, PoolTable

RINGS_MS = (3.0, 12.0, 40.0, 90.0, 250.0, float("inf"))
"""Round trips at which clusters grow."""
GENEROUS = (1.0, 1.3)
"""Times the bare layers that a chain gathers room for: what is left over holds more users' KV cache (throughput)."""
LARGER_IS_BETTER = 1.15
"""Larger chains must do this much more: smaller ones leave nodes over, which serve as replicas."""
PICKY_STATES = 96
"""States of the exhaustive search for the fastest chain among a large pool's most promising nodes."""


def good_partition(table: PoolTable) -> tuple[list[Chain], float]:
    """Disjoint chains, and the score that no choice exceeds."""
    builder = _Builder(table)
    best: list[Chain] = []
    generous = GENEROUS if table.objective == "throughput" else (1.0,)
    for spare, fastest_first in product(generous, (False, True)):
        chains = builder.all_chains(fastest_first, spare)
        picked = best_prefix(chains, table.objective)
        better = LARGER_IS_BETTER if spare > 1 else 1 + 1e-12
        if score_of(picked, table.objective) > score_of(best, table.objective) * better:
            best = picked
    if not best:
        best = _last_resort(table)
    if table.objective == "latency":
        best = _with_fastest(table, builder, best)
    return best, max(upper_bound(table), score_of(best, table.objective))


def _last_resort(table: PoolTable) -> list[Chain]:
    """A chain of whoever has room, wherever they are, where nothing better was found and one is possible."""
    order = [c for c, kind in enumerate(table.classes) for _ in kind.members]
    ends = ends_that_fit([table.classes[c].capacity for c in order], table.layers)
    if ends is None:
        return []
    first, last = ends
    chosen = [order[first]]
    if first != last:
        room = [kind.capacity[0] for kind in table.classes]
        need = table.layers - table.classes[order[first]].capacity[1] - table.classes[order[last]].capacity[2]
        for c in sorted((c for i, c in enumerate(order) if i not in ends), key=lambda c: (-room[c], c)):
            if need <= 0:
                break
            chosen.append(c)
            need -= room[c]
        chosen.append(order[last])
    chain = build_chain(table, chosen)
    return [chain] if chain is not None else []


def best_prefix(chains: list[Chain], objective: str) -> list[Chain]:
    """For balanced: the k fastest chains with the best Z(k). Else all, the fastest first."""
    ordered = sorted(chains, key=lambda chain: (chain.token_ms, chain.order))
    if objective != "balanced":
        return ordered
    best_k, best_z, total = 0, 0.0, 0.0
    for k, chain in enumerate(ordered, start=1):
        total += chain.token_ms
        if k * k / total > best_z * (1 + 1e-12):
            best_k, best_z = k, k * k / total
    return ordered[:best_k]


def places_of(table: PoolTable) -> tuple[list[list[int]], NDArray[np.float64]]:
    """Classes by place (a region, or a single node where links name it), and the round trips between places."""
    places: dict[object, list[int]] = {}
    for c, kind in enumerate(table.classes):
        single = kind.node.node_id in table.links.named
        places.setdefault((kind.node.region, kind.node.node_id if single else None), []).append(c)
    members = list(places.values())
    shown = [table.classes[own[0]].node for own in members]
    return members, Described(table.links).distances(shown).rtt_ms


def clusters(members: Sequence[list[int]], rtt_ms: NDArray[np.float64], ring_ms: float) -> list[list[int]]:
    """Classes whose places hang together by round trips of at most `ring_ms`, in order of their first place."""
    near = rtt_ms <= ring_ms
    near |= near.T
    np.fill_diagonal(near, True)
    first = np.arange(len(members))
    while True:  # every place takes the first one that any of its neighbours knows, until nobody learns anything
        known = np.where(near, first[None, :], len(members)).min(axis=1)
        known = known[known]
        if (known == first).all():
            break
        first = known
    joined: dict[int, list[int]] = {}
    for place, own in zip(first.tolist(), members, strict=True):
        joined.setdefault(place, []).extend(own)
    return list(joined.values())


class _Builder:
    """Makes chains of one table's classes. Equal choices give equal chains, so each is computed once."""

    def __init__(self, table: PoolTable) -> None:
        self.table = table
        self._built: dict[tuple[int, ...], Chain | None] = {}
        self._rings: list[list[list[int]]] = []
        members, rtt_ms = places_of(table)
        for ring_ms in RINGS_MS:
            grown = clusters(members, rtt_ms, ring_ms)
            if not self._rings or grown != self._rings[-1]:
                self._rings.append(grown)
            if len(grown) <= 1:
                break

    def all_chains(self, fastest_first: bool, spare: float) -> list[Chain]:
        """Whole chains from the inside of clusters outwards, until no cluster can make another."""
        left = [len(kind.members) if kind.room > 0 else 0 for kind in self.table.classes]
        return [chain for ring in self._rings for near in ring for chain in self._of(near, left, fastest_first, spare)]

    def _of(self, near: Sequence[int], left: list[int], fastest_first: bool, spare: float) -> Iterator[Chain]:
        classes = self.table.classes
        roomy = sorted(near, key=lambda c: (-classes[c].room, classes[c].layer_ms, c))
        eager = sorted(near, key=lambda c: (classes[c].layer_ms, -classes[c].room, c)) if fastest_first else roomy
        while True:
            if sum(left[c] * classes[c].room for c in near) < self.table.layers:
                return
            chain = self._next(roomy, eager, left, spare)
            if chain is None:
                return
            for c in chain.order:
                left[c] -= 1
            yield chain

    def _next(self, roomy: Sequence[int], eager: Sequence[int], left: Sequence[int], spare: float) -> Chain | None:
        """A chain from what is left; a node more than the bare capacities say when the ends need room."""
        free = list(left)
        chosen: list[int] = []
        need = math.ceil(self.table.layers * spare)
        while len(chosen) < self.table.layers:
            present = [c for c in eager if free[c]]
            if not present:
                return self._chain(chosen) if spare > 1 and chosen else None
            enough = [c for c in roomy if free[c] and self.table.classes[c].room >= need]
            taken = enough[-1] if enough and chosen else present[0]
            chosen.append(taken)
            free[taken] -= 1
            need -= self.table.classes[taken].room
            if need <= 0:
                chain = self._chain(chosen)
                if chain is not None:
                    return chain
                need = 1
        return None

    def _chain(self, chosen: Sequence[int]) -> Chain | None:
        key = tuple(sorted(chosen))
        if key not in self._built:
            self._built[key] = build_chain(self.table, self._ordered(key))
        return self._built[key]

    def _ordered(self, chosen: Sequence[int]) -> list[int]:
        """The tail is the fastest, for it has the head; the roomiest other begins; then always the nearest next."""
        classes = self.table.classes
        left = sorted(chosen, key=lambda c: (classes[c].layer_ms, c))
        if len(left) < 3:
            return left[::-1]
        tail = left.pop(0)
        first = max(left, key=lambda c: (classes[c].node.memory_bytes, -c))
        left.remove(first)
        order = [first]
        while left:
            nearest = min(left, key=lambda c: (self.table.hop_ms(order[-1], c), c))
            left.remove(nearest)
            order.append(nearest)
        placed = [*order, tail]
        moved = sorted(chosen, key=lambda c: (classes[c].node.region, classes[c].layer_ms, c))
        return moved if hops_ms(self.table, moved) < hops_ms(self.table, placed) - 1e-9 else placed


def _with_fastest(table: PoolTable, builder: _Builder, chains: list[Chain]) -> list[Chain]:
    """The exhaustive search's fastest chain among the fastest nodes, then those of `chains` that share none with it."""
    order = sorted(range(len(table.classes)), key=lambda c: (table.classes[c].layer_ms, c))
    kept: list[int] = []
    states = 1
    for c in order:
        room = table.classes[c].room
        if room < 1:
            continue
        members = min(len(table.classes[c].members), -(-table.layers // room))
        if states * (members + 1) > PICKY_STATES:
            continue
        states *= members + 1
        kept.append(c)
    nodes = [
        node for c in kept for node in table.classes[c].members[: -(-table.layers // max(1, table.classes[c].room))]
    ]
    last = table.model.layers if table.has_last else table.layers + (0 if table.has_first else 1)
    small = PoolTable(table.model, nodes, table.links, "latency", table.workload, (last - table.layers, last))
    if not nodes or state_count(small) > 4 * PICKY_STATES:
        return chains
    found, _ = best_partition(small)
    if not found or (chains and chains[0].token_ms <= found[0].token_ms):
        return chains
    of_member = {node.node_id: c for c, kind in enumerate(table.classes) for node in kind.members}
    fastest = build_chain(table, [of_member[small.classes[c].node.node_id] for c in found[0].order])
    if fastest is None:
        return chains
    left = [len(kind.members) for kind in table.classes]
    picked: list[Chain] = []
    for chain in [fastest, *chains]:
        if all(left[c] >= chain.order.count(c) for c in chain.order):
            picked.append(chain)
            for c in chain.order:
                left[c] -= 1
    return picked


def upper_bound(table: PoolTable) -> float:
    """A score that no choice of disjoint chains exceeds.

    k chains run k·L layers: not faster than on the fastest nodes' room, fractions and all; and they need at least as
    many nodes as the largest capacities say, each with at least the shortest hop.
    """
    kinds = [kind for kind in table.classes if kind.room > 0]
    layers = table.layers
    numbers = np.array([len(kind.members) for kind in kinds], dtype=np.float64)
    room = np.array([kind.room for kind in kinds], dtype=np.float64)
    if not kinds or float(numbers @ room) < layers:
        return 0.0
    if table.objective == "throughput":
        speeds = np.array([1 / kind.large_layer_ms for kind in kinds])
        return float(1000 * LARGE_BATCH * (numbers @ speeds) / layers)
    times = np.array([kind.layer_ms for kind in kinds])
    by_time, by_room = np.argsort(times, kind="stable"), np.argsort(-room, kind="stable")
    reach = np.concatenate([[0.0], np.cumsum((numbers * room)[by_time])])
    spent = np.concatenate([[0.0], np.cumsum((numbers * room * times)[by_time])])
    held = np.concatenate([[0.0], np.cumsum((numbers * room)[by_room])])
    nodes = np.concatenate([[0.0], np.cumsum(numbers[by_room])])
    most = int(reach[-1] // layers) if table.objective == "balanced" else 1
    k = np.arange(1, most + 1)
    alone = sum(len(kind.members) for kind in kinds if kind.capacity[3] >= layers)
    hops = np.maximum(0.0, np.ceil(np.interp(k * layers, held, nodes) - 1e-9) - np.minimum(k, alone))
    head = min(kind.head_ms for kind in kinds) if table.has_last else 0.0
    total = np.interp(k * layers, reach, spent) + k * head + hops * _shortest_hop(table)
    power = 2 if table.objective == "balanced" else 1
    return float((1000 * k.astype(np.float64) ** power / total).max())


def _shortest_hop(table: PoolTable) -> float:
    """A time that no hop undercuts: half the least known round trip."""
    known = [table.links.near_ms, table.links.far_ms, *table.links.rtt_ms.values()]
    return min(known) * table.links.trips
