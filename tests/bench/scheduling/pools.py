"""The pools that schedulers are compared on: alike, a few kinds jittered as live machines are, and fully unequal."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from node.plan.costs.model import ModelCost
from node.plan.machines.pool import Links, Pool, PoolNode
from tests.fakes.pools import GIB, machine, machines, mixture

REGIONS = ("eu", "us", "ap", "sa")
WIDE = Links(
    {("eu", "us"): 90.0, ("eu", "ap"): 180.0, ("eu", "sa"): 200.0, ("us", "ap"): 140.0, ("us", "sa"): 120.0,
     ("ap", "sa"): 300.0}
)  # fmt: skip
HOME = Links(near_ms=1.0)


@dataclass(frozen=True, slots=True)
class NamedPool:
    """A pool for every seed."""

    name: str
    model: ModelCost
    make: Callable[[int], Pool]
    churn: bool = False
    """Whether one node crashes, one slows down and one joins while requests come."""

    @property
    def unequal(self) -> bool:
        return "unequal" in self.name


def mixed(n: int, seed: int = 5, regions: Sequence[str] = REGIONS) -> list[PoolNode]:
    """n nodes of four kinds in these regions."""
    chance = random.Random(seed)
    return [machine(i, chance.choice("ABCD"), chance.choice(regions)) for i in range(n)]


def jittered(nodes: Sequence[PoolNode], chance: random.Random) -> tuple[PoolNode, ...]:
    """What nodes of one kind measure differs: each figure up to 20 % off."""
    return tuple(
        replace(
            node,
            bandwidth_bytes_per_s=node.bandwidth * chance.uniform(0.8, 1.2),
            flops_per_s=node.flops * chance.uniform(0.8, 1.2),
            memory_bytes=int(node.memory_bytes * chance.uniform(0.8, 1.2)),
        )
        for node in nodes
    )


def unequal(n: int, seed: int) -> Pool:
    """n machines with nothing in common: 4–96 GiB, bandwidths 1e10–2e12, links of 0.2–200 ms and 10–10,000 Mbit/s."""
    chance = random.Random(seed)

    def between(least: float, most: float) -> float:
        return math.exp(chance.uniform(math.log(least), math.log(most)))

    nodes = []
    for index in range(n):
        bandwidth = between(1e10, 2e12)
        nodes.append(
            PoolNode(f"n{index:03}", int(between(4, 96) * GIB), bandwidth, bandwidth * between(10, 150), f"r{index}")
        )
    pairs = [(a.node_id, b.node_id) for i, a in enumerate(nodes) for b in nodes[:i]]
    return Pool(
        tuple(nodes),
        Links({pair: between(0.2, 200) for pair in pairs}, {pair: between(10, 10_000) for pair in pairs}),
    )


def pools() -> list[NamedPool]:
    """All of them, the small ones first."""

    def kinds(letters: str, regions: Sequence[str], links: Links) -> Callable[[int], Pool]:
        return lambda seed: Pool(jittered(machines(letters, regions), random.Random(seed)), links)

    def many(n: int, regions: Sequence[str]) -> Callable[[int], Pool]:
        return lambda seed: Pool(jittered(mixed(n, seed, regions), random.Random(seed)), WIDE)

    return [
        NamedPool("4 alike", mixture(24), lambda seed: Pool(tuple(machines("AAAA")), HOME)),
        NamedPool("5 mixed, 1 region", mixture(24), kinds("ABCAD", ("",), HOME)),
        NamedPool("9 mixed, 1 region", mixture(36), kinds("AAABBCCDD", ("",), HOME)),
        NamedPool("9 mixed, 3 regions", mixture(24), kinds("AAABBCCDD", REGIONS[:3], WIDE)),
        NamedPool("9 mixed, 2 regions, churn", mixture(24), kinds("AABABCACD", REGIONS[:2], WIDE), churn=True),
        NamedPool("6 unequal", mixture(12), lambda seed: unequal(6, seed)),
        NamedPool("10 unequal", mixture(24), lambda seed: unequal(10, seed)),
        NamedPool("16 unequal", mixture(24), lambda seed: unequal(16, seed)),
        NamedPool("24 mixed, 3 regions", mixture(36), many(24, REGIONS[:3])),
        NamedPool("24 mixed, 3 regions, churn", mixture(36), many(24, REGIONS[:3]), churn=True),
        NamedPool("32 unequal", mixture(36), lambda seed: unequal(32, seed)),
        NamedPool("64 mixed, 4 regions", mixture(36), many(64, REGIONS)),
        NamedPool("64 unequal", mixture(36), lambda seed: unequal(64, seed)),
    ]
