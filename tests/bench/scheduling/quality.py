"""Ours against the others: a row for each pool and load, its objective named beforehand, the median of several seeds.

Rates are compared where all ask at once; else mean times to answer, and only of schedulers that keep up.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from node.plan.costs.model import ModelCost
from node.plan.machines.pool import Pool
from tests.bench.rivals.exo import Exo
from tests.bench.rivals.helix import Helix
from tests.bench.rivals.parallax_paper import ParallaxPaper
from tests.bench.rivals.parallax_release import ParallaxRelease
from tests.bench.rivals.petals import Petals
from tests.bench.scheduling.loads import LOADS, MEAN_OUTPUT, Load, arrivals_of, changes, kept_up, told
from tests.bench.scheduling.pools import NamedPool, pools
from tests.bench.simulate import Outcome, Scheduler, Simulation, TwoPhase

HORIZON_MS = 36_000_000.0
"""Ten hours; who has not answered by then does not serve the pool."""
HELIX_NODES = 10
AIM_NEVER_BEHIND, AIM_UNEQUAL = 0.98, 1.3
RIVALS: dict[str, Callable[[ModelCost], Scheduler]] = {
    "paper": ParallaxPaper,
    "release": ParallaxRelease,
    "exo": Exo,
    "petals": Petals,
}


@dataclass(frozen=True, slots=True)
class Compared:
    """One pool, load and seed."""

    pool: str
    load: Load
    seed: int
    ours: float
    """Tokens per second, or the mean time in seconds."""
    kept_up: bool
    ratios: dict[str, float | None]
    """How many times better ours is; None where the other could not sustain the load."""


def quality(seeds: int, only: str) -> None:
    """Prints the table for pools whose name has `only` in it."""
    chosen = [index for index, pool in enumerate(pools()) if only in pool.name]
    names = [*RIVALS, "helix"]
    print("ours over each rival: tokens/s where full, mean time to answer elsewhere; median of", seeds, "seeds [range]")
    print(f"{'pool':27}{'load':10}{'objective':11}{'ours':>9}  " + "".join(f"{name:>20}" for name in names))
    rows: dict[tuple[str, Load], list[Compared]] = {}
    with multiprocessing.Pool(2, maxtasksperchild=1) as processes:
        jobs = [(index, seed) for index in chosen for seed in range(seeds)]
        for done, part in enumerate(processes.imap(_compared, jobs), 1):
            for each in part:
                rows.setdefault((each.pool, each.load), []).append(each)
            if done % seeds == 0:
                for load in LOADS:
                    _print_row(rows.get((part[0].pool, load), []), names)
    _print_aims(rows)


def _compared(job: tuple[int, int]) -> list[Compared]:
    """All loads of one pool and seed."""
    index, seed = job
    named = pools()[index]
    pool = named.make(seed)
    full = next(load for load in LOADS if load.kind == "full")
    sustained = _run(named, pool, full, seed, ParallaxPaper(named.model), 1.0).tokens_per_s
    half_rate = max(1e-6, sustained / 2 / MEAN_OUTPUT)
    found = []
    for load in LOADS:
        parallax = TwoPhase(named.model, load.objective, told(load, len(pool.nodes)))
        ours = _run(named, pool, load, seed, parallax, half_rate)
        ratios: dict[str, float | None] = {}
        for name, make in RIVALS.items():
            ratios[name] = _ratio(load, ours, _run(named, pool, load, seed, make(named.model), half_rate))
        if len(pool.nodes) <= HELIX_NODES and seed == 0:
            ratios["helix"] = _ratio(load, ours, _run(named, pool, load, seed, Helix(named.model), half_rate))
        own = ours.tokens_per_s if load.by_rate else ours.mean_ms / 1000
        found.append(Compared(named.name, load, seed, own, load.by_rate or kept_up(ours), ratios))
    return found


def _run(named: NamedPool, pool: Pool, load: Load, seed: int, scheduler: Scheduler, half_rate: float) -> Outcome:
    arrivals = arrivals_of(load, len(pool.nodes), seed, half_rate)
    happenings = changes(pool, arrivals[-1].at_ms) if named.churn and load.kind == "half load" else []
    return Simulation(named.model, pool, scheduler, arrivals, happenings).run(HORIZON_MS)


def _ratio(load: Load, ours: Outcome, other: Outcome) -> float | None:
    if not other.served or (load.by_rate and other.unserved):
        return None
    if load.by_rate:
        return ours.tokens_per_s / other.tokens_per_s
    return other.mean_ms / ours.mean_ms if kept_up(other) else None


def _print_row(rows: list[Compared], names: list[str]) -> None:
    if not rows:
        return
    load = rows[0].load
    unit = "tok/s" if load.by_rate else "s"
    own = f"{median(row.ours for row in rows):.3g} {unit}" + ("" if all(row.kept_up for row in rows) else "!")
    cells = "".join(f"{_cell([row.ratios[name] for row in rows if name in row.ratios]):>20}" for name in names)
    print(f"{rows[0].pool:27}{load.kind:10}{load.objective:11}{own:>9}  {cells}", flush=True)


def _cell(ratios: list[float | None]) -> str:
    known = sorted(ratio for ratio in ratios if ratio is not None)
    if not ratios:
        return "–"
    if len(known) * 2 < len(ratios):
        return "cannot sustain"
    missing = f" {len(ratios) - len(known)}✕" if len(known) < len(ratios) else ""
    return f"{median(known):.2f} [{known[0]:.2f}–{known[-1]:.2f}]{missing}"


def _print_aims(rows: dict[tuple[str, Load], list[Compared]]) -> None:
    """Against the paper's reading, which knows as much as we do."""
    print(
        f"\n! ours did not keep up; ✕ seeds in which the rival did not\n"
        f"aim against the paper's reading: never behind by more than {1 - AIM_NEVER_BEHIND:.0%}, "
        f"{AIM_UNEQUAL} times better on unequal pools"
    )
    missed = False
    for (pool, load), compared in rows.items():
        known = [ratio for row in compared if (ratio := row.ratios["paper"]) is not None]
        if not known:
            continue
        aim = AIM_UNEQUAL if "unequal" in pool else AIM_NEVER_BEHIND
        if median(known) < aim:
            missed = True
            behind = "BEHIND" if median(known) < AIM_NEVER_BEHIND else "below the aim"
            print(f"  {behind}: {pool}, {load.kind}, {load.objective}: {median(known):.2f}")
    print("" if missed else "  met everywhere")
