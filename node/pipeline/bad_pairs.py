"""Pairs of nodes between which requests of this head failed, where neither of the two is known to be at fault.

A link that breaks says nothing about either end, and of two nodes that blame one another one lies. So a chain keeps
away from the two as neighbours, and from neither of them; whoever quarrels with two others is at fault itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from node.pipeline.generation import Pair
from node.wire.frames import Hop

LINK_S = 10.0
"""A link that broke: both ends' records tell by then whether they reach one another."""
QUARREL_S = 60.0
"""One says that it has done its part, and so does the other."""
REMEMBERED_S = 600.0
"""A second quarrel of the same node within this time tells whose fault both were."""
MOST_PAIRS = 1024
"""Then the oldest is forgotten."""


@dataclass(slots=True)
class _Known:
    until_s: float
    quarrelled_s: float | None = None


class BadPairs:
    """Those of one head."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._known: dict[Pair, _Known] = {}

    def broke(self, pair: Pair) -> None:
        """The link between them broke under a request."""
        self._avoid(pair, LINK_S)

    def quarrelled(self, pair: Pair) -> str | None:
        """Something got lost between them; who of them has quarrelled with another node too, and is at fault."""
        now_s = self._clock()
        self._avoid(pair, QUARREL_S)
        self._known[pair].quarrelled_s = now_s
        for node in sorted(pair):
            if any(node in other and other != pair for other in self._quarrels()):
                return node
        return None

    def now(self) -> frozenset[Pair]:
        """Those to keep away from."""
        now_s = self._clock()
        return frozenset(pair for pair, known in self._known.items() if known.until_s > now_s)

    def next_change_s(self) -> float:
        """When one of them may be used again."""
        now_s = self._clock()
        return min((known.until_s for known in self._known.values() if known.until_s > now_s), default=float("inf"))

    def _quarrels(self) -> Iterator[Pair]:
        since_s = self._clock() - REMEMBERED_S
        return (
            p for p, known in self._known.items() if known.quarrelled_s is not None and known.quarrelled_s > since_s
        )

    def _avoid(self, pair: Pair, for_s: float) -> None:
        former = self._known.pop(pair, None)
        until_s = self._clock() + for_s
        self._known[pair] = _Known(
            max(until_s, former.until_s if former is not None else 0.0),
            former.quarrelled_s if former is not None else None,
        )
        if len(self._known) > MOST_PAIRS:
            del self._known[next(iter(self._known))]


def neighbours(chain: tuple[Hop, ...], head: str) -> set[Pair]:
    """Nodes of a chain that send one another frames: from hop to hop, from the tail to the first, and with the head."""
    nodes = [hop.node_id for hop in chain]
    ring = {frozenset(two) for two in pairwise([*nodes, nodes[0]])}
    return ring | {frozenset((head, node)) for node in nodes}
