"""Gives layers that nobody holds any more to those who have to load least for them.

First by a greedy rule: of what can be loaded for the first gap a node takes most of it, a neighbour that stretches
before an idle node, and that before a replica that moves. In a pool of up to EXACT_NODES nodes a depth-first search
then looks for fewer bytes where there may be any: what is loaded so far, and what must be for the layers that are still
uncovered, is never more than the best patch so far.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate

from node.plan.machines.pool import Pool, PoolNode
from node.plan.placement.allocation import Allocation, Stage
from node.plan.routing.router import uncovered

EXACT_NODES = 12
MOST_EFFORT = 20_000
"""Layers and ranges that the search looks at, some 150 ms; beyond that it settles for the best patch so far."""

Layout = dict[str, Stage]


def patched(plan: Allocation, kept: Sequence[Stage], pool: Pool, *, without: str = "") -> list[Stage]:
    """`kept`, with the layers that nobody holds given to whoever has to load least for them, pins as they are set.

    Layers that no patch gives to anybody stay uncovered. `without`: a node that is to take none of them.
    """
    layout = {stage.node_id: stage for stage in kept}
    for node in pool.nodes:
        if node.pinned is not None and not node.barred and node.pinned[1] <= plan.layers:
            layout[node.node_id] = Stage(node.node_id, *node.pinned)
    free = [node for node in pool.nodes if not node.barred and node.pinned is None and node.node_id != without]
    found = _greedy(plan, layout, free)
    if len(free) <= EXACT_NODES:
        found = _Search(plan, layout, free).better_than(found)
    return list(found.values())


def has_room(plan: Allocation, node: PoolNode, start: int, end: int) -> bool:
    """Whether layers [start, end) fit on `node` with the workload's KV cache."""
    context = min(plan.workload.context, plan.model.context_tokens)
    cache = (end - start) * plan.model.kv_layer_bytes(context)
    return plan.model.range_bytes(start, end) + cache <= node.memory_bytes


def _furthest(plan: Allocation, node: PoolNode, start: int, limit: int) -> int:
    """The largest end up to `limit` of a range from `start` that fits; `start` where none does."""
    ends = range(start + 1, limit + 1)
    return start + bisect_left(ends, True, key=lambda end: not has_room(plan, node, start, end))


def _earliest(plan: Allocation, node: PoolNode, end: int, limit: int) -> int:
    """The smallest start down to `limit` of a range up to `end` that fits; `end` where none does."""
    starts = range(end - 1, limit - 1, -1)
    return end - bisect_left(starts, True, key=lambda start: not has_room(plan, node, start, end))


def _greedy(plan: Allocation, layout: Layout, free: Sequence[PoolNode]) -> Layout:
    layout = dict(layout)
    while (gap := uncovered(plan.layers, layout.values())) is not None:
        start, end = gap
        best: tuple[int, int, str, Stage] | None = None
        for node in free:
            for rank, stage in _offers(plan, node, layout, start, end):
                covers = min(stage.end, end) - max(stage.start, start)
                offer = (rank, -covers, node.node_id, stage)
                if covers > 0 and (best is None or offer[:3] < best[:3]):
                    best = offer
        if best is None:
            break
        layout[best[2]] = best[3]
    return layout


def _offers(plan: Allocation, node: PoolNode, stages: Layout, start: int, end: int) -> list[tuple[int, Stage]]:
    """What `node` could hold of [start, end), by rank: stretched from its own, taken while idle, moved as a replica."""
    held = stages.get(node.node_id)
    if held is None:
        stop = _furthest(plan, node, start, end)
        return [(1, Stage(node.node_id, start, stop))] if stop > start else []
    offers = []
    if held.end == start and (stop := _furthest(plan, node, held.start, end)) > held.end:
        offers.append((0, Stage(node.node_id, held.start, stop)))
    if held.start == end and (begin := _earliest(plan, node, held.end, start)) < held.start:
        offers.append((0, Stage(node.node_id, begin, held.end)))
    others = [s for s in stages.values() if s.node_id != node.node_id]
    if not offers and _covered(others, held):
        moved = _offers(plan, node, {s.node_id: s for s in others}, start, end)
        offers += [(2, stage) for _, stage in moved]
    return offers


