"""The best disjoint chains of a pool, as good as the effort allows: one anytime search for pools of any size.

It starts from the best of several: the plan in force, and chains that grow greedily from many seeds, near and fast
nodes first. Then nodes are added to a chain, dropped, swapped against free ones or those of another chain, moved from
chain to chain and reordered, and layers shared out by other rules, until nothing improves; then a few chains are torn
down and built anew in another way, and what is better stays, until the effort is spent (ruin and recreate: Schrimpf et
al., 2000). All candidates of a move are timed at once (`placement.chains`).

A stage must earn its place: each counts STAGE_WORTH against its chain, so that no node is asked for a crumb of layers
that others could as well run. Nodes with no room are never looked at. The search counts what it looks at, not time, so
that equal pools give equal plans; its choices follow the table's order, which does not depend on names.
"""

from __future__ import annotations

from collections.abc import Sequence

from node.plan.objectives import Goal
from node.plan.placement.chains import Chain, chain_of_counts
from node.plan.placement.improving import Improvement
from node.plan.placement.packed_chains import FEW_NODES
from node.plan.placement.pool_table import PoolTable
from node.plan.placement.starting_chains import SURE, StartingChains
from node.plan.placement.worth import PlannedChain, Worth

FURTHER = 0.2
"""Of the effort, in large pools, for chains that the score has no use for."""
EFFORT_64, EFFORT_256 = 48_000, 48_000
"""Microseconds of a usual processor of 2023, about, that a search may take: in pools of up to 64 nodes, and of 256."""


def usual_effort(nodes: int) -> int:
    """By pool size, in between in proportion."""
    part = min(1.0, max(0, nodes - 64) / 192)
    return round(EFFORT_64 + (EFFORT_256 - EFFORT_64) * part)


def best_chains(
    table: PoolTable, goal: Goal, effort: int | None = None, in_force: Sequence[Sequence[int]] = ()
) -> list[Chain]:
    """Disjoint chains for `goal`, the fastest first; none where no chain holds the layers.

    Args:
        effort: what may be looked at, in microseconds of a usual processor; None: by pool size.
        in_force: the nodes of chains that are held now, as rows of the table: one of the starts.
    """
    return Search(table, goal, usual_effort(len(table.nodes)) if effort is None else effort).run(in_force)


class Search:
    """Of one table for one objective."""

    def __init__(self, table: PoolTable, goal: Goal, effort: int) -> None:
        self._worth = Worth(table, goal, effort)
        self._starting = StartingChains(self._worth)
        self._improvement = Improvement(self._worth, self._starting)

    @property
    def left(self) -> float:
        """Of the effort; below 0 by what the last look took."""
        return self._worth.left

    def run(self, in_force: Sequence[Sequence[int]]) -> list[Chain]:
        """The chains."""
        further = self._worth.left * (FURTHER if len(self._worth.useful) > 12 else 0.1)
        self._worth.left -= further
        best: list[PlannedChain] = []
        half = 0.4 * self._worth.left
        for i, start in enumerate(self._starting.starts(in_force)):
            if i and self._worth.left < half:
                break
            found = self._improvement.improved(start, range(len(start)))
            if self._worth.score(found) > self._worth.score(best) * SURE:
                best = found
        if not (self._worth.rated and len(self._worth.useful) <= FEW_NODES):  # of few, all chains were looked at
            best = self._improvement.kicked(best)
        best = self._improvement.polished(best)
        self._worth.left += further
        chains = [
            chain_of_counts(self._worth.table, h.chain.order, h.chain.counts) for h in self._improvement.further(best)
        ]
        return sorted(chains, key=lambda chain: (chain.token_ms, chain.order))
