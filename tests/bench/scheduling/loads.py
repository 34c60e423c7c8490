"""What is asked of a pool, with which aim, and when a scheduler has kept up."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

from node.plan.machines.pool import Pool, Workload
from node.plan.placement.allocation import Objective
from tests.bench.simulate import Arrival, Happening, Outcome

Kind = Literal["one user", "half load", "full"]
PROMPT_TOKENS, OUTPUT_TOKENS = (32, 480), (16, 176)
MEAN_OUTPUT = sum(OUTPUT_TOKENS) / 2


@dataclass(frozen=True, slots=True)
class Load:
    """One row of the table. The objective belongs to the load and is chosen before the run."""

    kind: Kind
    objective: Objective
    workload: Workload

    @property
    def by_rate(self) -> bool:
        """Whether tokens per second are compared, else the mean time to answer."""
        return self.kind == "full"


LOADS = (
    Load("one user", "latency", Workload(256, 96, 1)),
    Load("half load", "balanced", Workload(256, 96, 8)),
    Load("full", "balanced", Workload(256, 96, 116)),
    Load("full", "throughput", Workload(256, 96, 116)),
)
"""Where all ask at once, `told` says how many they are."""


def told(load: Load, nodes: int) -> Workload:
    """What we are told of the load: the users that there are. The published algorithms have no use for the number."""
    return replace(load.workload, users=_requests(load.kind, nodes)) if load.kind == "full" else load.workload


def _requests(kind: Kind, nodes: int) -> int:
    return {"one user": 12, "half load": 60 + nodes, "full": 100 + 4 * nodes}[kind]


def arrivals_of(load: Load, nodes: int, seed: int, half_rate_per_s: float) -> list[Arrival]:
    """Requests: one after another with long pauses, at a steady rate, or all at once."""
    chance = random.Random(seed)
    arrivals, at_ms = [], 0.0
    for _ in range(_requests(load.kind, nodes)):
        if load.kind == "one user":
            at_ms += 600_000
        elif load.kind == "half load":
            at_ms += chance.expovariate(half_rate_per_s) * 1000
        arrivals.append(Arrival(at_ms, chance.randint(*PROMPT_TOKENS), chance.randint(*OUTPUT_TOKENS)))
    return arrivals


def changes(pool: Pool, until_ms: float) -> list[Happening]:
    """A crash, a slow-down, and a machine like the lost one that joins."""
    lost, first = pool.nodes[len(pool.nodes) // 3], pool.nodes[0]
    slow = replace(first, bandwidth_bytes_per_s=first.bandwidth / 4, flops_per_s=first.flops / 4)
    return [
        Happening(until_ms * 0.25, "crash", lost),
        Happening(until_ms * 0.4, "slow", slow),
        Happening(until_ms * 0.6, "join", replace(lost, node_id=lost.node_id + "x")),
    ]


def kept_up(outcome: Outcome) -> bool:
    """Whether those who came last waited no more than twice as long as those who came first, and all were served.

    A mean time of a queue that grows says how long the trace was and nothing else.
    """
    if outcome.unserved or not outcome.served:
        return False
    in_order = [s.done_ms / s.tokens for s in sorted(outcome.served, key=lambda s: s.arrived_ms)]
    third = max(1, len(in_order) // 3)
    return _mean(in_order[-third:]) <= 2 * _mean(in_order[:third])


def _mean(times: Sequence[float]) -> float:
    return fmean(times)
