"""Gives layers that nobody holds any more to those who have to load least for them.

First by a greedy rule: of what can be loaded for the first gap a node takes most of it, a neighbour that stretches
before an idle node, and that before a replica that moves. In a pool of up to EXACT_NODES nodes a depth-first search
then looks for fewer bytes where there may be any: what is loaded so far, and what must be for the layers that are still
uncovered, is never more than the best patch so far.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from node.plan.allocation import Allocation, Stage
from node.plan.pool import Pool, PoolNode
from node.plan.routing import Host, uncovered
from node.plan.stage_time import layer_capacity

EXACT_NODES = 12
MOST_TRIES = 60_000
"""Ranges that the search tries; beyond that it settles for the best patch so far."""

Layout = dict[str, Stage]


def patched(plan: Allocation, kept: Sequence[Stage], pool: Pool) -> list[Stage]:
    """`kept`, with the layers that nobody holds given to whoever has to load least for them, pins as they are set.

    Layers that no patch gives to anybody stay uncovered.
    """
    layout = {stage.node_id: stage for stage in kept}
    for node in pool.nodes:
        if node.pinned is not None and not node.barred and node.pinned[1] <= plan.layers:
            layout[node.node_id] = Stage(node.node_id, *node.pinned)
    free = [node for node in pool.nodes if not node.barred and node.pinned is None]
    found = _greedy(plan, layout, free)
    if len(free) <= EXACT_NODES:
        found = _Search(plan, layout, free).better_than(found)
    return list(found.values())


def room_for_layers(plan: Allocation, node: PoolNode, *, first: bool, last: bool) -> int:
    """Layers that fit on `node`, with the ends named."""
    context = min(plan.workload.context, plan.model.context_tokens)
    return layer_capacity(plan.model, node.memory_bytes, first=first, last=last, context=context)


def first_gap(layers: int, stages: Iterable[Stage]) -> tuple[int, int] | None:
    """The first layers that nobody holds."""
    return uncovered(layers, [Host(s.node_id, s.start, s.end, 1.0) for s in stages])


def _greedy(plan: Allocation, layout: Layout, free: Sequence[PoolNode]) -> Layout:
    layout = dict(layout)
    while (gap := first_gap(plan.layers, layout.values())) is not None:
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
        most = room_for_layers(plan, node, first=start == 0, last=False)
        stop = min(end, start + most)
        if stop == plan.layers:
            stop = start + min(stop - start, room_for_layers(plan, node, first=start == 0, last=True))
        return [(1, Stage(node.node_id, start, stop))] if stop > start else []
    offers = []
    if held.end == start:
        most = room_for_layers(plan, node, first=held.start == 0, last=False)
        stop = min(end, held.start + most)
        if stop == plan.layers:
            stop = min(stop, held.start + room_for_layers(plan, node, first=held.start == 0, last=True))
        if stop > held.end:
            offers.append((0, Stage(node.node_id, held.start, stop)))
    if held.start == end:
        most = room_for_layers(plan, node, first=start == 0, last=held.end == plan.layers)
        begin = max(start, held.end - most)
        if begin < held.start and (begin > 0 or held.layers + begin <= most):
            offers.append((0, Stage(node.node_id, begin, held.end)))
    others = [s for s in stages.values() if s.node_id != node.node_id]
    hosts = [Host(s.node_id, s.start, s.end, 1.0) for s in others]
    if not offers and _covered(hosts, held):
        moved = _offers(plan, node, {s.node_id: s for s in others}, start, end)
        offers += [(2, stage) for _, stage in moved]
    return offers


def _covered(hosts: Sequence[Host], held: Stage) -> bool:
    """Whether others hold all of `held`."""
    return all(any(h.start <= layer < h.end for h in hosts) for layer in range(held.start, held.end))


class _Search:
    """For the patch that loads the fewest bytes."""

    def __init__(self, plan: Allocation, layout: Layout, free: Sequence[PoolNode]) -> None:
        self._plan, self._layout = plan, layout
        self._free = sorted(free, key=lambda node: node.node_id)
        names = {node.node_id for node in free}
        self._loaded = {stage.node_id: stage for stage in plan.stages() if stage.node_id in names}
        """What is there already, also where it cannot stay as it is."""
        self._sizes = [plan.model.range_bytes(layer, layer + 1) for layer in range(plan.layers)]
        self._sums = [0, *accumulate(self._sizes)]
        stray = [stage for node, stage in self._loaded.items() if node not in layout]
        self._at_hand = {layer for stage in stray for layer in range(stage.start, stage.end)}
        """Layers that may cost nothing."""
        self._tries = 0
        self._best: Layout = {}
        self._fewest = float("inf")

    def better_than(self, found: Layout) -> Layout:
        """A layout that covers all layers and for which fewer bytes are loaded than for `found`; else that one."""
        self._best = found
        if first_gap(self._plan.layers, found.values()) is None:
            self._fewest = sum(self._bytes_to_load(node.node_id, found.get(node.node_id)) for node in self._free)
        self._descend(self._layout, frozenset(), 0)
        return self._best

    def _descend(self, layout: Layout, moved: frozenset[str], spent: int) -> None:
        """Try every range of every node that is not `moved` yet for the first layer that nobody holds."""
        gap = first_gap(self._plan.layers, layout.values())
        if gap is None:
            self._best, self._fewest = layout, spent
            return
        options = [
            (least, node.node_id, stage)
            for node in self._free
            if node.node_id not in moved
            for stage, least in self._ranges(layout, node, gap[0], spent)
        ]
        for least, name, stage in sorted(options, key=lambda option: (*option[:2], option[2].start, option[2].end)):
            if least >= self._fewest or self._tries > MOST_TRIES:
                break
            self._descend({**layout, name: stage}, moved | {name}, spent + self._bytes_to_load(name, stage))

    def _ranges(self, layout: Layout, node: PoolNode, layer: int, spent: int) -> Iterator[tuple[Stage, float]]:
        """What `node` can hold with `layer` in it, and the fewest bytes of any patch in which it does."""
        layers = self._plan.layers
        others = Counter(i for s in layout.values() if s.node_id != node.node_id for i in range(s.start, s.end))
        needed = [0 if others[i] or i in self._at_hand else size for i, size in enumerate(self._sizes)]
        sums = [0, *accumulate(needed)]
        room = {
            (first, last): room_for_layers(self._plan, node, first=first, last=last)
            for first in (False, True)
            for last in (False, True)
        }
        for start in range(max(0, layer + 1 - room[False, False]), layer + 1):
            for end in range(layer + 1, min(layers, start + room[start == 0, False]) + 1):
                if end - start > room[start == 0, end == layers]:
                    continue
                self._tries += 1
                stage = Stage(node.node_id, start, end)
                least = spent + self._bytes_to_load(node.node_id, stage) + sums[-1] - sums[end] + sums[start]
                if least < self._fewest:
                    yield stage, least

    def _bytes_to_load(self, name: str, stage: Stage | None) -> int:
        if stage is None:
            return 0
        loaded = self._loaded.get(name, stage)
        start, end = max(loaded.start, stage.start), min(loaded.end, stage.end)
        there = self._sums[end] - self._sums[start] if name in self._loaded and start < end else 0
        return self._sums[stage.end] - self._sums[stage.start] - there
