"""The search against trying all, against itself with more effort, and against what it must not depend on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.plan import allocate
from node.plan.chain_time import chain_of_nodes
from node.plan.costs.model import ModelCost, cost_of_config
from node.plan.machines.pool import Links, PoolNode, Workload
from node.plan.objectives import BALANCED, LATENCY, THROUGHPUT, Goal
from node.plan.placement.bound import upper_bound
from node.plan.placement.chains import as_rows, chain_of_counts, shared_out
from node.plan.placement.pool_table import PoolTable
from node.plan.placement.search import Search, best_chains, usual_effort
from node.plan.placement.water_filling import water_fill
from tests.bench.exhaustive_placement import best_of_sets, best_score
from tests.fakes.pools import CONFIG, GIB, mixture, small_model, unequal, useless

GOALS = (LATENCY, THROUGHPUT, BALANCED)
USERS = Workload().users


def score(model: ModelCost, nodes: Sequence[PoolNode], links: Links, goal: Goal, effort: int | None = None) -> float:
    return goal.score(best_chains(PoolTable(model, nodes, links, Workload()), goal, effort), USERS)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.integers(1, 6), st.data(), st.integers(1, 3000), st.integers(1, 600))
def test_many_chains_are_timed_as_one_is(
    seed: int, stages: int, data: st.DataObject, prompt_tokens: int, output_tokens: int
) -> None:
    nodes, links = unequal(8, seed)
    work, model = Workload(prompt_tokens, output_tokens), mixture(24)
    table = PoolTable(model, nodes, links, work)
    order = data.draw(st.permutations(range(8)))[:stages]
    counts = data.draw(st.lists(st.integers(1, 9), min_size=stages, max_size=stages))
    chain = chain_of_counts(table, order, counts)
    one = chain_of_nodes(model, links, [table.nodes[row] for row in order], counts, work)
    assert chain.token_ms == pytest.approx(one.token_ms(work), rel=1e-9)
    for users, tokens_per_s in chain.curve:
        assert tokens_per_s == pytest.approx(one.tokens_per_s(users, work), rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.integers(2, 8), st.integers(2, 40))
def test_a_level_is_that_of_water_filling(seed: int, stages: int, layers: int) -> None:
    nodes, links = unequal(stages, seed)
    table = PoolTable(small_model(layers, 256), [replace(n, overhead_ms=0.0, flops_per_s=1e18) for n in nodes], links,
                      Workload())  # fmt: skip
    table.head_ms[:] = table.large_head_ms[:] = 0.0
    order = as_rows([range(stages)])
    room = table.room(1)[range(stages), [1, *[0] * (stages - 2), 2]].tolist()
    counts, ok = shared_out(table, order, np.array([True]), np.array([1]))
    if not ok[0]:
        assert sum(room) < layers or stages > layers or min(room) < 1
        return
    share = Workload().prompt_tokens / Workload().output_tokens / 128
    times = table.layer_ms + share * table.chunk_ms
    filled = water_fill(room, (1 / times).tolist(), layers)
    slowest = max(n * t for n, t in zip(filled, times.tolist(), strict=True))
    ours = [n * t for n, t in zip(counts[0].tolist(), times.tolist(), strict=True)]
    least = max(times.tolist())  # each has a layer here, also one whose share is none
    assert max(ours) <= max(slowest, least) * (1 + 1e-9)


def test_on_small_pools_the_plan_is_as_good_as_any() -> None:
    told: dict[str, list[float]] = {goal.name: [] for goal in GOALS}
    for seed in range(14):
        chance = random.Random(seed)
        model = small_model(8, chance.choice([512, 1024, 2048, 4096]))
        nodes, links = unequal(5, seed, (1, 24))
        table = PoolTable(model, nodes, links, Workload())
        sets = best_of_sets(table, 5)
        for goal in GOALS if sets else ():
            found = best_chains(table, goal)
            used = [row for chain in found for row in chain.order]
            assert len(set(used)) == len(used)
            best = best_score(table, goal, sets)
            assert best <= upper_bound(table, goal) * (1 + 1e-9)
            told[goal.name].append(goal.score(found, USERS) / best)
    for name, ratios in told.items():
        assert len(ratios) >= 8
        assert median(ratios) >= 0.97, name
        assert sorted(ratios)[len(ratios) // 10] >= 0.9, name


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.name)
def test_little_is_left_for_ten_times_the_effort(goal: Goal) -> None:
    ratios = []
    for n, seed in ((13, 1), (16, 2), (24, 3), (32, 5), (64, 4)):
        nodes, links = unequal(n, seed)
        ratios.append(
            score(mixture(36), nodes, links, goal) / score(mixture(36), nodes, links, goal, 10 * usual_effort(n))
        )
    assert median(ratios) >= 0.95


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.name)
@pytest.mark.parametrize("n", [5, 12, 24])
def test_a_useless_node_costs_nothing(goal: Goal, n: int) -> None:
    nodes, links = unequal(n, 7)
    model = small_model(32, 512)
    assert score(model, [*nodes, useless()], links, goal) == score(model, nodes, links, goal) > 0


@pytest.mark.parametrize("n", [4, 12, 16])
def test_a_node_that_joins_never_lowers_the_score(n: int) -> None:
    for seed in range(3):
        nodes, links = unequal(n + 1, seed)
        model = (mixture(24), small_model(32, 512), small_model(24, 2048))[seed]
        for goal in GOALS:
            before = allocate(model, nodes[:n], links, goal.name)
            assert allocate(model, nodes, links, goal.name, current=before).score >= 0.98 * before.score


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.name)
def test_names_and_order_of_arrival_change_nothing(goal: Goal) -> None:
    nodes, links = unequal(14, 9)
    model = mixture(36)
    plan = allocate(model, nodes, links, goal.name)
    renamed = {node.node_id: f"x{hash_of(node.node_id)}" for node in nodes}
    other = [replace(node, node_id=renamed[node.node_id]) for node in nodes][::-1]
    rtt_ms = {(renamed[a], renamed[b]): ms for (a, b), ms in links.rtt_ms.items()}
    mbps = {(renamed[b], renamed[a]): rate for (a, b), rate in links.mbps.items()}
    again = allocate(model, other, Links(rtt_ms, mbps), goal.name)
    assert again.score == pytest.approx(plan.score)
    assert {(renamed[s.node_id], s.start, s.end) for s in plan.stages()} == {
        (s.node_id, s.start, s.end) for s in again.stages()
    }


def hash_of(name: str) -> int:
    return random.Random(name).randrange(10**9)


@pytest.mark.parametrize("n", [12, 64, 256])
def test_a_search_ends_when_its_effort_is_spent(n: int) -> None:
    nodes, links = unequal(n, 3)
    for goal in GOALS:
        search = Search(PoolTable(mixture(36), nodes, links, Workload()), goal, usual_effort(n))
        search.run(())
        assert search.left > -0.35 * usual_effort(n), "one more look at most, after the last"


def test_a_chain_has_no_crumbs() -> None:
    """Three fast nodes near one another, and one far away that could take a few layers off them."""
    near = [PoolNode(name, 9 * GIB, 4e11, 5e13) for name in "abc"]
    far = PoolNode("far", 3 * GIB, 4e11, 5e13)
    links = Links({("a", "b"): 1.0, ("b", "c"): 1.0, ("a", "c"): 1.0}, near_ms=120.0, far_ms=120.0)
    for goal in GOALS:
        plan = allocate(small_model(40, 512), [*near, far], links, goal.name)
        assert all(stage.node_id != "far" for pipeline in plan.pipelines for stage in pipeline.stages)


def test_dense_layers_that_are_larger_than_sparse_ones_fit_where_they_fit() -> None:
    """The dense layers lead, so that the nodes behind the first hold small ones, and more of them."""
    config = {**CONFIG, "num_hidden_layers": 12, "first_k_dense_replace": 2, "vocab_size": 1000}
    config |= {"intermediate_size": 400_000, "moe_intermediate_size": 512}
    model = cost_of_config("large dense layers", config, weight_bytes=1)
    assert model.dense_layer_bytes > 4 * model.sparse_layer_bytes
    front = PoolNode("front", 2 * model.dense_layer_bytes + 3 * model.sparse_layer_bytes, 1e11, 1e13)
    back = PoolNode("back", 10 * model.sparse_layer_bytes, 1e11, 1e13)
    plan = allocate(model, [front, back], Links(), "latency")
    assert [stage.node_id for stage in plan.pipelines[0].stages] == ["front", "back"]
