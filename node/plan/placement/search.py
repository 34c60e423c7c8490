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

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from node.plan.objectives import Goal
from node.plan.placement.chains import Batch, Bools, Chain, as_rows, chain_of_counts, shared_out, timed, user_levels
from node.plan.placement.pool_table import Floats, Ints, PoolTable

STAGE_WORTH = 0.002
"""What a chain must gain for another stage, as a part of what it gives."""
RESERVE_WORTH = 0.03
"""What a chain counts less for each halving of the KV room that the objective asks for."""
SEEDS = 12
"""Nodes that chains begin with when they grow side by side."""
NEIGHBOURS = 16
"""Free nodes that a chain is tried with at a time, the most useful first."""
PARTNERS = 4
"""Other chains that a chain exchanges nodes with at a time."""
FURTHER = 0.2
"""Of the effort, in large pools, for chains that the score has no use for."""
LONGEST = 12
"""Stages of the chains that greedy starts try."""
BEAM, BEAM_PLACES = 96, 4096
"""Chains that are kept at each length of a beam search; fewer in large pools, so that these times nodes is no more."""
BEAM_HOPE = 1.1
"""A chain is gone on with while it may come within this of the best one."""
PLACES, ORDERS = 3, 16
"""Where in a chain a further node is tried, and how many orders of a chain, those first that are shortest around."""
SURE = 1 + 1e-9

EFFORT_64, EFFORT_256 = 40_000, 60_000
"""Microseconds of a usual processor of 2023, about, that a search may take: in pools of up to 64 nodes, and of 256."""
CALL_EFFORT, ROW_EFFORT = 600, 1.0
"""Of timing some chains at once, and of each stage of each chain; measured."""


def usual_effort(nodes: int) -> int:
    """By pool size, in between in proportion."""
    part = min(1.0, max(0, nodes - 64) / 192)
    return round(EFFORT_64 + (EFFORT_256 - EFFORT_64) * part)


@dataclass(frozen=True, slots=True)
class Style:
    """How a chain's layers are shared out."""

    level: bool
    sequences: int
    """With KV room for so many."""


