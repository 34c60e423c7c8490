"""Whoever looks at what is held finds the chains that it was made for."""

from __future__ import annotations

import pytest

from node.plan import allocate, evaluate
from node.plan.machines.pool import Links, Pool, PoolNode, Workload
from node.plan.objectives import THROUGHPUT
from node.plan.placement.allocation import Objective, Stage
from node.plan.placement.pool_table import PoolTable
from node.plan.placement.tilings import disjoint_tilings
from tests.bench.placement_quality import MODELS, four_kinds
from tests.fakes.pools import GIB, small_model, unequal


@pytest.mark.parametrize("objective", ["balanced", "throughput"])
@pytest.mark.parametrize(
    ("nodes", "seed", "alike", "users"),
    [
        (4, 1, True, 16),
        (6, 2, False, 100),
        (9, 0, True, 16),
        (16, 1, False, 16),
        (24, 2, True, 100),
        (40, 3, False, 100),
        (40, 3, True, 100),
        (64, 0, False, 100),
        (64, 1, False, 16),
        (64, 3, False, 100),
        (64, 0, True, 100),
    ],
)
def test_a_layout_is_worth_what_its_plan_told(
    nodes: int, seed: int, alike: bool, users: int, objective: Objective
) -> None:
    machines, links = (four_kinds if alike else unequal)(nodes, seed)
    plan = allocate(MODELS[seed % len(MODELS)], machines, links, objective, workload=Workload(users=users))
    again = evaluate(plan.model, list(plan.stages()), Pool(tuple(machines), links), objective, plan.workload)
    assert again.score >= 0.99 * plan.score


def test_chains_exchange_tails_where_the_fastest_took_what_another_one_needs() -> None:
    """The fastest way ends on `near`, whose neighbour is then left with one that is far from everybody else."""
    model = small_model(8)
    nodes = [PoolNode(name, GIB, 1e12, 1e11) for name in ("a", "b", "near", "far")]
    rtt_ms = {("a", "near"): 1.0, ("b", "near"): 1.2, ("a", "far"): 2.0, ("b", "far"): 400.0}
    table = PoolTable(model, nodes, Links(rtt_ms, near_ms=1.0), Workload(users=8))
    held = [Stage("a", 0, 4), Stage("b", 0, 4), Stage("near", 4, 8), Stage("far", 4, 8)]
    found = disjoint_tilings(table, THROUGHPUT, held)
    assert {tuple(stage.node_id for stage in chain) for chain in found} == {("a", "far"), ("b", "near")}


def test_ranges_that_leave_a_gap_make_no_chain() -> None:
    table = PoolTable(small_model(8), [PoolNode("a", GIB), PoolNode("b", GIB)], Links(), Workload())
    assert disjoint_tilings(table, THROUGHPUT, [Stage("a", 0, 4), Stage("b", 5, 8)]) == []
