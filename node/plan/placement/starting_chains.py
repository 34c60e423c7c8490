"""Plans that the search improves: the one in force, and chains that grow from seeds or in a beam, or are packed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from node.plan.placement.chains import as_rows
from node.plan.placement.packed_chains import PackedChains
from node.plan.placement.worth import PlannedChain, Style, Worth

SEEDS = 12
"""Nodes that chains begin with when they grow side by side."""
LONGEST = 12
"""Stages of the chains that greedy starts try."""
BEAM, BEAM_PLACES = 96, 4096
"""Chains that are kept at each length of a beam search; fewer in large pools, so that these times nodes is no more."""
BEAM_HOPE = 1.1
"""A chain is gone on with while it may come within this of the best one."""
SURE = 1 + 1e-9


class StartingChains:
    """Of what `worth` counts."""

    def __init__(self, worth: Worth) -> None:
        self._worth = worth

    def starts(self, in_force: Sequence[Sequence[int]]) -> list[list[PlannedChain]]:
        """Plans to improve, the best first: the one in force, the best chain alone, and as many short ones as help."""
        starts: list[list[PlannedChain]] = []
        held = [self._worth.restyled(tuple(order)) for order in in_force if order]
        starts.append([chain for chain in held if chain is not None])
        styles = [self._worth.styles[0], self._worth.styles[-1], self._worth.styles[len(self._worth.styles) // 2]]
        grown = [chain for style in dict.fromkeys(styles) for chain in self._grown(self._worth.useful, style, 1.0)]
        if grown:
            starts.append([max(grown, key=lambda chain: self._worth.score([chain]))])
        if self._worth.goal.speed_weight > 0:
            beamed = self._beamed(self._worth.styles[0], 3)
            starts += [[chain] for chain in (beamed if not self._worth.rated else beamed[:1])]
        if self._worth.rated:
            starts.append(self._packed(grown))
            starts += PackedChains(self._worth).plans()
        starts = [start for start in starts if start]
        if not starts:  # greedy chains may miss a tight fit
            last = self._last_resort()
            starts = [[last]] if last is not None else []
        distinct = {tuple(sorted(chain.chain.order for chain in start)): start for start in starts}
        return sorted(distinct.values(), key=self._worth.score, reverse=True)

    def _beamed(self, style: Style, most: int) -> list[PlannedChain]:
        """The chains of the least time among those that a beam search finds, every node filled before the next one."""
        table = self._worth.table
        nodes = np.array(self._worth.useful, dtype=np.int64)
        room = table.room(style.sequences)[nodes]
        if not len(nodes) or int(room.max(axis=1).sum()) < table.layers:
            return []
        width = max(16, min(BEAM, BEAM_PLACES // len(nodes)))
        one = table.layer_ms[nodes] + table.chunk_ms[nodes] / table.workload.output_tokens
        both = np.ix_(nodes, nodes)
        hops, back = self._worth.hop_ms[both], table.way_ms[both]
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
            self._worth.left -= 250 + 0.12 * taken.size
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
        found = self._worth.timed(
            as_rows(chains), np.full(len(chains), style.level), np.full(len(chains), style.sequences)
        )
        token_ms = self._worth.counted(found)[0]
        by_time = [row for row in np.argsort(token_ms, kind="stable").tolist() if found.ok[row]]
        return [self._worth.planned(found, row, style) for row in by_time[:most]]

    def _packed(self, grown: Sequence[PlannedChain]) -> list[PlannedChain]:
        """Of chains that overlap some that do not, as long as each raises the score, the short and fast ones first."""
        chains: list[PlannedChain] = []
        score, used = 0.0, set[int]()
        for held in sorted(grown, key=lambda held: (held.token_ms * len(held.chain.order), held.chain.order)):
            if used.isdisjoint(held.chain.order):
                now = self._worth.score([*chains, held])
                if now > score * SURE:
                    chains.append(held)
                    used.update(held.chain.order)
                    score = now
        return chains

    def built(
        self, kept: Sequence[PlannedChain], free: set[int], style: Style, alone_ms: float, most: int
    ) -> list[PlannedChain]:
        """Up to `most` chains of free nodes beside those `kept`, as long as they raise the score."""
        chains: list[PlannedChain] = []
        score = self._worth.score(kept)
        while free and self._worth.left > 0 and len(chains) < most:
            grown = self._grown(sorted(free), style, alone_ms, 4)
            found = max(grown, key=lambda held: self._worth.score([*kept, *chains, held]), default=None)
            if found is None:
                break
            now = self._worth.score([*kept, *chains, found])
            if now <= score * SURE:
                break
            chains.append(found)
            free.difference_update(found.chain.order)
            score = now
        return chains

    def _grown(self, free: Sequence[int], style: Style, alone_ms: float, most: int = SEEDS) -> list[PlannedChain]:
        """A chain from each of some seeds, each as long as suits it best; the best first. They overlap."""
        table = self._worth.table
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
        for length in range(2, min(len(nodes), table.layers, LONGEST if self._worth.rated else table.layers) + 1):
            self._worth.left -= 150 + 0.06 * taken.size
            wanted = need[:, None]
            completes = ending[None, :] >= wanted
            gain = np.minimum(np.where(completes, ending[None, :], plain[None, :]), np.maximum(wanted, some))
            hops = self._worth.hop_ms[nodes[orders[:, -1]]][:, nodes] * alone_ms
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
            if not self._worth.rated or not going.all():
                going &= ~done
                orders, taken, need = orders[going], taken[going], need[going]
                every = np.arange(len(orders))
                if not len(orders):
                    break
            if self._worth.rated and length >= 3 and done.all() and len(whole) > 8 * SEEDS:
                break
        if not whole:
            return []
        found = self._worth.timed(
            as_rows(whole), np.full(len(whole), style.level), np.full(len(whole), style.sequences)
        )
        values = self._worth.values((), [found])
        best_of_seed: dict[int, int] = {}
        for row in np.argsort(-values, kind="stable").tolist():
            if found.ok[row]:
                best_of_seed.setdefault(whole[row][0], row)
        return [self._worth.planned(found, row, style) for row in list(best_of_seed.values())[:most]]

    def _last_resort(self) -> PlannedChain | None:
        """A chain of whoever has room, wherever they are: the roomiest first, the ends where they cost least."""
        room = self._worth.table.room(1)
        able = sorted(self._worth.useful, key=lambda row: (-int(room[row, 0]), row))
        if not able or self._worth.table.layers < 1:
            return None
        begins = sorted((row for row in able if room[row, 1] > 0), key=lambda row: (room[row, 0] - room[row, 1], row))
        finishes = sorted((row for row in able if room[row, 2] > 0), key=lambda row: (room[row, 0] - room[row, 2], row))
        orders = [[row] for row in able if room[row, 3] >= self._worth.table.layers]
        for first in begins[:3]:
            for last in finishes[:3]:
                if first == last:
                    continue
                need = self._worth.table.layers - int(room[first, 1]) - int(room[last, 2])
                middle = []
                for row in able:
                    if need <= 0:
                        break
                    if row not in (first, last):
                        middle.append(row)
                        need -= int(room[row, 0])
                orders.append([first, *middle, last])
        found = [held for order in orders if (held := self._worth.restyled(tuple(order))) is not None]
        return min(found, key=lambda held: held.token_ms, default=None)
