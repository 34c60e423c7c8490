"""What objectives are worth, and that everybody who asks is told the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import NotCovered, UnknownObjective
from node.plan import allocate, evaluate
from node.plan.machines.pool import Links, Pool, PoolNode, Workload
from node.plan.objectives import BALANCED, GOALS, LATENCY, THROUGHPUT, goal_named, together
from node.plan.outlook.crossover import crossover
from node.plan.placement.allocation import Objective, Stage
from tests.fakes.pools import GIB, machines, mixture, small_model, unequal

OBJECTIVES: tuple[Objective, ...] = ("latency", "throughput", "balanced")
rising = st.lists(st.floats(0.1, 100), min_size=1, max_size=5)


def curve(gains: list[float]) -> tuple[tuple[float, float], ...]:
    """Of 1, 2, 3, … users, each adding less than the one before."""
    total, found = 0.0, []
    for users, gain in enumerate(sorted(gains, reverse=True), start=1):
        total += gain
        found.append((float(users), total))
    return tuple(found)


@given(st.lists(rising, min_size=1, max_size=4), st.integers(1, 12))
def test_users_go_where_they_add_most(chains: list[list[float]], users: int) -> None:
    best = sum(sorted((gain for gains in chains for gain in gains), reverse=True)[:users])
    assert together((curve(gains) for gains in chains), users) == pytest.approx(best)


@given(st.lists(rising, min_size=1, max_size=4), rising, st.integers(1, 12))
def test_a_further_chain_never_lowers_what_is_served(chains: list[list[float]], more: list[float], users: int) -> None:
    before = together((curve(gains) for gains in chains), users)
    assert together((curve(gains) for gains in [*chains, more]), users) >= before * (1 - 1e-9)


def test_an_unknown_objective_is_refused_by_name() -> None:
    with pytest.raises(UnknownObjective, match=r"'speed' is unknown; choose one of balanced, latency"):
        allocate(small_model(4), [PoolNode("a", GIB)], Links(), "speed")  # type: ignore[arg-type]
    with pytest.raises(UnknownObjective):
        evaluate(small_model(4), [], Pool((), Links()), "speed")  # type: ignore[arg-type]
    assert {goal_named(name) for name in GOALS} == set(GOALS.values())


def test_kv_room_is_asked_for_by_halves() -> None:
    assert THROUGHPUT.reserves(16) == BALANCED.reserves(16) == (16, 8, 4, 2, 1)
    assert LATENCY.reserves(16) == (4, 2, 1)
    assert THROUGHPUT.reserves(1) == (1,)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("seed", range(4))
def test_the_same_layout_scores_the_same_whoever_asks(objective: Objective, seed: int) -> None:
    nodes, links = unequal(7, seed)
    model = small_model(24, 2048)
    plan = allocate(model, nodes, links, objective)
    told = evaluate(model, list(plan.stages()), plan.pool, objective)
    assert told.score >= plan.score * (1 - 1e-9)
    idle = PoolNode("idle", GIB // 8, 1e12, 1e14)
    joined = evaluate(model, list(plan.stages()), Pool((*nodes, idle), links), objective)
    assert joined.score == pytest.approx(told.score)
    assert [standby.node_id for standby in joined.standby if standby.node_id == "idle"] == ["idle"]
    in_force = allocate(model, nodes, links, objective, current=plan)
    assert in_force.score >= plan.score * (1 - 1e-9)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_score_is_that_of_the_plan_that_is_returned(objective: Objective) -> None:
    """Also where its nodes keep the order in which they hold layers, which is not the fastest one."""
    nodes, links = unequal(6, 5)
    model = small_model(24, 2048)
    plan = allocate(model, nodes, links, objective)
    slower = [
        replace(node, bandwidth_bytes_per_s=node.bandwidth * (0.8 if i % 2 else 1.0)) for i, node in enumerate(nodes)
    ]
    again = allocate(model, slower, links, objective, current=plan)
    assert again.score == pytest.approx(goal_named(objective).score(again.pipelines, Workload().users))
    assert again.score <= again.bound
    assert again.gap == pytest.approx(1 - again.score / again.bound)


def test_a_layout_with_a_gap_is_worth_nothing() -> None:
    nodes = machines("AA")
    told = evaluate(mixture(24), [Stage(nodes[0].node_id, 0, 12)], Pool(tuple(nodes), Links()))
    assert (told.score, told.pipelines) == (0.0, ())


def test_more_users_make_a_fuller_plan_worth_more() -> None:
    nodes, links = unequal(9, 4)
    model = small_model(24, 2048)
    few = allocate(model, nodes, links, "throughput", workload=Workload(users=1))
    many = allocate(model, nodes, links, "throughput", workload=Workload(users=64))
    stages = list(many.stages())
    assert evaluate(model, stages, many.pool, "throughput", Workload(users=64)).score >= (
        evaluate(model, list(few.stages()), few.pool, "throughput", Workload(users=64)).score * 0.999
    )


def test_no_chain_beyond_the_bar_is_a_pipeline_whatever_the_objective() -> None:
    nodes = [*machines("AA"), PoolNode("oldtimer", 90 * GIB, 1e3, 1e6)]
    for objective in OBJECTIVES:
        plan = allocate(mixture(24), nodes, Links(), objective)
        assert all(stage.node_id != "oldtimer" for pipeline in plan.pipelines for stage in pipeline.stages)
        assert [standby.node_id for standby in plan.standby] == ["oldtimer"]


def test_a_pool_that_may_hold_nothing_says_why_and_not_that_memory_is_missing() -> None:
    nodes = [replace(node, barred="excluded by hand") for node in machines("AA")]
    with pytest.raises(NotCovered, match="excluded by hand"):
        allocate(mixture(24), nodes, Links())


@pytest.mark.parametrize("seed", range(6))
def test_not_split_is_said_with_what_a_split_would_take(seed: int) -> None:
    """The two figures of the sentence are those of the layouts it speaks of."""
    nodes, links = unequal(4, seed, (40, 96))
    model = small_model(16, 512)
    plan = allocate(model, nodes, links, "latency")
    if len(plan.pipelines[0].stages) > 1:
        return
    assert plan.note.startswith(f"not split: {plan.pipelines[0].stages[0].node_id} alone gives a token in")
    below = crossover(model, plan.pool, plan.workload)
    assert below is not None
    if below.rtt_ms > 1:  # nearer than that, what there is to gain may not be worth a stage more
        nearer = Links({pair: below.rtt_ms * 0.9 for pair in links.rtt_ms}, links.mbps)
        assert len(allocate(model, nodes, nearer, "latency").pipelines[0].stages) > 1


@pytest.mark.parametrize("seed", range(12))
def test_ranges_set_by_hand_in_the_middle_refuse_no_pool_that_can_fill_what_they_leave(seed: int) -> None:
    """Two gaps, each of which the large node could fill, and the small one only the short gap."""
    model = small_model(16, 256)
    layer = model.layer_bytes + model.kv_layer_bytes(768)
    large = PoolNode("large", 9 * layer + model.embedding_bytes, 1e12, 1e13)
    small = PoolNode("small", 4 * layer + model.embedding_bytes, 1e12 + seed * 3e11, 1e13)
    middle = PoolNode("middle", 20 * layer, 1e11, 1e13, pinned=(4, 7 + seed % 2))
    for objective in OBJECTIVES:
        plan = allocate(model, [large, small, middle], Links(), objective)
        assert plan.range_of("middle") == Stage("middle", 4, 7 + seed % 2)
        assert plan.range_of("small") == Stage("small", 0, 4)
