"""Phase 1 and phase 2 by pool size, against their targets."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from functools import partial

from node.plan import allocate
from node.plan.costs.model import ModelCost
from node.plan.live.round_trips import RoundTrips
from node.plan.machines.pool import PoolNode
from node.plan.placement.allocation import Objective
from node.plan.routing.router import Host, Request, Router, route
from node.wire.records import NodeRecord
from tests.bench.published_stages import minimal_stages
from tests.bench.scheduling.pools import WIDE, mixed, unequal
from tests.fakes.pools import mixture

OURS: tuple[Objective, ...] = ("balanced", "throughput", "latency")


def best_ms(work: Callable[[], object], runs: int = 7) -> float:
    """Processor time of the shortest of some runs: other work on the machine does not count."""
    times = []
    for _ in range(runs):
        started = time.thread_time()
        work()
        times.append(time.thread_time() - started)
    return min(times) * 1000


def speed() -> None:
    """Phase 1 and phase 2 by pool size."""
    print(f"{'':34}{'target':>10}{'measured':>12}")
    for n, layers, first_ms, second_ms in ((12, 36, 50.0, None), (256, 36, 100.0, 1.0), (1000, 61, None, 5.0)):
        speed_of(n, mixture(layers), first_ms, second_ms)
    for n, first_ms in ((13, 50.0), (64, 50.0), (256, 100.0)):
        pool = unequal(n, 1)
        for objective in OURS:
            took = best_ms(partial(allocate, mixture(36), pool.nodes, pool.links, objective), 3)
            line(f"phase 1, {n} unequal, {objective}", first_ms, took)
    capacities = [13, 6, 5, 4] * 64
    line("s*(k) for every k, 256 nodes", None, best_ms(lambda: minimal_stages(capacities, 36), 1))


def speed_of(n: int, model: ModelCost, first_ms: float | None, second_ms: float | None) -> None:
    """Rows of one pool size."""
    nodes = mixed(n)
    for objective in OURS:
        took = best_ms(partial(allocate, model, nodes, WIDE, objective), 5)
        line(f"phase 1, {n} nodes, {objective}", first_ms, took)
    plan = allocate(model, nodes, WIDE)
    by_id = {node.node_id: node for node in nodes}
    hosts = [
        Host(s.node_id, s.start, s.end, 0.2, by_id[s.node_id].region, overhead_ms=0.3, head_ms=0.5, chunk_layer_ms=1.0)
        for s in plan.stages()
    ]
    request = Request(model.hop_bytes(1), 512, nodes[0], prompt_tokens=100)
    long = Request(model.hop_bytes(1), 512, nodes[0], prompt_tokens=2000)
    router = Router(model.layers, hosts, WIDE)
    line(f"phase 2, {n} nodes, from scratch", second_ms, best_ms(lambda: route(model.layers, hosts, WIDE, request)))
    line(f"phase 2, {n} nodes, per request", second_ms, best_ms(lambda: router.route(request), 30))
    records = meshed(nodes)
    line(
        f"phase 2, {n} nodes, reading RTTs", None, best_ms(lambda: Router(model.layers, hosts, RoundTrips(records)), 3)
    )
    paired = Router(model.layers, hosts, RoundTrips(records))
    line(f"phase 2, {n} nodes, measured RTTs", second_ms, best_ms(lambda: paired.route(request), 30))
    line(f"phase 2, {n} nodes, prompt of 2,000", None, best_ms(lambda: paired.route(long), 10))


def meshed(nodes: Sequence[PoolNode]) -> list[NodeRecord]:
    """What nodes say that have all measured their round trips to one another."""
    chance = random.Random(3)
    at = [(chance.random(), chance.random()) for _ in nodes]
    return [
        NodeRecord(
            node_id=node.node_id,
            name=node.label,
            seq=1,
            ttl_s=5.0,
            machine_id=node.node_id,
            addresses=(),
            software="bench",
            rtt_ms={n.node_id: 0.3 + 100 * math.dist(here, there) for n, there in zip(nodes, at, strict=True)},
        )
        for node, here in zip(nodes, at, strict=True)
    ]


def line(what: str, target: float | None, took: float) -> None:
    """One row of the speed table."""
    verdict = "" if target is None else ("" if took <= target else "  missed")
    print(f"{what:34}{f'{target:.0f} ms' if target else '':>10}{took:>9.2f} ms{verdict}")
