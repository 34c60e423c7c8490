"""Where the best chain and the best node alone tie, as the planner itself sees it."""

from __future__ import annotations

import random

import pytest

from node.plan import allocate, predict
from node.plan.chain_time import chain_of_nodes
from node.plan.costs.roofline import layer_capacity
from node.plan.machines.pool import Links, Pool, PoolNode, Workload
from node.plan.outlook.crossover import crossover, crossover_text
from node.plan.outlook.report import report_data, report_text
from tests.fakes.pools import GIB, small_model

MODEL = small_model(24)
"""1.5 GiB and its ends."""
WORK = Workload(256, 128)


def nodes_of(*rows: tuple[str, float, float]) -> Pool:
    """Name, GiB, GB/s."""
    return Pool(tuple(PoolNode(n, int(gib * GIB), rate * 1e9, rate * 5e10) for n, gib, rate in rows), Links())


def test_just_below_a_chain_is_faster_and_just_above_it_is_not() -> None:
    pool = nodes_of(("old", 8, 20), ("quick", 1.2, 200), ("quicker", 0.9, 300))
    found = crossover(MODEL, pool, WORK)
    assert found is not None
    assert found.alone == "old"

    def stages(rtt_ms: float) -> int:
        links = Links(near_ms=rtt_ms, far_ms=rtt_ms)
        plan = allocate(MODEL, pool.nodes, links, "latency", workload=WORK)
        return len(min(plan.pipelines, key=lambda p: p.token_ms).stages)

    assert stages(found.rtt_ms * 0.98) > 1
    assert stages(found.rtt_ms * 1.02) == 1


@pytest.mark.parametrize("seed", range(12))
def test_no_chain_of_two_beats_the_node_alone_above_it(seed: int) -> None:
    chance = random.Random(seed)
    rows = [(f"n{i}", chance.choice([0.7, 1.0, 8.0]), chance.uniform(10, 400)) for i in range(4)]
    pool = nodes_of(*rows)
    found = crossover(MODEL, pool, WORK)
    if found is None:
        assert all(gib < 8 for _, gib, _ in rows)
        return
    above = Links(near_ms=found.rtt_ms * 1.03 + 0.01)
    by_id = {node.node_id: node for node in pool.nodes}
    alone_ms = chain_of_nodes(MODEL, above, [by_id[found.alone]], [24], WORK).token_ms(WORK)
    for a in pool.nodes:
        for b in pool.nodes:
            for count in range(1, 24):
                at_a = layer_capacity(MODEL, a.memory_bytes, first=True, context=WORK.context)
                at_b = layer_capacity(MODEL, b.memory_bytes, last=True, context=WORK.context)
                if a is not b and count <= at_a and 24 - count <= at_b:
                    assert chain_of_nodes(MODEL, above, [a, b], [count, 24 - count], WORK).token_ms(WORK) > alone_ms


def test_what_is_told_in_each_case() -> None:
    names = {"a": "attic", "b": "bench"}
    must = nodes_of(("a", 1.2, 20), ("b", 1.2, 20))
    never = nodes_of(("a", 8, 200), ("b", 0.9, 2))
    pays = nodes_of(("a", 8, 20), ("b", 1.2, 200))
    told = [crossover_text(crossover(MODEL, pool, WORK), names, 2) for pool in (must, never, pays)]
    assert told[0] == "no node holds the model alone: it is split whatever the round trips"
    assert told[1] == "splitting pays at no round trip: attic alone is the fastest for one user"
    assert told[2].startswith("splitting pays below ")
    assert told[2].endswith(" against attic alone, for one user")
    assert crossover_text(None, names, 1) == ""


def test_the_report_and_its_data_tell_it() -> None:
    pool = nodes_of(("a", 8, 20), ("b", 1.2, 200))
    plan = allocate(MODEL, pool.nodes, Links(), workload=WORK)
    found = crossover(MODEL, pool, WORK)
    assert found is not None
    assert "splitting pays below " in report_text(plan, predict(plan))
    assert report_data(plan, predict(plan))["splitting_pays_below_rtt_ms"] == pytest.approx(found.rtt_ms)
