"""The best disjoint chains of a small pool, exactly.

A state is a count per class of equal nodes: Π(m_i + 1) of them, 2^N at worst, a handful when nodes are alike. Steps:

1. The cheapest way around each state's nodes, for every pair of ends (Held and Karp's recursion over states, in numpy).
2. The best chain on each state: pairs of ends in order of their way, until the bound "way + time of a split that knows
   no ends" says that no other pair can win. A state that cannot beat a part of itself needs no chain (dominance).
3. Disjoint chains: for k = 1, 2, …: D_k[state] = min over chains of D_{k-1}[state - chain] + its time.

For throughput supersets are no worse, so dominance prunes nothing. There each state tries the few cheapest ways, states
that cannot beat their own parts by 1 % are passed over, and the same recursion over upper bounds tells the gap.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from node.plan.placement.chain import Chain, build_chain, share_out, token_ms
from node.plan.placement.pool_table import LARGE_BATCH, PoolTable
from node.plan.placement.water_filling import water_level

MOST_STATES = 4096
"""2^12: twelve nodes that all differ."""
WAYS_TRIED = 2
"""Orders of a state's nodes that throughput tries at least; all of them in pools of up to eight nodes."""
CHAINS_TRIED = 4000
"""Chains that throughput tries in all, about."""
WORTH = 1.01
"""A chain's bound must exceed its parts' best by this factor to be looked at (throughput)."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def state_count(table: PoolTable) -> int:
    """States that an exhaustive search visits."""
    product = 1
    for c in table.classes:
        product = min(product * (len(c.members) + 1), 1 << 40)
    return product


def score_of(chains: Sequence[Chain], objective: str) -> float:
    """What is maximised; 0 for no chain."""
    if not chains:
        return 0.0
    if objective == "throughput":
        return sum(chain.tokens_per_s for chain in chains)
    if objective == "latency":
        return 1000 / min(chain.token_ms for chain in chains)
    return 1000.0 * len(chains) ** 2 / sum(chain.token_ms for chain in chains)


def best_partition(table: PoolTable) -> tuple[list[Chain], float]:
    """Disjoint chains, and the score that no choice exceeds: theirs, but for throughput."""
    search = _Search(table)
    if table.objective == "throughput":
        return search.most_tokens()
    chains = search.undominated()
    picked = search.fastest_each(chains) if table.objective == "latency" else search.best_score(chains)
    built = [chain for order in picked if (chain := build_chain(table, order)) is not None]
    return built, score_of(built, table.objective)


Costs = dict[int, tuple[float, list[int]]]
"""Per state: time per token, and the order of its nodes."""


class _Search:
    """Numbers the states of one table in mixed radix and searches them."""

    def __init__(self, table: PoolTable) -> None:
        self.table = table
        n = len(table.classes)
        radices = [len(c.members) + 1 for c in table.classes]
        self.strides = [1]
        for radix in radices:
            self.strides.append(self.strides[-1] * radix)
        self.size = self.strides.pop()
        numbers = np.arange(self.size)
        columns = [numbers // s % r for s, r in zip(self.strides, radices, strict=True)]
        self.digits: Ints = np.stack(columns, axis=1) if columns else np.zeros((1, 0), dtype=np.int64)
        self.levels: Ints = self.digits.sum(axis=1)
        self.hops = np.array([[table.hop_ms(a, b) for b in range(n)] for a in range(n)], dtype=np.float64)
        returns = np.array([[table.return_ms(last, first) for last in range(n)] for first in range(n)])
        self.ways = self._ways()
        alone = (
            np.diag([c.node.overhead_ms for c in table.classes]).reshape(n, 1, n) * (self.levels == 1)[None, :, None]
        )
        self.around: Floats = self.ways + returns.reshape(n, 1, n) * (self.levels > 1)[None, :, None] + alone
        self.shortest: Floats = self.around.min(axis=(0, 2)) if n else np.full(1, np.inf)
        room = np.array([c.room for c in table.classes], dtype=np.int64)
        enough = (self.digits @ room >= table.layers) & (self.levels <= table.layers) & (self.levels > 0)
        enough &= ~((self.digits > 0) & (room < 1)).any(axis=1)
        chosen = np.flatnonzero(enough)
        self.candidates: list[int] = chosen[np.argsort(self.levels[chosen], kind="stable")].tolist()
        self.relaxed = self._time_without_ends(room)

    def _ways(self) -> Floats:
        """(first, states, last): cheapest hops through all nodes of a state from one class to another."""
        n = len(self.strides)
        ways = np.full((n, self.size, n), np.inf)
        for c, stride in enumerate(self.strides):
            ways[c, stride, c] = 0.0
        for level in range(2, int(self.levels.max(initial=0)) + 1):
            at_level = np.flatnonzero(self.levels == level)
            for last, stride in enumerate(self.strides):
                with_last = at_level[self.digits[at_level, last] > 0]
                if with_last.size:
                    ways[:, with_last, last] = (ways[:, with_last - stride, :] + self.hops[:, last]).min(axis=2)
        return ways

    def _time_without_ends(self, room: Ints) -> Floats:
        """(states,): one layer on each node, the others on the fastest; no split of theirs takes less."""
        table = self.table
        times = np.array([c.layer_ms for c in table.classes])
        left = np.maximum(table.layers - self.levels, 0)
        total = self.digits @ times if len(times) else np.zeros(1)
        for c in sorted(range(len(times)), key=lambda c: (times[c], c)):
            more = np.minimum(left, self.digits[:, c] * max(0, int(room[c]) - 1))
            total = total + more * times[c]
            left = left - more
        head = min((c.head_ms for c in table.classes), default=0.0) if table.has_last else 0.0
        return np.asarray(total + head, dtype=np.float64)

    def _order(self, state: int, first: int, last: int) -> list[int]:
        """The cheapest way from `first` to `last` through `state`, walked backwards."""
        order = [last]
        for _ in range(int(self.levels[state]) - 1):
            state -= self.strides[order[-1]]
            order.append(int((self.ways[first, state] + self.hops[:, order[-1]]).argmin()))
        return order[::-1]

    def undominated(self) -> Costs:
        """The fastest chain of each state that beats every part of itself."""
        best = [np.inf] * self.size
        bounds = (self.relaxed + self.shortest).tolist()
        steps = [[s for s, d in zip(self.strides, row, strict=True) if d] for row in self.digits.tolist()]
        found: Costs = {}
        for state in self.candidates:
            best[state] = min(best[state - step] for step in steps[state])
            if bounds[state] < best[state]:
                chain = self._fastest(state, best[state])
                if chain is not None:
                    found[state] = chain
                    best[state] = chain[0]
        return found

    def _fastest(self, state: int, to_beat: float) -> tuple[float, list[int]] | None:
        """The fastest chain through all nodes of `state`; None when none takes less than `to_beat` ms."""
        around = self.around[:, state, :]
        relaxed, n = float(self.relaxed[state]), len(self.strides)
        found: tuple[float, list[int]] | None = None
        for pair in np.argsort(around, axis=None, kind="stable").tolist():
            if relaxed + float(around[pair // n, pair % n]) >= to_beat:
                break
            order = self._order(state, pair // n, pair % n)
            counts = share_out(self.table, order)
            if counts is None:
                continue
            time = token_ms(self.table, order, counts)
            if time < to_beat:
                to_beat, found = time, (time, order)
        return found

    def fastest_each(self, chains: Costs) -> list[list[int]]:
        """The fastest chain, then the fastest of what is left: the first user gets the best there is."""
        picked: list[list[int]] = []
        left = self.digits[-1].copy()
        for state, (_, order) in sorted(chains.items(), key=lambda item: (item[1][0], item[0])):
            while (self.digits[state] <= left).all():
                picked.append(order)
                left = left - self.digits[state]
        return picked

    def best_score(self, chains: Costs) -> list[list[int]]:
        """The k chains of the least total time, for the k of the best Z(k); the smaller k of equals."""
        full = self.size - 1
        tables: list[Floats] = [np.zeros(self.size)]
        within = {state: np.flatnonzero((self.digits >= self.digits[state]).all(axis=1)) for state in chains}
        best_k, best_z = 0, 0.0
        while True:
            before, now = tables[-1], np.full(self.size, np.inf)
            for state, (time, _) in chains.items():
                holders = within[state]
                now[holders] = np.minimum(now[holders], before[holders - state] + time)
            if not np.isfinite(now[full]):
                break
            tables.append(now)
            k = len(tables) - 1
            z = k * k / float(now[full])
            if z > best_z * (1 + 1e-12):
                best_k, best_z = k, z
        picked, state = [], full
        for k in range(best_k, 0, -1):
            target = tables[k][state] * (1 + 1e-9)
            for taken, (time, order) in sorted(chains.items()):
                if (self.digits[state] >= self.digits[taken]).all() and tables[k - 1][state - taken] + time <= target:
                    picked.append(order)
                    state -= taken
                    break
        return picked

    def most_tokens(self) -> tuple[list[Chain], float]:
        """Chains of the most tokens per second in all, and the bound. A state leaves out or uses its lowest class."""
        total, bound, rates, limits = (np.zeros(self.size) for _ in range(4))
        choice = np.full(self.size, -1)
        chains: dict[int, Chain] = {}
        possible = set(self.candidates)
        lowest = np.argmax(self.digits > 0, axis=1).tolist() if self.strides else [0]
        for state in range(1, self.size):
            step = self.strides[lowest[state]]
            parts = self._parts_with(state, lowest[state])[:-1]  # the last is the state itself
            gains, promises = rates[parts] + total[state - parts], limits[parts] + bound[state - parts]
            best = int(np.argmax(gains)) if gains.size else -1
            total[state], bound[state] = total[state - step], bound[state - step]
            if best >= 0 and gains[best] > total[state] * (1 + 1e-12):
                total[state], choice[state] = gains[best], parts[best]
            bound[state] = max(bound[state], float(promises.max(initial=0.0)))
            if state not in possible:
                continue
            limits[state] = self._limit(state)
            bound[state] = max(bound[state], limits[state])
            if limits[state] > total[state] * WORTH:
                chain = self._fullest(state)
                if chain is not None:
                    chains[state], rates[state] = chain, chain.tokens_per_s
                    if rates[state] > total[state] * (1 + 1e-12):
                        total[state], choice[state] = rates[state], state
        picked, state = [], self.size - 1
        while state > 0:
            taken = int(choice[state])
            if taken >= 0:
                picked.append(chains[taken])
            state -= taken if taken >= 0 else self.strides[lowest[state]]
        return picked, float(bound[-1])

    def _limit(self, state: int) -> float:
        """Tokens per second that no chain on `state` exceeds: full batches at the water level, or the fewest hops."""
        level = int(self.levels[state])
        time = float(self.relaxed[state] + self.shortest[state])
        room, speeds = [], []
        for c, number in enumerate(self.digits[state].tolist()):
            room += [self.table.classes[c].room] * number
            speeds += [1 / self.table.classes[c].large_layer_ms] * number
        slowest = water_level(room, speeds, self.table.layers)
        return 1000 * LARGE_BATCH * min(level / time, 1 / slowest)

    def _fullest(self, state: int) -> Chain | None:
        """The chain of the most tokens per second among the cheapest ways through `state`."""
        around, n = self.around[:, state, :], len(self.strides)
        found: Chain | None = None
        built, tries = 0, max(WAYS_TRIED, CHAINS_TRIED // len(self.candidates))
        for pair in np.argsort(around, axis=None, kind="stable").tolist():
            if built == tries or not np.isfinite(around[pair // n, pair % n]):
                break
            chain = build_chain(self.table, self._order(state, pair // n, pair % n))
            if chain is not None:
                built += 1
                if found is None or chain.tokens_per_s > found.tokens_per_s * (1 + 1e-12):
                    found = chain
        return found

    def _parts_with(self, state: int, lowest: int) -> Ints:
        """Every part of `state` that has a node of class `lowest`, the state itself last."""
        parts = np.zeros(1, dtype=np.int64)
        for c, number in enumerate(self.digits[state].tolist()):
            if number:
                steps = np.arange(1 if c == lowest else 0, number + 1) * self.strides[c]
                parts = (steps[:, None] + parts[None, :]).ravel()
        return parts
