"""Ours against the others: a row for each pool and load, its objective named beforehand, the median of several seeds.

Rates are compared where all ask at once; else mean times to answer, and only of schedulers that keep up. One process;
rivals' results are kept between runs (`played`). Large pools take long: fewer of their seeds are run, see FEWER_SEEDS,
and a median of n seeds is off by about 1.25 times the spread of one, over the root of n.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from node.plan.costs.model import ModelCost
from node.plan.machines.pool import Pool
from tests.bench.rivals.exo import Exo
from tests.bench.rivals.helix import Helix
from tests.bench.rivals.parallax_paper import ParallaxPaper
from tests.bench.rivals.parallax_release import ParallaxRelease
from tests.bench.rivals.petals import Petals
from tests.bench.scheduling.loads import LOADS, MEAN_OUTPUT, Load, arrivals_of, changes, told
from tests.bench.scheduling.played import Kept, Played, played
from tests.bench.scheduling.pools import NamedPool, pools
from tests.bench.simulate import Scheduler, Simulation, TwoPhase

HORIZON_MS = 36_000_000.0
"""Ten hours; who has not answered by then does not serve the pool."""
HELIX_NODES = 10
FEWER_SEEDS = ((10, 5), (32, 3), (10**9, 2))
"""Nodes at most, and seeds at most."""
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


def quality(seeds: int, only: str, rivals: Sequence[str] = ()) -> None:
    """Prints the table for pools whose name has `only` in it, against these rivals; all where none is named."""
    names = [name for name in (*RIVALS, "helix") if not rivals or name in rivals]
    print(
        "ours over each rival: tokens/s where full, mean time to answer elsewhere; "
        f"median of up to {seeds} seeds [range]"
    )
    print(
        f"{'pool':27}{'seeds':>5} {'load':10}{'objective':11}{'ours':>9}  " + "".join(f"{name:>20}" for name in names)
    )
    rows: dict[tuple[str, Load], list[Compared]] = {}
    kept = Kept()
    for named in (pool for pool in pools() if only in pool.name):
        nodes = len(named.make(0).nodes)
        for seed in range(min(seeds, next(most for size, most in FEWER_SEEDS if nodes <= size))):
            for each in _compared(named, seed, names, kept):
                rows.setdefault((each.pool, each.load), []).append(each)
        for load in LOADS:
            _print_row(rows.get((named.name, load), []), names)
    _print_aims(rows)


def _compared(named: NamedPool, seed: int, names: Sequence[str], kept: Kept) -> list[Compared]:
    """All loads of one pool and seed."""
    pool = named.make(seed)

    def rival(load: Load, name: str, make: Callable[[ModelCost], Scheduler], half_rate: float) -> Played:
        key = f"{named.name} {seed} {load.kind} {half_rate:.6g} {name}"
        return kept.get(key, lambda: _run(named, pool, load, seed, make(named.model), half_rate))

    full = next(load for load in LOADS if load.kind == "full")
    half_rate = max(1e-6, rival(full, "paper", ParallaxPaper, 1.0).tokens_per_s / 2 / MEAN_OUTPUT)
    found = []
    for load in LOADS:
        parallax = TwoPhase(named.model, load.objective, told(load, len(pool.nodes)))
        ours = _run(named, pool, load, seed, parallax, half_rate)
        ratios: dict[str, float | None] = {}
        at_rate = half_rate if load.kind == "half load" else 1.0
        for name, make in RIVALS.items():
            if name in names:
                ratios[name] = _ratio(load, ours, rival(load, name, make, at_rate))
        if "helix" in names and len(pool.nodes) <= HELIX_NODES and seed == 0:
            ratios["helix"] = _ratio(load, ours, rival(load, "helix", Helix, at_rate))
        own = ours.tokens_per_s if load.by_rate else ours.mean_ms / 1000
        found.append(Compared(named.name, load, seed, own, load.by_rate or ours.kept_up, ratios))
    return found


def _run(named: NamedPool, pool: Pool, load: Load, seed: int, scheduler: Scheduler, half_rate: float) -> Played:
    arrivals = arrivals_of(load, len(pool.nodes), seed, half_rate)
    happenings = changes(pool, arrivals[-1].at_ms) if named.churn and load.kind == "half load" else []
    return played(Simulation(named.model, pool, scheduler, arrivals, happenings).run(HORIZON_MS))


def _ratio(load: Load, ours: Played, other: Played) -> float | None:
    if not other.served or (load.by_rate and other.unserved):
        return None
    if load.by_rate:
        return ours.tokens_per_s / other.tokens_per_s
    return other.mean_ms / ours.mean_ms if other.kept_up else None


def _print_row(rows: list[Compared], names: list[str]) -> None:
    if not rows:
        return
    load = rows[0].load
    unit = "tok/s" if load.by_rate else "s"
    own = f"{median(row.ours for row in rows):.3g} {unit}" + ("" if all(row.kept_up for row in rows) else "!")
    cells = "".join(f"{_cell([row.ratios[name] for row in rows if name in row.ratios]):>20}" for name in names)
    print(f"{rows[0].pool:27}{len(rows):5} {load.kind:10}{load.objective:11}{own:>9}  {cells}", flush=True)


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
        known = [ratio for row in compared if (ratio := row.ratios.get("paper")) is not None]
        if not known:
            continue
        aim = AIM_UNEQUAL if "unequal" in pool else AIM_NEVER_BEHIND
        if median(known) < aim:
            missed = True
            behind = "BEHIND" if median(known) < AIM_NEVER_BEHIND else "below the aim"
            print(f"  {behind}: {pool}, {load.kind}, {load.objective}: {median(known):.2f}")
    print("" if missed else "  met everywhere")
