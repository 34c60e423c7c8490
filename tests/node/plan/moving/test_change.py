"""Joins, leaves, drains, slow-downs, pins, caps: the least that helps, and never an uncovered layer."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import DoesNotFit
from node.plan import allocate, replan
from node.plan.machines.pool import Links, Pool, PoolNode
from node.plan.moving.order import layers_of, ordered_steps
from node.plan.moving.replan import LOAD_RATE, LOAD_S, Delta
from node.plan.placement.allocation import Allocation, Objective, Stage
from node.plan.placement.evaluate import hosts_of, judged
from node.plan.routing.router import uncovered
from tests.fakes.pools import machine, machines, mixture, small_model, unequal

LINKS = Links()
MIB = 1024**2
OBJECTIVES: list[Objective] = ["latency", "throughput", "balanced"]


def change(plan: Allocation, nodes: Sequence[PoolNode]) -> Delta:
    return replan(plan, Pool(tuple(nodes), LINKS))


def held(plan: Allocation) -> dict[str, tuple[int, int]]:
    return {stage.node_id: (stage.start, stage.end) for stage in plan.stages()}


def play(before: Allocation, delta: Delta, nodes: Sequence[PoolNode]) -> list[set[int]]:
    """Carries the steps out: layers that are covered after each; memory is never exceeded while a drop could come."""
    present = {node.node_id for node in nodes}
    layers = {n: set(ls) for n, ls in layers_of(list(before.stages())).items() if n in present}
    covered = [set().union(*layers.values())] if layers else [set()]
    for step in delta.steps:
        mine = layers.setdefault(step.node_id, set())
        span = set(range(step.start, step.end))
        if step.kind == "load":
            assert not mine & span
            mine |= span
        else:
            assert span <= mine
            mine -= span
        covered.append(set().union(*layers.values()))
    assert {n: ls for n, ls in layers.items() if ls} == layers_of(list(delta.plan.stages()))
    return covered


def test_nothing_changes_nothing_moves() -> None:
    nodes = machines("AABBC")
    plan = allocate(mixture(24), nodes, LINKS)
    delta = change(plan, nodes)
    assert delta.plan is plan
    assert delta.steps == ()
    assert delta.reason == "nobody's layers change"


def test_a_join_loads_on_the_new_node_alone() -> None:
    nodes = machines("AA")
    plan = allocate(mixture(24), nodes, LINKS)
    joined = [*nodes, machine(7, "D")]
    delta = change(plan, joined)
    assert {step.node_id for step in delta.steps} == {"n0007D"}
    assert {step.kind for step in delta.steps} == {"load"}
    assert not delta.anew
    for name, layers in held(plan).items():
        assert held(delta.plan)[name] == layers


def test_a_leave_that_others_cover_loads_nothing() -> None:
    nodes = machines("AAAA")
    plan = allocate(mixture(24), nodes, LINKS, "latency")
    gone = plan.pipelines[-1].stages[0].node_id
    delta = change(plan, [node for node in nodes if node.node_id != gone])
    assert delta.load_bytes == 0
    assert uncovered(24, hosts_of(delta.plan, list(delta.plan.stages()), delta.plan.pool)) is None


def test_a_leave_is_patched_by_a_neighbour_with_room() -> None:
    nodes = [PoolNode(name, 1250 * MIB, 1e11, 1e13) for name in "abc"]
    plan = allocate(small_model(24), nodes, LINKS)
    plan = replace(
        plan,
        pipelines=(replace(plan.pipelines[0], stages=(Stage("a", 0, 8), Stage("b", 8, 16), Stage("c", 16, 24))),),
        replicas=(),
        standby=(),
    )
    delta = change(plan, [node for node in nodes if node.node_id != "b"])
    loaded = sum(step.end - step.start for step in delta.steps if step.kind == "load")
    assert loaded == 8
    assert held(delta.plan) in ({"a": (0, 16), "c": (16, 24)}, {"a": (0, 8), "c": (8, 24)})


def test_a_drain_goes_on_until_the_others_have_loaded() -> None:
    nodes = machines("AAA")
    plan = allocate(mixture(24), nodes, LINKS)
    drained = plan.pipelines[0].stages[0].node_id
    after = [replace(n, barred="drains") if n.node_id == drained else n for n in nodes]
    delta = change(plan, after)
    assert all(covered == set(range(24)) for covered in play(plan, delta, after))
    assert drained not in held(delta.plan)
    kinds = [(step.kind, step.node_id) for step in delta.steps]
    assert kinds.index(("drop", drained)) == len(kinds) - 1


def test_a_slight_slow_down_moves_nothing_and_a_great_one_does() -> None:
    nodes = machines("AAA")
    plan = allocate(mixture(24), nodes, LINKS)
    slow = plan.pipelines[0].stages[0].node_id

    def slowed(factor: float) -> list[PoolNode]:
        return [
            replace(n, bandwidth_bytes_per_s=n.bandwidth / factor, flops_per_s=n.flops / factor)
            if n.node_id == slow
            else n
            for n in nodes
        ]

    assert change(plan, slowed(1.1)).steps == ()
    harder = change(plan, slowed(200))
    assert harder.anew
    assert "better" in harder.reason


def test_a_pin_moves_one_node_to_its_layers() -> None:
    nodes = machines("AAA")
    plan = allocate(mixture(24), nodes, LINKS)
    pinned = [replace(nodes[0], pinned=(3, 9)), *nodes[1:]]
    delta = change(plan, pinned)
    assert held(delta.plan)[nodes[0].node_id] == (3, 9)
    assert uncovered(24, hosts_of(delta.plan, list(delta.plan.stages()), delta.plan.pool)) is None


def test_a_memory_cap_is_kept() -> None:
    nodes = machines("AAA")
    plan = allocate(mixture(24), nodes, LINKS)
    capped = [replace(nodes[0], memory_bytes=4 * mixture(24).layer_bytes), *nodes[1:]]
    delta = change(plan, capped)
    start, end = held(delta.plan).get(nodes[0].node_id, (0, 0))
    assert end - start <= 4


def test_what_cannot_be_covered_is_said_and_the_rest_stays() -> None:
    nodes = machines("AA")
    plan = allocate(mixture(24), nodes, LINKS)
    delta = change(plan, nodes[:1])
    assert delta.uncovered is not None
    assert "does not fit" in delta.reason
    assert change(plan, []).uncovered == (0, 24)


def test_a_node_that_comes_back_gets_its_layers_again() -> None:
    nodes = machines("AABB")
    plan = allocate(mixture(24), nodes, LINKS)
    without = change(plan, nodes[1:]).plan
    back = change(without, nodes).plan
    assert nodes[0].node_id in held(back)


def test_memory_too_short_for_both_drops_what_others_hold_first() -> None:
    model = small_model(8)
    room = {"a": 5 * model.layer_bytes + model.embedding_bytes, "b": 20 * model.layer_bytes}
    before = [Stage("a", 0, 4), Stage("b", 0, 8)]
    steps = ordered_steps(model, before, [Stage("a", 4, 8), Stage("b", 0, 8)], room, 0)
    assert [step.kind for step in steps] == ["drop", "load"]


rows = st.tuples(st.integers(300, 1500), st.floats(2e10, 1e12), st.sampled_from(["eu", "us"]))


@settings(max_examples=50, deadline=None)
@given(st.lists(rows, min_size=2, max_size=7), st.integers(3, 20), st.data(), st.integers(0, 99))
def test_any_change_leaves_no_layer_uncovered_that_could_be_covered(
    figures: list[tuple[int, float, str]], layers: int, data: st.DataObject, seed: int
) -> None:
    nodes = [PoolNode(f"n{i}", mib * MIB, b, 1e13, region) for i, (mib, b, region) in enumerate(figures)]
    model = small_model(layers)
    start = data.draw(st.integers(1, len(nodes)))
    try:
        plan = allocate(model, nodes[:start], LINKS)
    except DoesNotFit:
        return
    after = [node for node in nodes if data.draw(st.booleans())]
    delta = change(plan, after)
    shuffled = list(after)
    random.Random(seed).shuffle(shuffled)
    assert change(plan, shuffled) == delta
    covered = play(plan, delta, after)
    whole = set(range(layers))
    if delta.uncovered is None:
        assert covered[-1] == whole
    else:
        with pytest.raises(DoesNotFit):
            allocate(model, after, LINKS)
    room = {node.node_id: node.memory_bytes for node in after}
    for stage in delta.plan.stages():
        cache = stage.layers * model.kv_layer_bytes(768)
        assert model.range_bytes(stage.start, stage.end) + cache <= room[stage.node_id]
    # Nothing that stays is loaded twice, and what was covered by all along stays so where memory allows.
    assert delta.load_bytes == sum(step.weight_bytes for step in delta.steps if step.kind == "load")


spans = st.tuples(st.integers(0, 11), st.integers(1, 12)).filter(lambda span: span[0] < span[1])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(spans, st.floats(2e10, 1e12)), min_size=1, max_size=6), st.sampled_from(OBJECTIVES))
def test_what_is_held_is_judged_the_same_again_though_ranges_overlap(
    held_by: list[tuple[tuple[int, int], float]], objective: Objective
) -> None:
    nodes = [PoolNode(f"n{i}", 10**12, bandwidth, 1e13) for i, (_, bandwidth) in enumerate(held_by)]
    stages = [Stage(f"n{i}", *span) for i, (span, _) in enumerate(held_by)]
    once = judged(allocate(small_model(12), nodes, LINKS, objective), stages, Pool(tuple(nodes), LINKS))
    again = judged(once, stages, once.pool)
    assert again.score == pytest.approx(once.score)
    assert {s.node_id for s in again.stages()} == {s.node_id for s in stages}


def travelled(plan: Allocation, pool: Pool) -> Allocation:
    """As it reaches the next planner: who holds what, and no word of pipelines."""
    stages = list(plan.stages())
    return judged(replace(plan, pipelines=(), replicas=tuple(stages), score=0.0, bound=0.0), stages, pool)


@st.composite
def machines_and_links(draw: st.DrawFn) -> tuple[list[PoolNode], Links]:
    rates = st.floats(2e10, 1e12)
    nodes = [
        PoolNode(f"n{i}", draw(st.integers(200, 4000)) * MIB, draw(rates), draw(st.sampled_from([1e12, 1e13, 1e14])))
        for i in range(draw(st.integers(2, 6)))
    ]
    pairs = itertools.combinations([node.node_id for node in nodes], 2)
    return nodes, Links({pair: draw(st.sampled_from([0.3, 20.0, 40.0])) for pair in pairs})


@settings(max_examples=80, deadline=None)
@given(machines_and_links(), st.integers(2, 30), st.sampled_from(OBJECTIVES), st.integers(0, 9))
def test_a_pool_that_stays_as_it_is_comes_to_rest(
    described: tuple[list[PoolNode], Links], layers: int, objective: Objective, newcomers: int
) -> None:
    nodes, links = described
    pool = Pool(tuple(nodes), links)
    try:
        plan = allocate(small_model(layers), nodes[: max(1, len(nodes) - newcomers)], links, objective)
    except DoesNotFit:
        return
    seen = list[Sequence[object]]()
    while (found := plan.assignments()) not in seen:
        seen.append(found)
        plan = replan(travelled(plan, pool), pool).plan
    assert seen[-1] == found, "it goes round in circles"
    assert len(seen) <= 4


@settings(max_examples=80, deadline=None)
@given(machines_and_links(), st.integers(2, 30), st.sampled_from(OBJECTIVES))
def test_a_plan_is_never_called_better_than_itself(
    described: tuple[list[PoolNode], Links], layers: int, objective: Objective
) -> None:
    nodes, links = described
    pool = Pool(tuple(nodes), links)
    try:
        plan = allocate(small_model(layers), nodes, links, objective)
    except DoesNotFit:
        return
    assert not replan(travelled(plan, pool), pool).anew


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_loss_moves_nothing_on_those_who_are_left_but_what_is_missing(objective: Objective, seed: int) -> None:
    nodes, links = unequal(8, seed, (3, 24))
    model = small_model(24, 1024)
    plan = allocate(model, nodes, links, objective)
    for gone in nodes:
        left = Pool(tuple(node for node in nodes if node is not gone), links)
        delta = replan(plan, left)
        before = {n: set(ls) for n, ls in layers_of(plan.stages()).items() if n != gone.node_id}
        missing = set(range(24)) - set().union(*before.values()) if before else set(range(24))
        if delta.anew or delta.uncovered is not None:
            assert missing, "nothing was missing: why was it planned anew?"
            continue
        after = layers_of(delta.plan.stages())
        idle = {node.node_id for node in left.nodes} - before.keys()
        for name, held_before in before.items():
            assert held_before <= after.get(name, set()) or missing, "whoever stays keeps what it holds"
            if not missing:
                assert after.get(name) == held_before
        if not missing:
            assert all(step.node_id in idle for step in delta.steps)


def test_a_plan_tells_the_bytes_and_the_time_of_its_moves() -> None:
    nodes = machines("AA")
    plan = allocate(mixture(24), nodes, LINKS)
    delta = change(plan, [*nodes, machine(7, "D")])
    assert delta.load_bytes == sum(step.weight_bytes for step in delta.steps) > 0
    assert delta.load_s == pytest.approx(LOAD_S + delta.load_bytes / LOAD_RATE)
    assert change(plan, nodes).load_s == 0


def test_who_is_behind_a_slow_link_is_not_asked_for_a_few_missing_layers() -> None:
    """Two idle nodes could take them for as many bytes; one of them is far away."""
    model = small_model(24, 64)
    near = [PoolNode(name, 700 * MIB, 2e11, 2e13, "home") for name in "abc"]
    far = PoolNode("aa far", 700 * MIB, 2e11, 2e13, "away")
    spare = PoolNode("z near", 700 * MIB, 2e11, 2e13, "home")
    links = Links({("home", "home"): 1.0, ("home", "away"): 150.0})
    stages = (Stage("a", 0, 8), Stage("b", 8, 16), Stage("c", 16, 24))
    plan = allocate(model, near, links)
    plan = replace(plan, pipelines=(), replicas=stages, standby=())
    delta = replan(plan, Pool((near[0], near[1], far, spare), links))
    assert held(delta.plan)["z near"][1] == 24
    assert delta.plan.pipelines[0].token_ms < 100
