"""Prints how good the plans of unequal pools are: against trying all, against a long search, when a node joins.

python -m tests.bench.placement_quality             # quick: some minutes
python -m tests.bench.placement_quality full        # 8 nodes by trying all, 60 s of search for each pool: hours
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median

from node.errors import DoesNotFit
from node.plan import allocate
from node.plan.costs.model import ModelCost
from node.plan.machines.pool import Links, PoolNode, Workload
from node.plan.objectives import BALANCED, LATENCY, THROUGHPUT, Goal
from node.plan.placement.pool_table import PoolTable
from node.plan.placement.search import best_chains, usual_effort
from tests.bench.exhaustive_placement import best_of_sets, best_score
from tests.fakes.pools import jittered, machines, mixture, small_model, unequal

GOALS = (LATENCY, THROUGHPUT, BALANCED)
USERS = Workload().users
MINUTE_EFFORT = 60_000_000
MODELS = (mixture(36), small_model(32, 512), small_model(60, 1024), small_model(24, 4096))


def score(model: ModelCost, nodes: Sequence[PoolNode], links: Links, goal: Goal, effort: int | None = None) -> float:
    """Of the plan that the search finds."""
    return goal.score(best_chains(PoolTable(model, nodes, links, Workload()), goal, effort), USERS)


def line(name: str, goal: Goal, ratios: Sequence[float]) -> None:
    """Quantiles of some ratios."""
    ordered = sorted(ratios)
    least, tenth = ordered[0], ordered[len(ordered) // 10]
    print(f"{name:34}{goal.name:12}{len(ratios):6}{least:9.3f}{tenth:9.3f}{median(ratios):9.3f}")


def against_all(sizes: Sequence[int], seeds: int) -> None:
    """Any nodes in any order, any split, any disjoint chains: 8 layers, so that all can be tried."""
    for n in sizes:
        ratios: dict[Goal, list[float]] = {goal: [] for goal in GOALS}
        for seed in range(seeds):
            model = small_model(8, random.Random(seed).choice([512, 1024, 2048, 4096]))
            nodes, links = unequal(n, seed, (1, 24))
            table = PoolTable(model, nodes, links, Workload())
            sets = best_of_sets(table, n)
            for goal in GOALS if sets else ():
                ratios[goal].append(score(model, nodes, links, goal) / best_score(table, goal, sets))
        for goal, found in ratios.items():
            line(f"{n} unequal nodes / the best", goal, found)


def against_long(sizes: Sequence[int], seeds: int, effort: Callable[[int], int]) -> None:
    """The same search with much more effort."""
    for kind, pool in (("unequal", unequal), ("four kinds ±20 %", four_kinds)):
        for goal in GOALS:
            ratios = []
            for n in sizes:
                for seed in range(seeds):
                    nodes, links = pool(n, seed)
                    model = MODELS[seed % len(MODELS)]
                    long = score(model, nodes, links, goal, effort(n))
                    if long:
                        ratios.append(score(model, nodes, links, goal) / long)
            line(f"{sizes[0]}–{sizes[-1]} {kind} / long search", goal, ratios)


def four_kinds(n: int, seed: int) -> tuple[list[PoolNode], Links]:
    """Servers and desktops of four kinds in four regions, as they measure themselves."""
    chance = random.Random(seed)
    kinds = "".join(chance.choice("ABCD") for _ in range(n))
    links = Links({("eu", "us"): 90.0, ("eu", "ap"): 180.0, ("us", "ap"): 140.0})
    return jittered(machines(kinds, ("eu", "us", "ap")), seed), links


def joined(sizes: Sequence[int], seeds: int) -> None:
    """The score with one more node over that without it, both planned from nothing."""
    for goal in GOALS:
        ratios = []
        for n in sizes:
            for seed in range(seeds):
                nodes, links = unequal(n + 1, 100 + seed)
                model = MODELS[seed % len(MODELS)]
                if before := score(model, nodes[:n], links, goal):
                    ratios.append(score(model, nodes, links, goal) / before)
        line("one node more / without it", goal, ratios)


def balance(seeds: int) -> None:
    """What balanced gives up: one user's speed against latency's plan, all users' rate against throughput's."""
    speeds, rates = [], []
    for seed in range(seeds):
        nodes, links = unequal(3 + seed % 6, seed, (4, 48))
        model = small_model(24, 1024)
        try:
            plans = {goal: allocate(model, nodes, links, goal.name) for goal in GOALS}
        except DoesNotFit:
            continue
        alone = {goal: 1 / plan.pipelines[0].token_ms for goal, plan in plans.items()}
        together = {goal: THROUGHPUT.score(plan.pipelines, USERS) for goal, plan in plans.items()}
        speeds.append(alone[BALANCED] / alone[LATENCY])
        rates.append(together[BALANCED] / together[THROUGHPUT])
    line("one user's speed / latency's", BALANCED, speeds)
    line("all users' rate / throughput's", BALANCED, rates)


def processor_time() -> None:
    """Of `allocate`, the best of three."""
    for n in (12, 64, 256):
        nodes, links = unequal(n, 3)
        for goal in GOALS:
            times = []
            for _ in range(3):
                started = time.process_time()
                allocate(MODELS[0], nodes, links, goal.name)
                times.append(time.process_time() - started)
            print(f"allocate, {n} unequal nodes, {goal.name}: {min(times) * 1000:.0f} ms of processor time")


def main(*, full: bool) -> None:
    """All tables."""
    print(f"{'':34}{'objective':12}{'pools':>6}{'least':>9}{'p10':>9}{'median':>9}")
    against_all((4, 5, 6, 7, 8) if full else (4, 5, 6), 20 if full else 12)
    if full:
        against_long((13, 16, 24, 32, 48, 64), 8, lambda _: MINUTE_EFFORT)
    else:
        against_long((13, 24, 64), 4, lambda n: 20 * usual_effort(n))
    joined((6, 9, 12, 13, 16, 24), 20 if full else 4)
    balance(60 if full else 24)
    processor_time()


if __name__ == "__main__":
    main(full="full" in sys.argv[1:])
