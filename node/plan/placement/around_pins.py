"""Pipelines around ranges set by hand: the pins stay where they are, free nodes fill what they leave open."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, permutations

from node.errors import BadLayers, DoesNotFit
from node.plan.costs.model import ModelCost
from node.plan.machines.pool import Links, PoolNode, Workload
from node.plan.objectives import Goal
from node.plan.placement.allocation import Pipeline, Stage
from node.plan.placement.evaluate import pipeline_of
from node.plan.placement.pool_table import PoolTable
from node.plan.placement.search import best_chains
from node.wire.layer_range import layer_range

GAP_EFFORT = 4000
"""Of the search for one gap's chain, in one order of filling the gaps."""
MOST_ORDERS = 6
"""Of filling the gaps."""
MOST_STATES = 3000
"""Ways to deal nodes to gaps that are looked at side by side."""

Gap = tuple[int, int]


def around_pins(
    model: ModelCost,
    pinned: Sequence[PoolNode],
    free: Sequence[PoolNode],
    links: Links,
    goal: Goal,
    workload: Workload,
) -> tuple[Pipeline, set[str]]:
    """One pipeline through pinned ranges, the gaps between them filled; and the ids of the nodes in it.

    Where pinned ranges overlap, the one that reaches furthest goes on. Overlapped layers are held twice and run once.

    Raises:
        BadLayers: a pinned range does not fit into its node.
        DoesNotFit: the free nodes cannot hold the gaps, in whatever way they are dealt to them.
    """
    for node in pinned:
        if problem := pin_problem(model, node, workload):
            assert node.pinned is not None
            raise BadLayers(layer_range(*node.pinned), problem)
    runs, gaps = _tiling(model.layers, pinned)
    everyone = PoolTable(model, [*pinned, *free], links, workload)
    held = {node.node_id: Stage(node.node_id, *node.pinned) for node in pinned if node.pinned is not None}

    def through(filled: Sequence[Stage]) -> Pipeline:
        stages = sorted([*runs, *filled], key=lambda stage: stage.start)
        run = [(stage.node_id, stage.layers) for stage in stages]
        return pipeline_of(everyone, run, [held.get(stage.node_id, stage) for stage in stages])

    filling = _Filling(model, gaps, free, links, goal, workload)
    pipelines = [through(filled) for filled in filling.in_some_orders()]
    if not pipelines:
        dealt = filling.dealt()
        if dealt is None:
            (start, end), missing = filling.too_large or (gaps[0], 1)
            raise DoesNotFit(f"{model.name}, layers {layer_range(start, end)} beside those set by hand,", missing)
        pipelines = [through(dealt)]
    best = max(pipelines, key=lambda pipeline: goal.score([pipeline], workload.users))
    return best, {stage.node_id for stage in best.stages}


