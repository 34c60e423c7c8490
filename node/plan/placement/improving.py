"""Makes plans better: nodes added to a chain, dropped, swapped, moved and reordered, layers shared out anew."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from node.plan.placement.chains import as_rows, timed
from node.plan.placement.pool_table import Ints
from node.plan.placement.starting_chains import SURE, StartingChains
from node.plan.placement.worth import PlannedChain, Style, Worth

NEIGHBOURS = 16
"""Free nodes that a chain is tried with at a time, the most useful first."""
PARTNERS = 4
"""Other chains that a chain exchanges nodes with at a time."""
PLACES, ORDERS = 3, 16
"""Where in a chain a further node is tried, and how many orders of a chain, those first that are shortest around."""


class Improvement:
    """Of plans that `worth` counts; `starting` builds chains anew."""

    def __init__(self, worth: Worth, starting: StartingChains) -> None:
        self._worth, self._starting = worth, starting

    def improved(self, start: Sequence[PlannedChain], active: Iterable[int]) -> list[PlannedChain]:
        """`start`, improved from the chains `active` on until no move helps or the effort is spent."""
        chains = list(start)
        score = self._worth.score(chains)
        waiting = list(dict.fromkeys(active))
        while self._worth.left > 0:
            while waiting and self._worth.left > 0:
                at = waiting.pop(0)
                better = self._better_alone(chains, at, score)
                if better is not None:
                    chains[at], score = better
                    waiting.insert(0, at)
                elif len(chains) > 1 and self._worth.goal.speed_weight < 1:
                    moved = self._exchanged(chains, at, score)
                    if moved is not None:
                        score = moved[1]
                        waiting = [i for i in waiting if i not in moved[0]]
                        waiting += moved[0]
            added = self._added(chains, score)
            if added is None:
                break
            chains.append(added[0])
            score = added[1]
            waiting.append(len(chains) - 1)
        return self._lean(chains)

    def _lean(self, chains: list[PlannedChain]) -> list[PlannedChain]:
        """Without chains that the score does not miss."""
        for held in sorted(chains, key=lambda held: -held.token_ms):
            rest = [other for other in chains if other is not held]
            if rest and self._worth.score(rest) >= self._worth.score(chains) * (1 - 1e-9):
                chains = rest
        return chains

    def _nearest(self, order: Sequence[int], free: Sequence[int], style: Style) -> Ints:
        """The free nodes that a chain has most use for: for their speed, room and nearness."""
        if len(free) <= NEIGHBOURS:
            return np.array(free, dtype=np.int64)
        table, rows = self._worth.table, np.array(free, dtype=np.int64)
        room = np.maximum(1, table.room(style.sequences)[rows, 0])
        hop = (table.way_ms[np.ix_(rows, np.array(order))]).min(axis=1) * 2 + table.overhead_ms[rows]
        cost = table.layer_ms[rows] + hop / np.minimum(room, table.layers)
        by_cost = np.argsort(cost, kind="stable")
        start = 0 if self._worth.turn % 3 else NEIGHBOURS // 2
        return rows[np.sort(by_cost[start : start + NEIGHBOURS])]

    def _better_alone(self, chains: Sequence[PlannedChain], at: int, score: float) -> tuple[PlannedChain, float] | None:
        """The best change of one chain: a node less, more, or instead, another order, its layers shared out anew."""
        held = chains[at]
        self._worth.turn += 1
        order, style = held.chain.order, held.style
        rest = [other for i, other in enumerate(chains) if i != at]
        moved = self._moves(order, self._nearest(order, self._worth.free(chains), style))
        same = np.full((len(self._worth.styles), moved.shape[1]), -1, dtype=np.int64)
        same[:, : len(order)] = order
        styles = [style] * len(moved) + self._worth.styles
        rows = np.concatenate([moved, same])
        batch = self._worth.timed(rows, np.array([s.level for s in styles]), np.array([s.sequences for s in styles]))
        values = self._worth.values(rest, [batch])
        for row in np.argsort(-values, kind="stable")[:3].tolist():
            if values[row] <= score * SURE or not batch.ok[row]:
                break
            found = self._worth.planned(batch, row, styles[row])
            now = self._worth.score([*rest, found])
            if now > score * SURE:
                return found, now
        return None

    def _moves(self, order: Sequence[int], free: Ints) -> Ints:
        """Chains that differ from `order` by a node more, another one instead, one less, or by their order: each free
        node where it is least out of the way, and of orders those that are shortest around."""
        s, f = len(order), len(free)
        hops, cost = self._worth.hop_ms, self._worth.table.layer_ms * (self._worth.table.layers / s)
        own = np.array(order, dtype=np.int64)
        before, after = np.roll(own, 1), np.roll(own, -1)
        width = s + 1
        blocks = []
        if f and s < self._worth.table.layers:
            detour = hops[before][:, free] + hops[free][:, own].T - hops[before, own][:, None]
            detour = np.concatenate([detour, detour[:1]])  # at the end is as far around as at the beginning
            best = np.argsort(detour, axis=0, kind="stable")[:PLACES]
            for place, node in zip(best.T.ravel().tolist(), np.repeat(free, len(best)).tolist(), strict=True):
                blocks.append([*order[:place], node, *order[place:]])
        if f:
            detour = hops[before][:, free] + hops[free][:, after].T - (hops[before, own] + hops[own, after])[:, None]
            detour = detour + 0.5 * (cost[free][None, :] - cost[own][:, None])
            best = np.argsort(detour, axis=0, kind="stable")[:PLACES]
            for place, node in zip(best.T.ravel().tolist(), np.repeat(free, len(best)).tolist(), strict=True):
                blocks.append([*order[:place], node, *order[place + 1 :], -1])
        if s > 1:
            blocks += [[*order[:place], *order[place + 1 :], -1, -1] for place in range(s)]
            orders = np.array(_reordered(order), dtype=np.int64)
            around = hops[orders, np.roll(orders, -1, axis=1)].sum(axis=1)
            shortest = np.argsort(around, kind="stable")[:ORDERS]
            blocks += [[*row, -1] for row in orders[shortest].tolist()]
        return np.array(blocks, dtype=np.int64).reshape(len(blocks), width)

    def _exchanged(self, chains: list[PlannedChain], at: int, score: float) -> tuple[list[int], float] | None:
        """The best exchange of nodes of a chain with some others, done in `chains`; which changed, and the score."""
        others = [i for i in range(len(chains)) if i != at]
        if len(others) > PARTNERS:
            ways = self._worth.table.way_ms
            mine = np.array(chains[at].chain.order)
            near = [(float(ways[np.ix_(mine, np.array(chains[i].chain.order))].min()), i) for i in others]
            others = [i for _, i in sorted(near)[: PARTNERS - 1]] + [others[self._worth.turn % len(others)]]
            others = list(dict.fromkeys(others))
        for other in others:
            if self._worth.left <= 0:
                return None
            left, right = chains[at], chains[other]
            mine, theirs = _pair_moves(left.chain.order, right.chain.order)
            size = len(mine)
            a = self._worth.timed(mine, np.full(size, left.style.level), np.full(size, left.style.sequences))
            b = self._worth.timed(theirs, np.full(size, right.style.level), np.full(size, right.style.sequences))
            rest = [held for i, held in enumerate(chains) if i not in (at, other)]
            values = self._worth.values(rest, [a, b])
            for row in np.argsort(-values, kind="stable")[:3].tolist():
                if values[row] <= score * SURE or not (a.ok[row] and b.ok[row]):
                    break
                pair = self._worth.planned(a, row, left.style), self._worth.planned(b, row, right.style)
                now = self._worth.score([*rest, *pair])
                if now > score * SURE:
                    chains[at], chains[other] = pair
                    return [at, other], now
        return None

    def _added(self, chains: Sequence[PlannedChain], score: float) -> tuple[PlannedChain, float] | None:
        """A further chain of free nodes that raises the score."""
        if self._worth.goal.speed_weight == 1 and chains:
            return None
        free = self._worth.free(chains)
        if int(self._worth.table.room(1)[free].max(axis=1).sum() if free else 0) < self._worth.table.layers:
            return None
        fastest = min((held.token_ms for held in chains), default=float("inf"))
        style = self._worth.styles[self._worth.turn % len(self._worth.styles)]
        for held in self._starting._grown(free, style, 1.0, 4):
            now = self._worth.score([*chains, held])
            if now > score * SURE and held.token_ms <= self._worth.goal.bar * fastest:
                return held, now
        return None

    def kicked(self, best: list[PlannedChain]) -> list[PlannedChain]:
        """Tear a few chains down and build them anew, until the effort is spent; what is better stays."""
        if not best:
            return best
        score = self._worth.score(best)
        in_vain = 0
        while self._worth.left > 0 and in_vain < 10 * len(self._worth.useful) ** 2:
            many = min(len(best), self._worth.chance.choice((1, 1, 2, 2, 3)))
            first = self._worth.chance.randrange(len(best))
            mine = np.array(best[first].chain.order)
            near = sorted(
                (i for i in range(len(best)) if i != first),
                key=lambda i: (
                    self._worth.chance.random()
                    * float(self._worth.table.way_ms[np.ix_(mine, np.array(best[i].chain.order))].min()),
                    i,
                ),
            )
            gone = {first, *near[: many - 1]}
            kept = [held for i, held in enumerate(best) if i not in gone]
            style = self._worth.chance.choice(self._worth.styles)
            free = self._worth.free(kept)
            allowed = {row for row in free if self._worth.chance.random() < 0.8}
            built = self._starting.built(
                kept, allowed, style, self._worth.chance.choice((0.1, 0.3, 1.0, 3.0)), len(gone) + 1
            )
            if not built:
                in_vain += 1
                self._worth.left -= 50
                continue
            found = self.improved([*kept, *built], range(len(kept), len(kept) + len(built)))
            now = self._worth.score(found)
            in_vain += 1
            if now > score * SURE:
                best, score, in_vain = found, now, 0
        return best

    def polished(self, chains: list[PlannedChain]) -> list[PlannedChain]:
        """Layers moved one by one from stage to stage while that helps; no rule for sharing out knows all."""
        score = self._worth.score(chains)
        for at in sorted(range(len(chains)), key=lambda i: (chains[i].token_ms, i)):
            for _ in range(2 * self._worth.table.layers):
                held = chains[at]
                counts = _recut(held.chain.counts)
                if not len(counts):
                    break
                order = np.tile(np.array(held.chain.order, dtype=np.int64), (len(counts), 1))
                batch = timed(
                    self._worth.table, order, counts, np.ones(len(counts), dtype=bool), rates=self._worth.rated
                )
                rest = [other for i, other in enumerate(chains) if i != at]
                values = self._worth.values(rest, [batch])
                row = int(values.argmax())
                if values[row] <= score * (1 + 1e-6) or not batch.ok[row]:
                    break
                found = self._worth.planned(batch, row, held.style)
                now = self._worth.score([*rest, found])
                if now <= score * (1 + 1e-6):
                    break
                chains[at], score = found, now
        return chains

    def further(self, chains: list[PlannedChain]) -> list[PlannedChain]:
        """Chains of who is left that the score has no use for: slower ones, that serve when the better are busy."""
        if not chains:
            return chains
        fastest = min(held.token_ms for held in chains)
        free = set(self._worth.free(chains))
        style = Style(self._worth.goal.speed_weight < 1, self._worth.reserves[min(2, len(self._worth.reserves) - 1)])
        for tried in (style, Style(style.level, 1)):
            while self._worth.left > 0:
                grown = self._starting._grown(sorted(free), tried, 1.0)
                found = [held for held in grown if held.token_ms <= self._worth.goal.bar * fastest]
                if not found:
                    break
                for held in found:
                    if free.issuperset(held.chain.order):
                        chains = [*chains, held]
                        free.difference_update(held.chain.order)
        return chains


def _reordered(order: Sequence[int]) -> list[list[int]]:
    """Two nodes swapped, one moved, or a part turned around; and the whole turned on."""
    s = len(order)
    orders = [[*order[i:], *order[:i]] for i in range(1, s)]
    for i in range(s):
        for j in range(i + 1, s):
            swapped = list(order)
            swapped[i], swapped[j] = swapped[j], swapped[i]
            orders.append(swapped)
            if j - i > 1:
                orders.append([*order[:i], *order[i + 1 : j + 1], order[i], *order[j + 1 :]])
                orders.append([*order[:i], order[j], *order[i:j], *order[j + 1 :]])
                orders.append([*order[:i], *order[i : j + 1][::-1], *order[j + 1 :]])
    return orders


def _pair_moves(a: Sequence[int], b: Sequence[int]) -> tuple[Ints, Ints]:
    """Two chains that exchange a node, or of which one gives the other a node."""
    mine: list[list[int]] = []
    theirs: list[list[int]] = []
    for i, x in enumerate(a):
        without = [*a[:i], *a[i + 1 :]]
        for j, y in enumerate(b):
            mine.append([*a[:i], y, *a[i + 1 :]])
            theirs.append([*b[:j], x, *b[j + 1 :]])
        if without:
            for j in range(len(b) + 1):
                mine.append(without)
                theirs.append([*b[:j], x, *b[j:]])
    if len(b) > 1:
        for j, y in enumerate(b):
            without = [*b[:j], *b[j + 1 :]]
            for i in range(len(a) + 1):
                mine.append([*a[:i], y, *a[i:]])
                theirs.append(without)
    return as_rows(mine), as_rows(theirs)


def _recut(counts: Sequence[int]) -> Ints:
    """Every way to move one to three layers from one stage to another."""
    found = []
    for i, have in enumerate(counts):
        for j in range(len(counts)):
            for layers in (1, 2, 3):
                if i != j and have > layers:
                    changed = list(counts)
                    changed[i] -= layers
                    changed[j] += layers
                    found.append(changed)
    return np.array(found, dtype=np.int64).reshape(len(found), len(counts))