def _covered(others: Sequence[Stage], held: Stage) -> bool:
    """Whether others hold all of `held`."""
    return all(any(other.start <= layer < other.end for other in others) for layer in range(held.start, held.end))


class _Search:
    """For the patch that loads the fewest bytes."""

    def __init__(self, plan: Allocation, layout: Layout, free: Sequence[PoolNode]) -> None:
        self._plan, self._layout = plan, layout
        self._free = sorted(free, key=lambda node: node.node_id)
        names = {node.node_id for node in free}
        self._loaded = {stage.node_id: stage for stage in plan.stages() if stage.node_id in names}
        """What is there already, also where it cannot stay as it is."""
        self._least_sizes = [plan.model.range_bytes(layer, layer + 1) for layer in range(plan.layers)]
        if plan.model.tied and plan.layers > 1:  # the head costs nothing where the embedding is
            self._least_sizes[-1] -= plan.model.embedding_bytes
        stray = [stage for node, stage in self._loaded.items() if node not in layout]
        self._at_hand = {layer for stage in stray for layer in range(stage.start, stage.end)}
        """Layers that may cost nothing."""
        self._effort = 0
        self._best: Layout = {}
        self._fewest = float("inf")

    def better_than(self, found: Layout) -> Layout:
        """A layout that covers all layers and for which fewer bytes are loaded than for `found`; else that one."""
        self._best = found
        if uncovered(self._plan.layers, found.values()) is None:
            self._fewest = sum(self._bytes_to_load(node.node_id, found.get(node.node_id)) for node in self._free)
        self._descend(self._layout, frozenset(), 0)
        return self._best

    def _descend(self, layout: Layout, moved: frozenset[str], spent: int) -> None:
        """Try every range of every node that is not `moved` yet for the first layer that nobody holds."""
        gap = uncovered(self._plan.layers, layout.values())
        if gap is None:
            self._best, self._fewest = layout, spent
            return
        hosts = Counter(layer for stage in layout.values() for layer in range(stage.start, stage.end))
        options = [
            (least, node.node_id, stage)
            for node in self._free
            if node.node_id not in moved and self._effort < MOST_EFFORT
            for stage, least in self._ranges(hosts, layout.get(node.node_id), node, gap[0], spent)
        ]
        for least, name, stage in sorted(options, key=lambda option: (*option[:2], option[2].start, option[2].end)):
            if least >= self._fewest:
                break
            self._descend({**layout, name: stage}, moved | {name}, spent + self._bytes_to_load(name, stage))

    def _ranges(
        self, hosts: Counter[int], own: Stage | None, node: PoolNode, layer: int, spent: int
    ) -> Iterator[tuple[Stage, float]]:
        """What `node` can hold with `layer` in it, and the fewest bytes of any patch in which it does."""
        layers = self._plan.layers
        mine = range(own.start, own.end) if own is not None else range(0)
        needed = (
            0 if i in self._at_hand or hosts[i] > (i in mine) else size for i, size in enumerate(self._least_sizes)
        )
        sums = [0, *accumulate(needed)]
        self._effort += layers
        for start in range(_earliest(self._plan, node, layer + 1, 0), layer + 1):
            for end in range(layer + 1, _furthest(self._plan, node, start, layers) + 1):
                self._effort += 1
                stage = Stage(node.node_id, start, end)
                least = spent + self._bytes_to_load(node.node_id, stage) + sums[-1] - sums[end] + sums[start]
                if least < self._fewest:
                    yield stage, least

    def _bytes_to_load(self, name: str, stage: Stage | None) -> int:
        if stage is None:
            return 0
        model, there = self._plan.model, self._loaded.get(name)
        size = model.range_bytes(stage.start, stage.end)
        if there is None:
            return size
        start, end = max(there.start, stage.start), min(there.end, stage.end)
        return size - model.range_bytes(start, end) if start < end else size