class _Filling:
    """Fills gaps with chains of free nodes."""

    def __init__(
        self,
        model: ModelCost,
        gaps: Sequence[Gap],
        free: Sequence[PoolNode],
        links: Links,
        goal: Goal,
        workload: Workload,
    ) -> None:
        self._model, self._gaps, self._free = model, gaps, sorted(free, key=lambda node: node.node_id)
        self._links, self._goal, self._workload = links, goal, workload
        self.too_large: tuple[Gap, int] | None = None
        """A gap for which no nodes were left in some order, and the bytes that were missing."""

    def in_some_orders(self) -> list[list[Stage]]:
        """Each gap its best chain, first come first served, in several orders: those in which none goes empty."""
        found = []
        by_length = sorted(self._gaps, key=lambda gap: (gap[0] - gap[1], gap))
        for order in islice(permutations(by_length), MOST_ORDERS):
            left, stages = list(self._free), list[Stage]()
            for gap in order:
                chain = self._chain(gap, left)
                if chain is None:
                    break
                stages += chain
                taken = {stage.node_id for stage in chain}
                left = [node for node in left if node.node_id not in taken]
            else:
                found.append(stages)
        return found

    def dealt(self) -> list[Stage] | None:
        """Every gap some nodes that have the room, though none gets those that suit it best; None where none can be."""
        hands = self._deal()
        if hands is None:
            return None
        stages: list[Stage] = []
        for gap, hand in zip(self._gaps, hands, strict=True):
            chain = self._chain(gap, hand)
            if chain is None:
                return None
            stages += chain
        return stages

    def _chain(self, gap: Gap, nodes: Sequence[PoolNode]) -> list[Stage] | None:
        table = PoolTable(self._model, nodes, self._links, self._workload, gap)
        chains = best_chains(table, self._goal, GAP_EFFORT) if nodes else []
        if not chains:
            self.too_large = gap, max(1, table.missing_bytes)
            return None
        best = max(chains, key=lambda chain: self._goal.score([chain], self._workload.users))
        stages, start = [], gap[0]
        for row, layers in zip(best.order, best.counts, strict=True):
            stages.append(Stage(table.nodes[row].node_id, start, start + layers))
            start += layers
        return stages

    def _deal(self) -> list[list[PoolNode]] | None:
        """Nodes for each gap, by dynamic programming over the nodes: the layers that every gap still needs, and whether
        the model's ends have their nodes. Exact up to MOST_STATES ways."""
        State = tuple[tuple[int, ...], bool, bool]
        tables = [PoolTable(self._model, self._free, self._links, self._workload, gap) for gap in self._gaps]
        begins = [table.has_first for table in tables]
        finishes = [table.has_last for table in tables]
        start: State = (tuple(table.layers for table in tables), not any(begins), not any(finishes))
        ways: dict[State, tuple[tuple[int, str], ...]] = {start: ()}
        for node in sorted(self._free, key=lambda node: (-node.memory_bytes, node.node_id)):
            grown = dict(ways)
            for (need, begun, finished), dealt in ways.items():
                for g, table in enumerate(tables):
                    room = table.room(1)[table.row_of[node.node_id]].tolist()
                    roles = [(0, begun, finished)]
                    if begins[g] and not begun:
                        roles.append((1, True, finished))
                    if finishes[g] and not finished:
                        roles.append((2, begun, True))
                    if begins[g] and finishes[g] and not begun and not finished:
                        roles.append((3, True, True))
                    for kind, now_begun, now_finished in roles:
                        if need[g] and room[kind]:
                            rest = (*need[:g], max(0, need[g] - room[kind]), *need[g + 1 :])
                            grown.setdefault((rest, now_begun, now_finished), (*dealt, (g, node.node_id)))
            ways = dict(sorted(grown.items(), key=lambda way: (sum(way[0][0]), len(way[1]), way[0]))[:MOST_STATES])
            done = next((dealt for (need, b, f), dealt in ways.items() if b and f and not any(need)), None)
            if done is not None:
                by_id = {each.node_id: each for each in self._free}
                return [[by_id[name] for at, name in done if at == g] for g in range(len(tables))]
        return None


def pin_problem(model: ModelCost, node: PoolNode, workload: Workload) -> str:
    """Why a node cannot hold the range set by hand for it; empty where it can."""
    if node.pinned is None:
        return ""
    start, end = node.pinned
    if end > model.layers:
        return f"the model has {model.layers} layers"
    cache = (end - start) * model.kv_layer_bytes(min(workload.context, model.context_tokens))
    needed = model.range_bytes(start, end) + cache
    if needed <= node.memory_bytes:
        return ""
    gib = 1024**3
    return f"they take {needed / gib:.2f} GiB with their cache, {node.label} has {node.memory_bytes / gib:.2f} GiB"


def _tiling(layers: int, pinned: Sequence[PoolNode]) -> tuple[list[Stage], list[tuple[int, int]]]:
    """Which part of each pinned range runs, and the gaps."""
    ranges = sorted((node.pinned or (0, 0), node.node_id) for node in pinned)
    runs: list[Stage] = []
    gaps: list[tuple[int, int]] = []
    reached = 0
    while reached < layers:
        going = [(end, node_id) for (start, end), node_id in ranges if start <= reached < end]
        if going:
            end, node_id = max(going, key=lambda item: (item[0], [-ord(c) for c in item[1]]))
            runs.append(Stage(node_id, reached, end))
        else:
            end = min((start for (start, _), _ in ranges if start > reached), default=layers)
            gaps.append((reached, end))
        reached = end
    return runs, gaps
