"""What a plan aims at, as values: nowhere else in `node.plan` is one objective told from another.

A layout is worth

    score = (tokens/s of one user alone)^w · (tokens/s of `users` users together)^(1-w)

where the one user has the fastest chain for himself, and the users go to the chains as they serve them best.

- **latency**, w = 1: the least step for one user.
- **throughput**, w = 0: the most tokens per second for `Workload.users`.
- **balanced**, w = 1/2: the geometric mean, Nash's bargain between somebody who is alone and a swarm that is full: a
  per cent of the one's speed is given up for more than a per cent of the others'. It has no threshold where a plan that
  measures 1 % slower suddenly is worth nothing, as "the most tokens/s within 15 % of the best step" would have; and it
  depends on nothing but the layout, so that a node that joins never makes what is held worth less, and everybody who
  asks is told the same. What it gives up of either is printed by `tests/bench/placement_quality`.
- **share** gives every node layers in proportion to memory (exo's rule), and is told as balanced is.

`auto` is what people ask for who leave it to us; `live.propose.resolved` makes one of these of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from node.errors import UnknownObjective

LayerRule = Literal["fastest first", "level"]
"""Rules for the layers of a chain: the fastest node is filled first, for one user's time is a sum; or all fill to one
level, for many users' rate is set by the slowest."""

Curve = tuple[tuple[float, float], ...]
"""(users, tokens per second of them together) on one chain, by users: rising, and less and less so."""


class Served(Protocol):
    """A chain, as objectives see it."""

    @property
    def token_ms(self) -> float: ...

    @property
    def curve(self) -> Curve: ...


@dataclass(frozen=True, slots=True)
class Goal:
    """One objective."""

    name: Literal["share", "latency", "throughput", "balanced"]
    speed_weight: float
    """w: how much one user's speed counts against that of all together."""
    layer_rules: tuple[LayerRule, ...]
    """Rules that are tried for the layers of a chain."""
    reserve: int
    """Sequences that every chain should have KV room for, whatever the score says; fewer where memory is short."""
    bar: float
    """A further chain may take this many times the fastest one's time; beyond it, it serves nobody."""
    by_memory: bool = False
    """Layers are shared out by memory, and nothing is searched for."""

    def score(self, chains: Sequence[Served], users: int) -> float:
        """What these chains, on nodes of their own, are worth: higher is better, 0 for none."""
        if not chains:
            return 0.0
        alone = 1000 / min(chain.token_ms for chain in chains)
        return self.mix(alone, together((chain.curve for chain in chains), users))

    def mix(self, alone: float, all_users: float) -> float:
        """The score of these two figures, in tokens per second."""
        if self.speed_weight in (0.0, 1.0):
            return alone if self.speed_weight else all_users
        return float(alone**self.speed_weight * all_users ** (1 - self.speed_weight))

    def bound(self, most_alone: float, most_together: float) -> float:
        """A score that none exceeds where one user gets no more than this, and all together no more than that."""
        return self.mix(most_alone, most_together)

    def reserves(self, users: int) -> tuple[int, ...]:
        """Sequences with KV room to plan for, in turn: 16, 8, 4, 2, 1. What counts tokens per second begins with all
        users."""
        most = max(1, self.reserve if self.speed_weight == 1 else min(users, MOST_RESERVED))
        found = [most]
        while found[-1] > 1:
            found.append(found[-1] // 2)
        return tuple(found)


MOST_RESERVED = 64
"""Sequences on one chain: with more of them a step takes longer for all."""

LATENCY = Goal("latency", 1.0, ("fastest first", "level"), reserve=4, bar=3.0)
THROUGHPUT = Goal("throughput", 0.0, ("level", "fastest first"), reserve=1, bar=12.0)
BALANCED = Goal("balanced", 0.5, ("fastest first", "level"), reserve=1, bar=12.0)
SHARE = Goal("share", 0.5, (), reserve=1, bar=12.0, by_memory=True)

GOALS = {goal.name: goal for goal in (SHARE, LATENCY, THROUGHPUT, BALANCED)}


def goal_named(name: str) -> Goal:
    """The objective of that name.

    Raises:
        UnknownObjective: there is none.
    """
    found = next((goal for goal in GOALS.values() if goal.name == name), None)
    if found is None:
        raise UnknownObjective(name, sorted(GOALS))
    return found


def together(curves: Iterable[Curve], users: float) -> float:
    """Tokens per second of `users` users who go where they add most, one after another."""
    gains: list[tuple[float, float]] = []
    for curve in curves:
        before = rate = 0.0
        for number, tokens_per_s in curve:
            if number > before:
                gains.append(((tokens_per_s - rate) / (number - before), number - before))
                before, rate = number, tokens_per_s
    gains.sort(reverse=True)
    total = 0.0
    for gain, width in gains:
        taken = min(width, users)
        if taken <= 0 or gain <= 0:
            break
        total += gain * taken
        users -= taken
    return total
