"""Chains as pipelines of ranges, near to what nodes hold: of plans that are as good, the one that moves least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from node.plan.objectives import Goal
from node.plan.placement.allocation import Pipeline, Stage
from node.plan.placement.chains import Chain, as_rows, chain_of_counts, fits, shared_out
from node.plan.placement.evaluate import pipeline_of
from node.plan.placement.pool_table import PoolTable, interchangeable

REORDER = 0.03
"""A chain may be worth this much less for its nodes to keep the ranges, or the order, in which they hold layers now."""


def realised(table: PoolTable, goal: Goal, chains: Sequence[Chain], held: Mapping[str, Stage]) -> list[Pipeline]:
    """Each chain as a pipeline: of equal nodes the one that holds most of the range now, and of orders and splits that
    are worth nearly as much the one for which least is to be loaded. Timed as they are returned."""
    members = {
        node.node_id: [table.row_of[member.node_id] for member in group]
        for group in interchangeable(table.nodes, table.links)
        for node in group
    }
    taken: set[int] = set()
    pipelines = []
    for found in chains:
        chain = _nearest(table, goal, found, held) if held else found
        run, stages, start = [], [], table.start
        for row, layers in zip(chain.order, chain.counts, strict=True):
            end = start + layers
            alike = [other for other in members[table.nodes[row].node_id] if other not in taken]
            chosen = row
            if len(alike) > 1 or row in taken:
                chosen = min(alike, key=lambda r: (-_overlap(held.get(table.nodes[r].node_id), start, end), r))
            taken.add(chosen)
            name = table.nodes[chosen].node_id
            run.append((name, layers))
            stages.append(Stage(name, start, end))
            start = end
        pipelines.append(pipeline_of(table, run, stages))
    return pipelines


def _nearest(table: PoolTable, goal: Goal, chain: Chain, held: Mapping[str, Stage]) -> Chain:
    """Of this chain, its nodes in the order in which they hold layers, and the ranges as they are, what moves least."""
    stages = [held.get(table.nodes[row].node_id) for row in chain.order]
    known = [stage for stage in stages if stage is not None]
    if not known:
        return chain
    choices = [chain]
    places = {row: stage.start if stage else table.layers for row, stage in zip(chain.order, stages, strict=True)}
    order = sorted(chain.order, key=lambda row: (places[row], chain.order.index(row)))
    if len(known) == len(order):
        ranges = sorted(known, key=lambda stage: stage.start)
        counts = [stage.layers for stage in ranges]
        tiles = [stage.start for stage in ranges] == [table.start, *(stage.end for stage in ranges[:-1])]
        if tiles and ranges[-1].end == table.end and fits(table, order, counts):
            choices.append(chain_of_counts(table, order, counts))
    sequences = np.array([min(chain.sequences, 16), 1] * 2)
    counts_of, ok = shared_out(table, as_rows([order] * 4), np.array([True, True, False, False]), sequences)
    choices += [chain_of_counts(table, order, counts_of[i].tolist()) for i in range(4) if ok[i]]
    least = _worth(goal, chain) * (1 - REORDER)
    good = [choice for choice in choices if _worth(goal, choice) >= least and choice.sequences > 0]
    return min(good, key=lambda choice: (_moved(table, choice, held), -_worth(goal, choice)), default=chain)


def _worth(goal: Goal, chain: Chain) -> float:
    return goal.mix(1000 / chain.token_ms, chain.rates[-1])


def _moved(table: PoolTable, chain: Chain, held: Mapping[str, Stage]) -> int:
    """Layers to load."""
    moved, start = 0, table.start
    for row, layers in zip(chain.order, chain.counts, strict=True):
        moved += layers - _overlap(held.get(table.nodes[row].node_id), start, start + layers)
        start += layers
    return moved


def _overlap(stage: Stage | None, start: int, end: int) -> int:
    return max(0, min(stage.end, end) - max(stage.start, start)) if stage is not None else 0
