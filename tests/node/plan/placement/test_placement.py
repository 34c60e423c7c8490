"""Phase 1: exhaustive search agrees, every plan holds what it promises, and the known cases come out right."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import BadLayers, BadPool, DoesNotFit
from node.plan import allocate
from node.plan.machines.pool import Links, PoolNode
from node.plan.placement.allocation import Allocation, Objective
from tests.fakes.pools import GIB, machine, machines, mixture, small_model

OBJECTIVES: tuple[Objective, ...] = ("latency", "throughput", "balanced")
MIB = 1024**2


def check(plan: Allocation, nodes: Sequence[PoolNode]) -> None:
    """Coverage, memory, and every node exactly once."""
    by_id = {node.node_id: node for node in nodes}
    assert plan.pipelines
    for pipeline in plan.pipelines:
        reached = 0
        for stage in pipeline.stages:
            assert stage.start <= reached < stage.end
            reached = stage.end
        assert reached == plan.layers
    named = [stage.node_id for stage in plan.stages()] + [s.node_id for s in plan.standby]
    assert sorted(named) == sorted(by_id)
    for stage in plan.stages():
        assert 0 <= stage.start < stage.end <= plan.layers
        cache = stage.layers * plan.model.kv_layer_bytes(min(plan.workload.context, plan.model.context_tokens))
        assert plan.model.range_bytes(stage.start, stage.end) + cache <= by_id[stage.node_id].memory_bytes
    assert all(standby.reason for standby in plan.standby)
    assert 0 < plan.score <= plan.bound * (1 + 1e-9)


figures = st.tuples(
    st.integers(200, 1400), st.floats(5e9, 2e12), st.floats(1e11, 3e14), st.sampled_from(["eu", "us", "ap"])
)


def pool_of(rows: Sequence[tuple[int, float, float, str]]) -> list[PoolNode]:
    return [PoolNode(f"n{i}", mib * MIB, b, f, region) for i, (mib, b, f, region) in enumerate(rows)]


@settings(max_examples=60, deadline=None)
@given(st.lists(figures, min_size=1, max_size=9), st.integers(1, 24), st.sampled_from(OBJECTIVES), st.randoms())
def test_plans_keep_their_promises_in_any_order(
    rows: list[tuple[int, float, float, str]], layers: int, objective: Objective, shuffler: random.Random
) -> None:
    nodes = pool_of(rows)
    model = small_model(layers)
    try:
        plan = allocate(model, nodes, Links(), objective)
    except DoesNotFit:
        return
    check(plan, nodes)
    shuffled = list(nodes)
    shuffler.shuffle(shuffled)
    assert allocate(model, shuffled, Links(), objective) == plan


@settings(max_examples=15, deadline=None)
@given(st.integers(13, 90), st.integers(1, 12), st.integers(8, 60), st.sampled_from(OBJECTIVES), st.integers(0, 99))
def test_larger_pools_keep_their_promises(n: int, kinds: int, layers: int, objective: Objective, seed: int) -> None:
    chance = random.Random(seed)
    shapes = [(chance.randint(150, 4000), chance.uniform(1e10, 2e12), chance.uniform(1e12, 3e14)) for _ in range(kinds)]
    rows = [(*chance.choice(shapes), chance.choice(["eu", "us", "ap"])) for _ in range(n)]
    nodes = pool_of(rows)
    try:
        plan = allocate(small_model(layers), nodes, Links(), objective)
    except DoesNotFit:
        return
    check(plan, nodes)
    assert allocate(small_model(layers), nodes[::-1], Links(), objective) == plan


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_speed_matters_and_not_memory_alone(objective: Objective) -> None:
    plan = allocate(mixture(14), machines("ACCDD"), Links(), objective)
    fastest = plan.pipelines[0]
    kinds = [stage.node_id[-1] for stage in fastest.stages]
    assert "A" in kinds
    assert "C" in kinds
    assert all(stage.node_id[-1] != "D" for stage in fastest.stages) or objective == "throughput"


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_feasible_mixed_pool_never_raises(objective: Objective) -> None:
    for seed in range(6):
        kinds = list("ABCD" * 3)
        random.Random(seed).shuffle(kinds)
        nodes = machines("".join(kinds))
        check(allocate(mixture(36), nodes, Links(), objective), nodes)


@pytest.mark.parametrize("order", ["ABCAA", "AAABC", "CBAAA", "ACABA"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_large_node_is_used_in_any_order_of_joining(order: str, objective: Objective) -> None:
    nodes = machines(order)
    plan = allocate(mixture(24), nodes, Links(), objective)
    check(plan, nodes)
    holding = {stage.node_id for stage in plan.stages()}
    assert {node.node_id for node in nodes if node.node_id.endswith("A")} <= holding


@pytest.mark.parametrize(("gigabytes", "layers"), [(62.0, 10), (80.0, 13), (121.8, 20)])
def test_one_node_that_lacks_room_for_both_ends_is_refused(gigabytes: float, layers: int) -> None:
    node = PoolNode("only", int(gigabytes * GIB * 0.5), 2e12, 3e14)
    with pytest.raises(DoesNotFit) as caught:
        allocate(mixture(layers), [node], Links())
    assert caught.value.missing_bytes > 0


def test_a_model_is_not_split_where_one_node_is_faster() -> None:
    model = small_model(8)
    fast = PoolNode("fast", 2 * GIB, 1e12, 1e14, "eu")
    slow = [PoolNode(f"slow{i}", GIB, 2e10, 1e12, "eu") for i in range(3)]
    plan = allocate(model, [*slow, fast], Links(), "latency")
    assert [stage.node_id for stage in plan.pipelines[0].stages] == ["fast"]
    assert "not split: fast alone" in plan.note


def test_far_nodes_do_not_share_a_chain_that_a_region_can_hold() -> None:
    nodes = machines("AAAAAA", ["eu", "us"])
    links = Links({("eu", "us"): 120.0})
    for objective in ("latency", "balanced"):
        plan = allocate(mixture(24), nodes, links, objective)
        regions = {node.node_id: node.region for node in nodes}
        assert len(plan.pipelines) == 2
        for pipeline in plan.pipelines:
            assert len({regions[stage.node_id] for stage in pipeline.stages}) == 1


def test_a_thin_link_is_avoided() -> None:
    nodes = [PoolNode(name, GIB, 1e11, 1e13) for name in "abc"]
    links = Links({}, {("a", "b"): 1.0, ("b", "c"): 1000.0, ("a", "c"): 1.0})
    plan = allocate(small_model(20), nodes, links, "latency")
    assert {stage.node_id for stage in plan.pipelines[0].stages} == {"b", "c"}


def test_a_node_that_would_slow_the_swarm_stands_by_and_says_why() -> None:
    nodes = [*machines("AA"), PoolNode("oldtimer", 20 * GIB, 1e9, 1e10)]
    plan = allocate(mixture(24), nodes, Links(), "latency")
    assert [standby.node_id for standby in plan.standby] == ["oldtimer"]
    assert plan.standby[0].reason.startswith("oldtimer would slow the swarm: a token would take")
    tiny = allocate(mixture(24), [*machines("AA"), PoolNode("tiny", GIB)], Links())
    assert "one layer with its cache takes" in tiny.standby[0].reason


def test_joining_nodes_lie_on_usable_paths() -> None:
    nodes = machines("AAADDDDDD")
    plan = allocate(mixture(36), nodes, Links(), "balanced")
    check(plan, nodes)
    assert len(plan.replicas) == 6
    assert not plan.standby


def test_what_does_not_fit_says_how_much_is_missing() -> None:
    with pytest.raises(DoesNotFit) as caught:
        allocate(mixture(36), machines("AA"), Links())
    lacking = mixture(36).total_bytes - 2 * machine(0, "A").memory_bytes
    assert caught.value.missing_bytes >= lacking
    assert "does not fit" in str(caught.value)
    with pytest.raises(DoesNotFit) as empty:
        allocate(mixture(36), [], Links())
    assert empty.value.missing_bytes >= mixture(36).total_bytes


def test_the_plan_in_force_stays_while_little_is_to_be_gained() -> None:
    nodes = machines("AABBCC")
    plan = allocate(mixture(20), nodes, Links())
    slower = [replace(n, bandwidth_bytes_per_s=n.bandwidth * (0.97 if i % 2 else 1.0)) for i, n in enumerate(nodes)]
    again = allocate(mixture(20), slower, Links(), current=plan)
    assert {(s.node_id, s.start, s.end) for s in again.stages()} == {(s.node_id, s.start, s.end) for s in plan.stages()}


def test_ranges_set_by_hand_stay_and_the_rest_is_filled() -> None:
    nodes = machines("AAA")
    nodes[1] = replace(nodes[1], pinned=(5, 15))
    plan = allocate(mixture(24), nodes, Links())
    check(plan, nodes)
    held = plan.range_of(nodes[1].node_id)
    assert held is not None
    assert (held.start, held.end) == (5, 15)
    with pytest.raises(BadLayers, match="the model has 24 layers"):
        allocate(mixture(24), [replace(nodes[0], pinned=(20, 30))], Links())
    with pytest.raises(BadLayers, match="GiB"):
        allocate(mixture(24), [nodes[0], replace(nodes[1], pinned=(0, 24))], Links())


def test_excluded_nodes_hold_nothing() -> None:
    nodes = machines("AAA")
    nodes[0] = replace(nodes[0], barred="excluded by hand")
    plan = allocate(mixture(24), nodes, Links())
    assert plan.standby[0].node_id == nodes[0].node_id
    assert "excluded by hand" in plan.standby[0].reason


def test_two_nodes_of_one_name_are_refused() -> None:
    with pytest.raises(BadPool, match="two nodes"):
        allocate(mixture(24), [machine(0, "A"), machine(0, "A")], Links())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0, 0.0, True, "80GB"])
def test_figures_that_cannot_be_are_refused_by_name(bad: object) -> None:
    with pytest.raises(BadPool) as caught:
        PoolNode("studio", 8 * GIB, bad)  # type: ignore[arg-type]
    assert caught.value.key == "bandwidth"
    with pytest.raises(BadPool):
        Links({("a", "b"): -1.0})
    if bad != 0 and bad is not True:  # a link may take no time at all
        for key in ("near_ms", "far_ms", "trips"):
            with pytest.raises(BadPool) as caught:
                Links(**{key: bad})  # type: ignore[arg-type]
            assert caught.value.key == key


def test_large_pools_come_close_to_what_no_plan_can_exceed() -> None:
    chance = random.Random(5)
    nodes = [machine(i, chance.choice("ABCD"), chance.choice(["eu", "us", "ap", "sa"])) for i in range(256)]
    links = Links({("eu", "us"): 90.0, ("eu", "ap"): 200.0})
    assert allocate(mixture(36), nodes, links, "latency").gap < 0.05
    assert allocate(mixture(36), nodes, links, "balanced").gap < 0.2