@dataclass(frozen=True, slots=True)
class _PlannedChain:
    """A chain of the plan so far, and what it counts."""

    chain: Chain
    style: Style
    token_ms: float
    """Its stages and its lack of KV room counted."""
    curve: tuple[tuple[float, float], ...]


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
        self.table, self.goal, self.left = table, goal, float(effort)
        self.users = table.workload.users
        self.rated = goal.speed_weight < 1
        self.levels = len(user_levels(self.users)) if self.rated else 1
        self.reserves = goal.reserves(self.users)
        self.styles = [Style(rule == "level", m) for rule in goal.layer_rules for m in self.reserves]
        self.useful = [row for row, room in enumerate(table.room(1).max(axis=1).tolist()) if room > 0]
        self.chance = random.Random(1)
        self.turn = 0
        sent = table.model.hop_bytes(1)
        self.hop_ms: Floats = table.way_ms + table.byte_ms * sent + table.overhead_ms
        """(from, to): what another stage costs a step."""

    def run(self, in_force: Sequence[Sequence[int]]) -> list[Chain]:
        """The chains."""
        further = self.left * (FURTHER if len(self.useful) > 12 else 0.1)
        self.left -= further
        best: list[_PlannedChain] = []
        half = 0.4 * self.left
        for i, start in enumerate(self._starts(in_force)):
            if i and self.left < half:
                break
            found = self._improved(start, range(len(start)))
            if self._score(found) > self._score(best) * SURE:
                best = found
        best = self._polished(self._kicked(best))
        self.left += further
        chains = [chain_of_counts(self.table, h.chain.order, h.chain.counts) for h in self._further(best)]
        return sorted(chains, key=lambda chain: (chain.token_ms, chain.order))

    # What a chain counts.

    def _score(self, chains: Sequence[_PlannedChain]) -> float:
        return self.goal.score(chains, self.users)

    def _timed(self, order: Ints, level: Bools, sequences: Ints) -> Batch:
        self.left -= CALL_EFFORT + ROW_EFFORT * order.size
        counts, ok = shared_out(self.table, order, level, sequences)
        if not ok.all():
            kept = np.flatnonzero(ok)
            found = timed(self.table, order[kept], counts[kept], ok[kept], rates=self.rated) if kept.size else None
            return _spread(found, kept, order, counts, ok, self.levels)
        return timed(self.table, order, counts, ok, rates=self.rated)

    def _counted(self, batch: Batch) -> tuple[Floats, Floats]:
        """(chain,) and (chain, level): times and rates as they count."""
        worth = 1 + STAGE_WORTH * (batch.order >= 0).sum(axis=1)
        if self.goal.speed_weight == 1:
            lacking = np.log2(self.reserves[0] / np.clip(batch.sequences, 1, self.reserves[0]))
            worth = worth * (1 + RESERVE_WORTH * lacking)
        return np.where(batch.ok, batch.token_ms * worth, np.inf), np.where(
            batch.ok[:, None], batch.rates / worth[:, None], 0.0
        )

    def _planned(self, batch: Batch, row: int, style: Style) -> _PlannedChain:
        token_ms, rates = self._counted(_one(batch, row))
        curve = tuple(zip(batch.running[row].tolist(), rates[0].tolist(), strict=True))
        return _PlannedChain(batch.chain(row), style, float(token_ms[0]), curve)

    def _values(self, rest: Sequence[_PlannedChain], batches: Sequence[Batch]) -> Floats:
        """(candidate,): the score of `rest` with the row's chain of every batch (one or two)."""
        counted = [self._counted(batch) for batch in batches]
        fastest = min((held.token_ms for held in rest), default=float("inf"))
        token_ms = (
            np.minimum(fastest, counted[0][0])
            if len(counted) == 1
            else np.minimum(fastest, np.minimum(counted[0][0], counted[1][0]))
        )
        possible = batches[0].ok if len(batches) == 1 else batches[0].ok & batches[1].ok
        alone = np.where(possible, 1000 / token_ms, 0.0)
        weight = self.goal.speed_weight
        if weight == 1:
            return alone
        users, rates = self._filled(rest)
        if len(batches) == 1:
            others = np.interp(self.users - batches[0].running, users, rates)
            others[batches[0].running > self.users] = -np.inf
            most = np.maximum(counted[0][1] + others, 0.0).max(axis=1)
        else:
            running = batches[0].running[:, :, None] + batches[1].running[:, None, :]
            # Users beyond those there are: their part of the rate is left out.
            part = np.minimum(1.0, self.users / running)
            both = (counted[0][1][:, :, None] + counted[1][1][:, None, :]) * part
            both += np.interp(np.maximum(0.0, self.users - running), users, rates)
            most = both.reshape(len(both), -1).max(axis=1)
            none = np.interp(self.users, users, rates)
            most = np.maximum(most, none)
        most = np.where(possible, most, 0.0)
        return most if weight == 0 else np.asarray(alone**weight * most ** (1 - weight), dtype=np.float64)

    def _filled(self, rest: Sequence[_PlannedChain]) -> tuple[list[float], list[float]]:
        """Tokens per second of so many users on `rest`, where they add most."""
        gains = []
        for held in rest:
            before = rate = 0.0
            for number, tokens_per_s in held.curve:
                if number > before:
                    gains.append(((tokens_per_s - rate) / (number - before), number - before))
                    before, rate = number, tokens_per_s
        gains.sort(reverse=True)
        users, rates = [0.0], [0.0]
        for gain, width in gains:
            users.append(users[-1] + width)
            rates.append(rates[-1] + gain * width)
            if users[-1] >= self.users:
                break
        return users, rates

    # Where it starts.

    def _starts(self, in_force: Sequence[Sequence[int]]) -> list[list[_PlannedChain]]:
        """Plans to improve, the best first: the one in force, the best chain alone, and as many short ones as help."""
        starts: list[list[_PlannedChain]] = []
        held = [self._restyled(tuple(order)) for order in in_force if order]
        starts.append([chain for chain in held if chain is not None])
        styles = [self.styles[0], self.styles[-1], self.styles[len(self.styles) // 2]]
        grown = [chain for style in dict.fromkeys(styles) for chain in self._grown(self.useful, style, 1.0)]
        if grown:
            starts.append([max(grown, key=lambda chain: self._score([chain]))])
        if self.goal.speed_weight > 0:
            beamed = self._beamed(self.styles[0], 3)
            starts += [[chain] for chain in (beamed if not self.rated else beamed[:1])]
        if self.rated:
            starts.append(self._packed(grown))
        starts = [start for start in starts if start]
        if not starts:  # greedy chains may miss a tight fit
            last = self._last_resort()
            starts = [[last]] if last is not None else []
        distinct = {tuple(sorted(chain.chain.order for chain in start)): start for start in starts}
        return sorted(distinct.values(), key=self._score, reverse=True)

    def _beamed(self, style: Style, most: int) -> list[_PlannedChain]:
        """The chains of the least time among those that a beam search finds, every node filled before the next one."""
        table = self.table
        nodes = np.array(self.useful, dtype=np.int64)
        room = table.room(style.sequences)[nodes]
        if not len(nodes) or int(room.max(axis=1).sum()) < table.layers:
            return []
        width = max(16, min(BEAM, BEAM_PLACES // len(nodes)))
        one = table.layer_ms[nodes] + table.chunk_ms[nodes] / table.workload.output_tokens
        both = np.ix_(nodes, nodes)
        hops, back = self.hop_ms[both], table.way_ms[both]
        first_ms = table.overhead_ms[nodes] + one * room[:, 1]
        names = np.random.default_rng(1).integers(1, 1 << 62, len(nodes), dtype=np.int64)
        orders = np.flatnonzero(room[:, 1] > 0)[:, None]
        start = np.argsort((first_ms / np.maximum(1, room[:, 1]))[orders[:, 0]], kind="stable")[:width]
        orders = orders[start]
        cost, need = first_ms[orders[:, 0]], np.maximum(1, table.layers - room[orders[:, 0], 1])
        taken = np.zeros((len(orders), len(nodes)), dtype=bool)
        taken[np.arange(len(orders)), orders[:, 0]] = True
        held = names[orders[:, 0]]
        single = np.flatnonzero(room[:, 3] >= table.layers)
        whole = [(float(v), [int(i)]) for i, v in zip(single, one[single] * table.layers, strict=True)]
        fastest = min((total for total, _ in whole), default=float("inf"))
        for _ in range(min(len(nodes), table.layers) - 1):
            if not len(orders):
                break
            self.left -= 250 + 0.12 * taken.size
            last = orders[:, -1]
            completes = (room[None, :, 2] >= need[:, None]) & ~taken
            gain = np.minimum(room[None, :, 0], need[:, None] - 1)
            reached = cost[:, None] + hops[last]
            total = np.where(completes, reached + need[:, None] * one + back[:, orders[:, 0]].T, np.inf)
            best = np.argsort(total, axis=None, kind="stable")[:BEAM]
            for at in best[np.isfinite(total.ravel()[best])].tolist():
                row, node = divmod(at, len(nodes))
                whole.append((float(total[row, node]), [*orders[row].tolist(), node]))
                fastest = min(fastest, float(total[row, node]))
            further = np.where(taken | (gain < 1), np.inf, reached + gain * one)
            hope = further + (need[:, None] - gain) * one.min()
            hope[hope >= fastest * BEAM_HOPE] = np.inf
            chosen = np.argsort(hope, axis=None, kind="stable")[: 4 * width]
            chosen = chosen[np.isfinite(hope.ravel()[chosen])]
            rows, added = chosen // len(nodes), chosen % len(nodes)
            sets = (held[rows] ^ names[added]) + added  # the same nodes with the same last one: the best is enough
            kept = np.sort(np.unique(sets, return_index=True)[1])[:width]
            rows, added = rows[kept], added[kept]
            cost, need = further[rows, added], need[rows] - gain[rows, added]
            held, taken = held[rows] ^ names[added], taken[rows]
            taken[np.arange(len(rows)), added] = True
            orders = np.concatenate([orders[rows], added[:, None]], axis=1)
        whole.sort(key=lambda found: found[0])
        if not whole:
            return []
        chains = [nodes[order].tolist() for _, order in whole[:BEAM]]
        found = self._timed(as_rows(chains), np.full(len(chains), style.level), np.full(len(chains), style.sequences))
        token_ms = self._counted(found)[0]
        by_time = [row for row in np.argsort(token_ms, kind="stable").tolist() if found.ok[row]]
        return [self._planned(found, row, style) for row in by_time[:most]]

    def _packed(self, grown: Sequence[_PlannedChain]) -> list[_PlannedChain]:
        """Of chains that overlap some that do not, as long as each raises the score, the short and fast ones first."""
        chains: list[_PlannedChain] = []
        score, used = 0.0, set[int]()
        for held in sorted(grown, key=lambda held: (held.token_ms * len(held.chain.order), held.chain.order)):
            if used.isdisjoint(held.chain.order):
                now = self._score([*chains, held])
                if now > score * SURE:
                    chains.append(held)
                    used.update(held.chain.order)
                    score = now
        return chains

    def _built(
        self, kept: Sequence[_PlannedChain], free: set[int], style: Style, alone_ms: float, most: int
    ) -> list[_PlannedChain]:
        """Up to `most` chains of free nodes beside those `kept`, as long as they raise the score."""
        chains: list[_PlannedChain] = []
        score = self._score(kept)
        while free and self.left > 0 and len(chains) < most:
            grown = self._grown(sorted(free), style, alone_ms, 4)
            found = max(grown, key=lambda held: self._score([*kept, *chains, held]), default=None)
            if found is None:
                break
            now = self._score([*kept, *chains, found])
            if now <= score * SURE:
                break
            chains.append(found)
            free.difference_update(found.chain.order)
            score = now
        return chains

    def _grown(self, free: Sequence[int], style: Style, alone_ms: float, most: int = SEEDS) -> list[_PlannedChain]:
        """A chain from each of some seeds, each as long as suits it best; the best first. They overlap."""
        table = self.table
        room = table.room(style.sequences)
        nodes = np.array([row for row in free if room[row].max() > 0], dtype=np.int64)
        if not nodes.size or int(room[nodes].max(axis=1).sum()) < table.layers:
            return []
        batch = max(1.0, style.sequences / 4) if style.level else 1.0
        one = table.layer_ms[nodes] + (table.large_layer_ms[nodes] - table.layer_ms[nodes]) * (batch - 1) / 15
        cost = one + table.overhead_ms[nodes] / np.maximum(1, room[nodes, 0])
        by_cost = np.argsort(cost, kind="stable")[:SEEDS]
        by_room = np.argsort(-room[nodes, 0], kind="stable")[:SEEDS]
        mixed = [i for pair in zip(by_cost.tolist(), by_room.tolist(), strict=True) for i in pair]
        seeds = np.array(list(dict.fromkeys(mixed))[:SEEDS], dtype=np.int64)
        plain, ending = room[nodes, 0], room[nodes, 2]
        orders = seeds[:, None]
        every = np.arange(len(seeds))
        taken = np.zeros((len(seeds), len(nodes)), dtype=bool)
        taken[every, seeds] = True
        need = np.maximum(1, table.layers - room[nodes[seeds], 1])
        whole = [[int(nodes[seed])] for seed in seeds if room[nodes[seed], 3] >= table.layers]
        some = max(1, table.layers // 4)
        for length in range(2, min(len(nodes), table.layers, LONGEST if self.rated else table.layers) + 1):
            self.left -= 150 + 0.06 * taken.size
            wanted = need[:, None]
            completes = ending[None, :] >= wanted
            gain = np.minimum(np.where(completes, ending[None, :], plain[None, :]), np.maximum(wanted, some))
            hops = self.hop_ms[nodes[orders[:, -1]]][:, nodes] * alone_ms
            price = hops / np.maximum(1, gain) + one[None, :]
            price[taken | (gain < 1)] = np.inf
            best = price.argmin(axis=1)
            going = np.isfinite(price[every, best])
            if not going.any():
                break
            done = going & completes[every, best]
            orders = np.concatenate([orders, best[:, None]], axis=1)
            taken[every, best] = True
            need = np.maximum(1, need - plain[best])
            whole += nodes[orders[done]].tolist()
            if not self.rated or not going.all():
                going &= ~done
                orders, taken, need = orders[going], taken[going], need[going]
                every = np.arange(len(orders))
                if not len(orders):
                    break
            if self.rated and length >= 3 and done.all() and len(whole) > 8 * SEEDS:
                break
        if not whole:
            return []
        found = self._timed(as_rows(whole), np.full(len(whole), style.level), np.full(len(whole), style.sequences))
        values = self._values((), [found])
        best_of_seed: dict[int, int] = {}
        for row in np.argsort(-values, kind="stable").tolist():
            if found.ok[row]:
                best_of_seed.setdefault(whole[row][0], row)
        return [self._planned(found, row, style) for row in list(best_of_seed.values())[:most]]

    def _last_resort(self) -> _PlannedChain | None:
        """A chain of whoever has room, wherever they are: the roomiest first, the ends where they cost least."""
        room = self.table.room(1)
        able = sorted(self.useful, key=lambda row: (-int(room[row, 0]), row))
        if not able or self.table.layers < 1:
            return None
        begins = sorted((row for row in able if room[row, 1] > 0), key=lambda row: (room[row, 0] - room[row, 1], row))
        finishes = sorted((row for row in able if room[row, 2] > 0), key=lambda row: (room[row, 0] - room[row, 2], row))
        orders = [[row] for row in able if room[row, 3] >= self.table.layers]
        for first in begins[:3]:
            for last in finishes[:3]:
                if first == last:
                    continue
                need = self.table.layers - int(room[first, 1]) - int(room[last, 2])
                middle = []
                for row in able:
                    if need <= 0:
                        break
                    if row not in (first, last):
                        middle.append(row)
                        need -= int(room[row, 0])
                orders.append([first, *middle, last])
        found = [held for order in orders if (held := self._restyled(tuple(order))) is not None]
        return min(found, key=lambda held: held.token_ms, default=None)

    # How it improves.

    def _restyled(self, order: tuple[int, ...]) -> _PlannedChain | None:
        """The chain of these nodes, its layers shared out by the rule that suits best."""
        styles = self.styles
        rows = as_rows([order] * len(styles))
        batch = self._timed(rows, np.array([s.level for s in styles]), np.array([s.sequences for s in styles]))
        values = self._values((), [batch])
        best = int(values.argmax())
        return self._planned(batch, best, styles[best]) if batch.ok[best] else None

    def _improved(self, start: Sequence[_PlannedChain], active: Iterable[int]) -> list[_PlannedChain]:
        """`start`, improved from the chains `active` on until no move helps or the effort is spent."""
        chains = list(start)
        score = self._score(chains)
        waiting = list(dict.fromkeys(active))
        while self.left > 0:
            while waiting and self.left > 0:
                at = waiting.pop(0)
                better = self._better_alone(chains, at, score)
                if better is not None:
                    chains[at], score = better
                    waiting.insert(0, at)
                elif len(chains) > 1 and self.goal.speed_weight < 1:
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

    def _lean(self, chains: list[_PlannedChain]) -> list[_PlannedChain]:
        """Without chains that the score does not miss."""
        for held in sorted(chains, key=lambda held: -held.token_ms):
            rest = [other for other in chains if other is not held]
            if rest and self._score(rest) >= self._score(chains) * (1 - 1e-9):
                chains = rest
        return chains

    def _free(self, chains: Sequence[_PlannedChain]) -> list[int]:
        taken = {row for held in chains for row in held.chain.order}
        return [row for row in self.useful if row not in taken]

    def _nearest(self, order: Sequence[int], free: Sequence[int], style: Style) -> Ints:
        """The free nodes that a chain has most use for: for their speed, room and nearness."""
        if len(free) <= NEIGHBOURS:
            return np.array(free, dtype=np.int64)
        table, rows = self.table, np.array(free, dtype=np.int64)
        room = np.maximum(1, table.room(style.sequences)[rows, 0])
        hop = (table.way_ms[np.ix_(rows, np.array(order))]).min(axis=1) * 2 + table.overhead_ms[rows]
        cost = table.layer_ms[rows] + hop / np.minimum(room, table.layers)
        by_cost = np.argsort(cost, kind="stable")
        start = 0 if self.turn % 3 else NEIGHBOURS // 2
        return rows[np.sort(by_cost[start : start + NEIGHBOURS])]

    def _better_alone(
        self, chains: Sequence[_PlannedChain], at: int, score: float
    ) -> tuple[_PlannedChain, float] | None:
        """The best change of one chain: a node less, more, or instead, another order, its layers shared out anew."""
        held = chains[at]
        self.turn += 1
        order, style = held.chain.order, held.style
        rest = [other for i, other in enumerate(chains) if i != at]
        moved = self._moves(order, self._nearest(order, self._free(chains), style))
        same = np.full((len(self.styles), moved.shape[1]), -1, dtype=np.int64)
        same[:, : len(order)] = order
        styles = [style] * len(moved) + self.styles
        rows = np.concatenate([moved, same])
        batch = self._timed(rows, np.array([s.level for s in styles]), np.array([s.sequences for s in styles]))
        values = self._values(rest, [batch])
        for row in np.argsort(-values, kind="stable")[:3].tolist():
            if values[row] <= score * SURE or not batch.ok[row]:
                break
            found = self._planned(batch, row, styles[row])
            now = self._score([*rest, found])
            if now > score * SURE:
                return found, now
        return None

    def _moves(self, order: Sequence[int], free: Ints) -> Ints:
        """Chains that differ from `order` by a node more, another one instead, one less, or by their order: each free
        node where it is least out of the way, and of orders those that are shortest around."""
        s, f = len(order), len(free)
        hops, cost = self.hop_ms, self.table.layer_ms * (self.table.layers / s)
        own = np.array(order, dtype=np.int64)
        before, after = np.roll(own, 1), np.roll(own, -1)
        width = s + 1
        blocks = []
        if f and s < self.table.layers:
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

    def _exchanged(self, chains: list[_PlannedChain], at: int, score: float) -> tuple[list[int], float] | None:
        """The best exchange of nodes of a chain with some others, done in `chains`; which changed, and the score."""
        others = [i for i in range(len(chains)) if i != at]
        if len(others) > PARTNERS:
            ways = self.table.way_ms
            mine = np.array(chains[at].chain.order)
            near = [(float(ways[np.ix_(mine, np.array(chains[i].chain.order))].min()), i) for i in others]
            others = [i for _, i in sorted(near)[: PARTNERS - 1]] + [others[self.turn % len(others)]]
            others = list(dict.fromkeys(others))
        for other in others:
            if self.left <= 0:
                return None
            left, right = chains[at], chains[other]
            mine, theirs = _pair_moves(left.chain.order, right.chain.order)
            size = len(mine)
            a = self._timed(mine, np.full(size, left.style.level), np.full(size, left.style.sequences))
            b = self._timed(theirs, np.full(size, right.style.level), np.full(size, right.style.sequences))
            rest = [held for i, held in enumerate(chains) if i not in (at, other)]
            values = self._values(rest, [a, b])
            for row in np.argsort(-values, kind="stable")[:3].tolist():
                if values[row] <= score * SURE or not (a.ok[row] and b.ok[row]):
                    break
                pair = self._planned(a, row, left.style), self._planned(b, row, right.style)
                now = self._score([*rest, *pair])
                if now > score * SURE:
                    chains[at], chains[other] = pair
                    return [at, other], now
        return None

    def _added(self, chains: Sequence[_PlannedChain], score: float) -> tuple[_PlannedChain, float] | None:
        """A further chain of free nodes that raises the score."""
        if self.goal.speed_weight == 1 and chains:
            return None
        free = self._free(chains)
        if int(self.table.room(1)[free].max(axis=1).sum() if free else 0) < self.table.layers:
            return None
        fastest = min((held.token_ms for held in chains), default=float("inf"))
        style = self.styles[self.turn % len(self.styles)]
        for held in self._grown(free, style, 1.0, 4):
            now = self._score([*chains, held])
            if now > score * SURE and held.token_ms <= self.goal.bar * fastest:
                return held, now
        return None

    def _kicked(self, best: list[_PlannedChain]) -> list[_PlannedChain]:
        """Tear a few chains down and build them anew, until the effort is spent; what is better stays."""
        if not best:
            return best
        score = self._score(best)
        in_vain = 0
        while self.left > 0 and in_vain < 10 * len(self.useful) ** 2:
            many = min(len(best), self.chance.choice((1, 1, 2, 2, 3)))
            first = self.chance.randrange(len(best))
            mine = np.array(best[first].chain.order)
            near = sorted(
                (i for i in range(len(best)) if i != first),
                key=lambda i: (
                    self.chance.random() * float(self.table.way_ms[np.ix_(mine, np.array(best[i].chain.order))].min()),
                    i,
                ),
            )
            gone = {first, *near[: many - 1]}
            kept = [held for i, held in enumerate(best) if i not in gone]
            style = self.chance.choice(self.styles)
            free = self._free(kept)
            allowed = {row for row in free if self.chance.random() < 0.8}
            built = self._built(kept, allowed, style, self.chance.choice((0.1, 0.3, 1.0, 3.0)), len(gone) + 1)
            if not built:
                in_vain += 1
                self.left -= 50
                continue
            found = self._improved([*kept, *built], range(len(kept), len(kept) + len(built)))
            now = self._score(found)
            in_vain += 1
            if now > score * SURE:
                best, score, in_vain = found, now, 0
        return best

    def _polished(self, chains: list[_PlannedChain]) -> list[_PlannedChain]:
        """Layers moved one by one from stage to stage while that helps; no rule for sharing out knows all."""
        score = self._score(chains)
        for at in sorted(range(len(chains)), key=lambda i: (chains[i].token_ms, i)):
            for _ in range(2 * self.table.layers):
                held = chains[at]
                counts = _recut(held.chain.counts)
                if not len(counts):
                    break
                order = np.tile(np.array(held.chain.order, dtype=np.int64), (len(counts), 1))
                batch = timed(self.table, order, counts, np.ones(len(counts), dtype=bool), rates=self.rated)
                rest = [other for i, other in enumerate(chains) if i != at]
                values = self._values(rest, [batch])
                row = int(values.argmax())
                if values[row] <= score * (1 + 1e-6) or not batch.ok[row]:
                    break
                found = self._planned(batch, row, held.style)
                now = self._score([*rest, found])
                if now <= score * (1 + 1e-6):
                    break
                chains[at], score = found, now
        return chains

    def _further(self, chains: list[_PlannedChain]) -> list[_PlannedChain]:
        """Chains of who is left that the score has no use for: slower ones, that serve when the better are busy."""
        if not chains:
            return chains
        fastest = min(held.token_ms for held in chains)
        free = set(self._free(chains))
        style = Style(self.goal.speed_weight < 1, self.reserves[min(2, len(self.reserves) - 1)])
        for tried in (style, Style(style.level, 1)):
            while self.left > 0:
                grown = self._grown(sorted(free), tried, 1.0)
                found = [held for held in grown if held.token_ms <= self.goal.bar * fastest]
                if not found:
                    break
                for held in found:
                    if free.issuperset(held.chain.order):
                        chains = [*chains, held]
                        free.difference_update(held.chain.order)
        return chains


def _one(batch: Batch, row: int) -> Batch:
    at = slice(row, row + 1)
    return Batch(
        batch.order[at],
        batch.counts[at],
        batch.ok[at],
        batch.token_ms[at],
        batch.rates[at],
        batch.running[at],
        batch.sequences[at],
    )


def _spread(found: Batch | None, kept: Ints, order: Ints, counts: Ints, ok: Bools, levels: int) -> Batch:
    """`found` are the rows `kept` of many; the others are not ok."""
    size = len(order)
    all_ok, sequences = np.zeros(size, dtype=bool), np.zeros(size, dtype=np.int64)
    token_ms, rates, running = np.full(size, np.inf), np.zeros((size, levels)), np.ones((size, levels))
    if found is not None:
        all_ok[kept], token_ms[kept], sequences[kept] = found.ok, found.token_ms, found.sequences
        rates[kept], running[kept] = found.rates, found.running
    return Batch(order, counts, all_ok & ok, token_ms, rates, running, sequences)


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
