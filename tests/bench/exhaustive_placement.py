"""The best plan of a small pool by trying all: any nodes in any order, any split of the layers, any disjoint chains.

It shares no code with the search but the time of one chain, which is tested against `node.plan.chain_time`. What it
tells is never less than the best: of each set of nodes the least time and the most tokens per second are taken
together, though no single chain of these nodes may have both.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, permutations

import numpy as np

from node.plan.objectives import Goal, together
from node.plan.placement.chains import timed, user_levels
from node.plan.placement.pool_table import PoolTable

Best = tuple[float, list[float]]
"""Of one set of nodes: the least time, and the most tokens per second of 1, 2, 4, … users."""
AT_ONCE = 20_000


def best_of_sets(table: PoolTable, most: int) -> dict[int, Best]:
    """By set of at most `most` nodes (a bit per row of the table)."""
    found: dict[int, Best] = {}
    for size in range(1, min(most, len(table.nodes), table.layers) + 1):
        splits = np.array(list(_splits(table.layers, size)), dtype=np.int64)
        for nodes in combinations(range(len(table.nodes)), size):
            orders = np.array(list(permutations(nodes)), dtype=np.int64)
            least, rates = float("inf"), np.zeros(len(user_levels(table.workload.users)))
            step = max(1, AT_ONCE // len(splits))
            for at in range(0, len(orders), step):
                some = orders[at : at + step]
                rows, counts = np.repeat(some, len(splits), axis=0), np.tile(splits, (len(some), 1))
                batch = timed(table, rows, counts, np.ones(len(rows), dtype=bool))
                if batch.ok.any():
                    least = min(least, float(batch.token_ms[batch.ok].min()))
                    rates = np.maximum(rates, batch.rates[batch.ok].max(axis=0))
            if least < float("inf"):
                found[sum(1 << node for node in nodes)] = least, rates.tolist()
    return found


def best_score(table: PoolTable, goal: Goal, sets: dict[int, Best]) -> float:
    """No plan of disjoint chains scores higher."""
    levels = user_levels(table.workload.users)
    if goal.speed_weight == 1:
        return max((1000 / least for least, _ in sets.values()), default=0.0)
    curves = {chosen: tuple(zip(levels, rates, strict=True)) for chosen, (_, rates) in sets.items()}
    best = 0.0
    for chosen in _disjoint(sorted(sets), 0):
        if chosen:
            alone = 1000 / min(sets[each][0] for each in chosen)
            best = max(best, goal.mix(alone, together((curves[each] for each in chosen), levels[-1])))
    return best


def _splits(layers: int, parts: int) -> Iterator[tuple[int, ...]]:
    if parts == 1:
        yield (layers,)
        return
    for first in range(1, layers - parts + 2):
        for rest in _splits(layers - first, parts - 1):
            yield (first, *rest)


def _disjoint(sets: list[int], used: int) -> Iterator[list[int]]:
    yield []
    for i, each in enumerate(sets):
        if not each & used:
            for rest in _disjoint(sets[i + 1 :], used | each):
                yield [each, *rest]
