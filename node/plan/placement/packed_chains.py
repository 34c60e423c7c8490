"""Plans of many short chains, as starts of the search: a chain that is best by itself uses nodes that two would need.

With few nodes every chain is looked at, and every way to choose disjoint ones. With more, nodes are packed by their
room as the paper's phase 1 does it: the roomiest first, then the least roomy one that completes the chain; once over
the whole pool, and once inside neighbourhoods (what is left of them over the pool), where the pool falls apart into
some.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, permutations

import numpy as np

from node.plan.placement.chains import as_rows
from node.plan.placement.worth import PlannedChain, Style, Worth

FEW_NODES = 5
"""With so many that have room every chain is looked at: 325, each with some rules for its layers."""
MOST_PACKED = 512
"""Nodes: of more it takes too long, and the search has enough other starts."""
MANY_NODES = 48
"""Among more of them KV room for all users is asked for, and no less tried."""
APART = 3.0
"""Neighbourhoods are so many times farther from one another than the farthest neighbours inside one."""
LEAST_WAY_MS = 0.5
"""Shorter ways are alike."""
SCORE_EFFORT = 15.0
"""Microseconds to score one plan."""


class PackedChains:
    """Of what `worth` counts."""

    def __init__(self, worth: Worth) -> None:
        self._worth = worth
        reserves = worth.reserves
        some = sorted({reserves[0], reserves[len(reserves) // 2], reserves[-1]}, reverse=True)
        self._styles = [Style(rule == "level", many) for rule in worth.goal.layer_rules for many in some]

    def plans(self) -> list[list[PlannedChain]]:
        """Some plans to start from; none where no chain holds the layers."""
        useful = self._worth.useful
        if not useful or len(useful) > MOST_PACKED:
            return []
        if len(useful) <= FEW_NODES:
            return self._best_of_all(useful)
        reserves = list(dict.fromkeys(style.sequences for style in self._styles))
        reserves = reserves if len(useful) <= MANY_NODES else reserves[:1]
        found = [self._best_part(self._packed(useful, sequences)) for sequences in reserves]
        neighbourhoods = self._neighbourhoods(useful)
        if len(neighbourhoods) > 1:
            for sequences in reserves:
                chains = [chain for near in neighbourhoods for chain in self._packed(near, sequences)]
                used = {row for chain in chains for row in chain}
                rest = [row for row in useful if row not in used]
                found.append(self._best_part([*chains, *self._packed(rest, sequences)]))
        return [plan for plan in found if plan]

    def _best_of_all(self, rows: Sequence[int]) -> list[list[PlannedChain]]:
        """The best choice of disjoint ones among all chains of these nodes, each with the rule that suits it best."""
        most = min(len(rows), self._worth.table.layers)
        orders = [order for size in range(1, most + 1) for order in permutations(rows, size)]
        known = self._styled(orders)
        by_nodes: dict[frozenset[int], dict[tuple[int, ...], PlannedChain]] = {}
        for held in known:
            kept = by_nodes.setdefault(frozenset(held.chain.order), {})
            kept[held.chain.order] = held
        choices = [
            list(dict.fromkeys((max(kept.values(), key=self._alone), min(kept.values(), key=_token_ms))))
            for kept in by_nodes.values()
        ]
        best: list[PlannedChain] = []
        score = 0.0
        for plan in _disjoint(choices, 0, frozenset()):
            if self._worth.left <= 0:
                break
            self._worth.left -= SCORE_EFFORT
            now = self._worth.score(plan)
            if now > score * (1 + 1e-9):
                best, score = plan, now
        return [best] if best else []

    def _alone(self, held: PlannedChain) -> float:
        return self._worth.score([held])

    def _packed(self, rows: Sequence[int], sequences: int) -> list[tuple[int, ...]]:
        """Disjoint chains of these nodes, with KV room for so many sequences on each."""
        table = self._worth.table
        room = table.room(sequences)
        self._worth.left -= 2.0 * len(rows)
        free = sorted((row for row in rows if room[row].max() > 0), key=lambda row: (-int(room[row, 0]), row))
        chains: list[tuple[int, ...]] = []
        left = int(room[free].max(axis=1).sum()) if free else 0
        while left >= table.layers:
            chain: list[int] = []
            need = table.layers
            while need > 0 and free:
                ends = 3 if not chain else 2
                closing = next((row for row in reversed(free) if room[row, ends] >= need), None)
                chosen = closing if closing is not None else free[0]
                chain.append(chosen)
                free.remove(chosen)
                left -= int(room[chosen].max())
                held = int(room[chosen, 1 if len(chain) == 1 else 0])
                need = 0 if closing is not None else max(1, need - held)
            if need > 0 or len(chain) > table.layers:
                break
            chains.append(tuple(chain))
        return chains

    def _best_part(self, orders: Sequence[tuple[int, ...]]) -> list[PlannedChain]:
        """So many of these chains, the fastest first, as score best."""
        chains = sorted(self._styled(orders), key=lambda held: (held.token_ms, held.chain.order))
        best: list[PlannedChain] = []
        score = 0.0
        sizes = [many for many in range(1, len(chains) + 1) if many <= 16 or many % 8 == 0 or many == len(chains)]
        for many in sizes:
            self._worth.left -= SCORE_EFFORT * (1 + many / 8)
            now = self._worth.score(chains[:many])
            if now > score * (1 + 1e-9):
                best, score = chains[:many], now
        return best

    def _styled(self, orders: Sequence[tuple[int, ...]]) -> list[PlannedChain]:
        """Each of these chains, its layers shared out by the rule that suits best; without those that do not fit."""
        if not orders:
            return []
        styles = self._styles
        size = len(styles)
        rows = np.repeat(as_rows(orders), size, axis=0)
        level = np.tile(np.array([style.level for style in styles]), len(orders))
        sequences = np.tile(np.array([style.sequences for style in styles], dtype=np.int64), len(orders))
        batch = self._worth.timed(rows, level, sequences)
        best = self._worth.values((), [batch]).reshape(len(orders), size).argmax(axis=1)
        chosen = [i * size + at for i, at in enumerate(best.tolist()) if batch.ok[i * size + at]]
        self._worth.left -= SCORE_EFFORT * len(chosen)
        return [self._worth.planned(batch, row, styles[row % size]) for row in chosen]

    def _neighbourhoods(self, rows: Sequence[int]) -> list[list[int]]:
        """Nodes that are far nearer to one another than to the rest: the tree of shortest ways over all, cut where ways
        become longest at once."""
        ways = np.maximum(self._worth.table.way_ms[np.ix_(rows, rows)], LEAST_WAY_MS)
        self._worth.left -= 4.0 * len(rows)
        reached, via = ways[0].copy(), np.zeros(len(rows), dtype=np.int64)
        reached[0] = np.inf
        inside = np.zeros(len(rows), dtype=bool)
        inside[0] = True
        edges: list[tuple[float, int, int]] = []
        for _ in range(len(rows) - 1):
            node = int(np.where(inside, np.inf, reached).argmin())
            edges.append((float(reached[node]), node, int(via[node])))
            inside[node] = True
            nearer = ways[node] < reached
            reached, via = np.where(nearer, ways[node], reached), np.where(nearer, node, via)
        lengths = sorted(length for length, _, _ in edges)
        steps = [after / before for before, after in pairwise(lengths)]
        if not steps or max(steps) < APART:
            return [list(rows)]
        longest = lengths[steps.index(max(steps))]
        leader = list(range(len(rows)))
        for length, node, other in edges:  # in the order in which nodes were reached: `other` is settled
            if length <= longest:
                leader[node] = leader[other]
        groups: dict[int, list[int]] = {}
        for i, row in enumerate(rows):
            groups.setdefault(leader[i], []).append(row)
        return list(groups.values())


def _token_ms(held: PlannedChain) -> float:
    return held.token_ms


def _disjoint(choices: Sequence[Sequence[PlannedChain]], at: int, used: frozenset[int]) -> Iterator[list[PlannedChain]]:
    """Every choice of chains that share no node; one of each group at most."""
    yield []
    for i in range(at, len(choices)):
        nodes = frozenset(choices[i][0].chain.order)
        if not nodes & used:
            for rest in _disjoint(choices, i + 1, used | nodes):
                for held in choices[i]:
                    yield [held, *rest]
