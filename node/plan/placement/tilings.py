"""Disjoint chains of held ranges that follow one another without overlap: who made a plan of such chains finds them.

The fastest chain is taken, then the fastest of what is left, and so on; then chains that meet at one layer exchange
what comes behind it, as long as that raises the score: the fastest one may have taken what another one needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from node.plan.objectives import Goal
from node.plan.placement.allocation import Stage
from node.plan.placement.chains import Chain, as_rows, timed
from node.plan.placement.pool_table import PoolTable

MOST_EXCHANGES = 12
"""Rounds of exchanges; each times all pairs at once."""

Tiles = tuple[Stage, ...]


def disjoint_tilings(table: PoolTable, goal: Goal, stages: Sequence[Stage]) -> list[Tiles]:
    """Such chains of the `stages` whose nodes are in the table, the fastest first; none where no such chain exists."""
    left = sorted(
        (stage for stage in stages if stage.node_id in table.row_of), key=lambda s: (s.start, -s.end, s.node_id)
    )
    chains: list[Tiles] = []
    while (chain := _fastest(table, left)) is not None:
        chains.append(chain)
        used = {stage.node_id for stage in chain}
        left = [stage for stage in left if stage.node_id not in used]
    return _exchanged(table, goal, chains)


def _fastest(table: PoolTable, stages: Sequence[Stage]) -> Tiles | None:
    """The chain that one user's token takes least through, about: no node twice, the way back of each prefix's own
    first stage."""
    share = table.workload.output_tokens
    sent = table.model.hop_bytes(1)
    cost: list[float] = []
    before: list[int] = []
    first: list[int] = []
    ending: dict[int, list[int]] = {}
    best, last = float("inf"), -1
    for i, stage in enumerate(stages):
        row = table.row_of[stage.node_id]
        own = stage.layers * float(table.layer_ms[row] + table.chunk_ms[row] / share) + float(table.overhead_ms[row])
        least, via = (0.0, -1) if stage.start == 0 else (float("inf"), -1)
        for j in ending.get(stage.start, ()):
            other = table.row_of[stages[j].node_id]
            reached = cost[j] + float(table.way_ms[other, row] + table.byte_ms[other, row] * sent)
            if reached < least and not _comes_by(stages, before, j, stage.node_id):
                least, via = reached, j
        cost.append(least + own)
        before.append(via)
        first.append(i if via < 0 else first[via])
        if least == float("inf"):
            continue
        ending.setdefault(stage.end, []).append(i)
        if stage.end == table.layers:
            back = table.way_ms[row, table.row_of[stages[first[i]].node_id]]
            around = cost[i] + float(table.head_ms[row] + back)
            if around < best:
                best, last = around, i
    if last < 0:
        return None
    found = []
    while last >= 0:
        found.append(stages[last])
        last = before[last]
    return tuple(found[::-1])


def _comes_by(stages: Sequence[Stage], before: Sequence[int], at: int, node_id: str) -> bool:
    while at >= 0:
        if stages[at].node_id == node_id:
            return True
        at = before[at]
    return False


def _exchanged(table: PoolTable, goal: Goal, chains: list[Tiles]) -> list[Tiles]:
    """The chains, after those exchanges of tails that raise the score."""
    users = table.workload.users
    known = _timed(table, chains)
    score = goal.score(known, users)
    for _ in range(MOST_EXCHANGES):
        pairs = list(_exchanges(chains))
        if not pairs:
            break
        found = _timed(table, [chain for _, _, a, b in pairs for chain in (a, b)])
        best, chosen = score * (1 + 1e-9), -1
        for at, (i, j, _, _) in enumerate(pairs):
            rest = [chain for k, chain in enumerate(known) if k not in (i, j)]
            now = goal.score([*rest, found[2 * at], found[2 * at + 1]], users)
            if now > best:
                best, chosen = now, at
        if chosen < 0:
            break
        i, j, chains[i], chains[j] = pairs[chosen]
        known[i], known[j], score = found[2 * chosen], found[2 * chosen + 1], best
    return [chain for _, chain in sorted(zip(known, chains, strict=True), key=lambda pair: pair[0].token_ms)]


def _exchanges(chains: Sequence[Tiles]) -> Iterator[tuple[int, int, Tiles, Tiles]]:
    """Every two chains that meet at a layer, with what is behind it exchanged."""
    ends = [{stage.end: at + 1 for at, stage in enumerate(chain[:-1])} for chain in chains]
    for i, a in enumerate(chains):
        for j in range(i):
            b = chains[j]
            for end, at in ends[i].items():
                there = ends[j].get(end)
                if there is not None:
                    yield i, j, a[:at] + b[there:], b[:there] + a[at:]


def _timed(table: PoolTable, chains: Sequence[Tiles]) -> list[Chain]:
    if not chains:
        return []
    order = as_rows([[table.row_of[stage.node_id] for stage in chain] for chain in chains])
    counts = as_rows([[stage.layers for stage in chain] for chain in chains], 0)
    batch = timed(table, order, counts, np.ones(len(chains), dtype=bool))
    return [batch.chain(row) for row in range(len(chains))]
