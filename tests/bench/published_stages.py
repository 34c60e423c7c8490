"""The fewest nodes that k whole pipelines need: s*(k), exactly but in large pools of unequal nodes.

k pipelines are k disjoint groups of capacities, each of at least L (bin covering). Two facts replace the exponential
state of the published algorithm:

- An unused node can take the place of a smaller used one, so *the s largest* capacities suffice: s*(k) is the smallest
  s whose s largest capacities can be dealt into k groups.
- Nodes of equal capacity are interchangeable, so a state is a count per capacity; a group starts with the largest
  capacity left, ends with the one that completes it, and wastes no more than Σc - k·L in all.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

from node.errors import BadLayers
from node.plan.placement.water_filling import check_capacities, whole

EFFORT = 40_000
"""Groups tried in one call, about half a second, before an open question is left to a greedy deal. Pools of up to 30
random capacities stay below; beyond, a rare s* may be one node too many."""
DEEPEST = 200
"""Groups that the exhaustive search deals; more are left to the greedy deal."""
WIDEST = 60
"""Ways to complete one group that are tried, the least wasteful first."""


def minimal_stages(capacities: Sequence[int], layers: int) -> list[int | None]:
    """s*(k) for k = 1 … min(N, ⌊Σc/L⌋): the fewest nodes that make k disjoint pipelines; None where no choice does.

    In pools of dozens of unequal nodes the search may end (see `EFFORT`): then a figure may be one too many, and None
    may stand for a choice that was not found.

    Raises:
        BadLayers: there is no layer, or a capacity is negative or no whole number.
    """
    asked = f"0:{str(layers)[:20]}"
    if not whole(layers) or layers < 1:
        raise BadLayers(asked, "a model has at least one layer, a whole number of them")
    check_capacities(asked, capacities)
    ordered = sorted((capacity for capacity in capacities if capacity > 0), reverse=True)
    most = min(len(capacities), sum(ordered) // layers)
    alone = sum(1 for capacity in ordered if capacity >= layers)
    found: list[int | None] = [k for k in range(1, min(alone, most) + 1)]
    search = _Search(ordered[alone:], layers)
    used = 0
    for pipelines in range(1, most - len(found) + 1):
        more = search.fewest(pipelines, used)
        if more is None:
            return found + [None] * (most - len(found))
        used = more
        found.append(alone + more)
    return found


def pipeline_score(pipelines: int, stages: int, alpha: float, compute_ms: float, rtt_ms: float) -> float:
    """Z(k) = k^alpha / (T_comp + (s*/k)·r_RTT)."""
    latency = compute_ms + stages / pipelines * rtt_ms
    return pipelines**alpha / latency if latency > 0 else math.inf


def best_pipeline_count(stages: Sequence[int | None], alpha: float, compute_ms: float, rtt_ms: float) -> int:
    """k̂, the k of the largest Z(k); the smaller of equals, 0 where not even one pipeline exists."""
    scores = [(pipeline_score(k, s, alpha, compute_ms, rtt_ms), -k) for k, s in enumerate(stages, start=1) if s]
    return -max(scores, default=(0.0, 0))[1]


class _Search:
    """Deals capacities below L into groups of at least L."""

    def __init__(self, ordered: Sequence[int], layers: int) -> None:
        self._ordered, self._layers = ordered, layers
        self._values = sorted(set(ordered), reverse=True)
        self._effort = EFFORT
        self._sums = [0]
        for capacity in ordered:
            self._sums.append(self._sums[-1] + capacity)

    def fewest(self, pipelines: int, used_before: int) -> int | None:
        """The smallest m whose m largest capacities cover `pipelines` groups; `used_before` is it for one group less.

        A solution for k less its largest group is one for k - 1, so that m·(k - 1)/k >= `used_before`.
        """
        least = max(2 * pipelines, used_before + 2)
        if pipelines > 1:
            least = max(least, -(-used_before * pipelines // (pipelines - 1)))
        for m in range(least, len(self._ordered) + 1):
            if self._sums[m] >= pipelines * self._layers and self._covers(m, pipelines):
                return m
        return None

    def _covers(self, m: int, pipelines: int) -> bool:
        count = Counter(self._ordered[:m])
        left = [count[value] for value in self._values]
        if self._greedy(left.copy(), pipelines):
            return True
        waste = self._sums[m] - pipelines * self._layers
        return pipelines <= DEEPEST and self._deal(left, pipelines, waste, set())

    def _greedy(self, left: list[int], pipelines: int) -> bool:
        """The largest capacity, others while even the largest does not complete, then the smallest that does."""
        while pipelines > 0:
            need = self._layers
            used: Counter[int] = Counter()
            while need > 0:
                present = [i for i, number in enumerate(left) if number > used[i]]
                if not present:
                    return False
                enough = [i for i in present if self._values[i] >= need]
                chosen = enough[-1] if enough else present[0]
                used[chosen] += 1
                need -= self._values[chosen]
            # While all of its capacities are there, the next group is the same one.
            alike = max(1, min(pipelines, *(left[i] // number for i, number in used.items())))
            for i, number in used.items():
                left[i] -= alike * number
            pipelines -= alike
        return True

    def _deal(self, left: list[int], pipelines: int, waste: int, failed: set[tuple[int, ...]]) -> bool:
        """Whether `pipelines` groups can be dealt from `left`, wasting no more than `waste`. Restores `left`."""
        if pipelines == 0:
            return True
        state = tuple(left)
        if state in failed or self._effort <= 0:
            return False
        largest = next((i for i, number in enumerate(left) if number), None)
        if largest is None:
            return False
        left[largest] -= 1
        need = self._layers - self._values[largest]
        groups = sorted(islice(self._completions(left, largest, need, waste), 20 * WIDEST))[:WIDEST]
        self._effort -= 1
        for over, group in groups:
            self._effort -= 1
            for i in group:
                left[i] -= 1
            done = self._deal(left, pipelines - 1, waste - over, failed)
            for i in group:
                left[i] += 1
            if done:
                left[largest] += 1
                return True
        left[largest] += 1
        failed.add(state)
        return False

    def _completions(
        self, left: Sequence[int], start: int, need: int, waste: int
    ) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Smallest ways to reach `need` from the values at `start` and after: how much they overshoot, and which."""
        for i in range(start, len(left)):
            value = self._values[i]
            if not left[i]:
                continue
            whole = -(-need // value)
            if whole <= left[i] and whole * value - need <= waste:
                yield whole * value - need, (i,) * whole
            for taken in range(min(left[i], whole - 1), 0, -1):
                for over, rest in self._completions(left, i + 1, need - taken * value, waste):
                    yield over, (i,) * taken + rest
