"""Plans of many short chains: few nodes are tried in every way, many are packed, inside their neighbourhoods too."""

from __future__ import annotations

from node.plan.machines.pool import Links, Workload
from node.plan.objectives import BALANCED, THROUGHPUT
from node.plan.placement.packed_chains import PackedChains
from node.plan.placement.pool_table import PoolTable
from node.plan.placement.search import best_chains
from node.plan.placement.worth import Worth
from tests.fakes.pools import machines, mixture


def test_four_nodes_alike_make_two_chains_of_two() -> None:
    nodes = machines("AAAA")
    for goal in (BALANCED, THROUGHPUT):
        table = PoolTable(mixture(24), nodes, Links(near_ms=1.0), Workload(256, 96, 8))
        assert sorted(len(chain.order) for chain in best_chains(table, goal)) == [2, 2]


def test_as_many_short_chains_as_there_are_in_neighbourhoods_are_a_start() -> None:
    nodes = machines("AABBCCAABBCC", ("eu", "us", "ap"))
    links = Links({("eu", "us"): 90.0, ("eu", "ap"): 180.0, ("us", "ap"): 140.0})
    worth = Worth(PoolTable(mixture(24), nodes, links, Workload(256, 96, 100)), BALANCED, 10**6)
    regions = {node.node_id: node.region for node in nodes}
    plans = PackedChains(worth).plans()
    inside = [
        len({regions[worth.table.nodes[row].node_id] for row in held.chain.order}) == 1
        for plan in plans
        for held in plan
    ]
    assert any(inside)
    assert all(
        len(set(rows)) == len(rows) for plan in plans for rows in [[r for held in plan for r in held.chain.order]]
    )
