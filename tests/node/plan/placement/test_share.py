"""Layers in proportion to memory: what must hold for every pool, and the cases that people will meet first."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import BadLayers, DoesNotFit
from node.plan import allocate, predict, replan
from node.plan.costs.model import ModelCost, cost_of_facts
from node.plan.costs.roofline import layer_capacity
from node.plan.machines.pool import Links, Pool, PoolNode
from node.plan.outlook.report import report_text
from node.plan.placement.allocation import Stage
from node.plan.placement.by_memory import KV_TOKENS_PER_STAGE, proportional_counts, share_layers, still_right
from node.wire.models import ModelFacts

GIB = 1024**3
SMOLLM = cost_of_facts("m", ModelFacts(30, 14_160_000, 113_246_208, 113_248_512, 1536, 576, 49152, 8192), 4)


def members(*gib: float) -> list[PoolNode]:
    return [PoolNode(f"node-{index:02}", int(size * GIB)) for index, size in enumerate(gib)]


def counts(stages: list[Stage]) -> list[int]:
    return [stage.layers for stage in stages]


def test_one_node_holds_everything() -> None:
    assert share_layers(SMOLLM, members(8)) == [Stage("node-00", 0, 30)]


def test_equal_nodes_share_equally() -> None:
    assert counts(share_layers(SMOLLM, members(8, 8, 8))) == [10, 10, 10]


def test_shares_follow_memory() -> None:
    assert counts(share_layers(SMOLLM, members(16, 8, 8))) == [15, 8, 7]


def test_a_pool_that_is_too_small_says_how_much_is_missing() -> None:
    with pytest.raises(DoesNotFit, match=r"\d\.\d\d MiB missing") as caught:
        share_layers(SMOLLM, members(0.2, 0.2))
    assert caught.value.missing_bytes > 0


def test_a_hand_set_range_is_kept_and_the_rest_is_shared() -> None:
    pool = [PoolNode("a", GIB, pinned=(5, 12)), PoolNode("b", GIB), PoolNode("c", GIB)]
    plan = share_layers(SMOLLM, pool)
    assert Stage("a", 5, 12) in plan
    assert sorted(layer for a in plan for layer in range(a.start, a.end)) == list(range(30))


def test_hand_set_ranges_that_leave_a_gap_leave_it_visible() -> None:
    plan = share_layers(SMOLLM, [PoolNode("a", GIB, pinned=(0, 10)), PoolNode("b", GIB, pinned=(20, 30))])
    assert plan == [Stage("a", 0, 10), Stage("b", 20, 30)]


def test_a_hand_set_range_beyond_the_model_is_refused_with_its_size() -> None:
    with pytest.raises(BadLayers, match="20–39: the model has 30 layers"):
        share_layers(SMOLLM, [PoolNode("a", GIB, pinned=(20, 40))])


def test_a_newcomer_goes_behind_those_who_were_there() -> None:
    pool = [PoolNode("zoe", GIB), PoolNode("ada", GIB)]
    before = share_layers(SMOLLM, pool[:1])
    assert [a.node_id for a in share_layers(SMOLLM, pool, before)] == ["zoe", "ada"]
    assert [a.node_id for a in share_layers(SMOLLM, pool)] == ["ada", "zoe"]


pools = st.lists(st.integers(1, 200 * GIB), min_size=1, max_size=12)
facts = st.builds(
    ModelFacts,
    layers=st.integers(1, 80),
    layer_bytes=st.integers(1, 4 * GIB),
    embedding_bytes=st.integers(0, 2 * GIB),
    head_bytes=st.integers(0, 2 * GIB),
    kv_bytes_per_token_layer=st.integers(0, 65536),
    hidden_size=st.just(64),
    vocab_size=st.just(100),
    context_tokens=st.just(4096),
)


models = facts.map(lambda each: cost_of_facts("m", each, 2))


@given(pools, models, st.integers())
def test_every_plan_covers_each_layer_once_within_memory_whatever_the_order(
    memories: list[int], model: ModelCost, seed: int
) -> None:
    pool = [PoolNode(f"n{index:02}", memory) for index, memory in enumerate(memories)]
    shuffled = random.Random(seed).sample(pool, len(pool))
    try:
        plan = share_layers(model, pool)
    except DoesNotFit:
        with pytest.raises(DoesNotFit):
            share_layers(model, shuffled)
        return
    assert plan == share_layers(model, shuffled)
    assert [layer for stage in plan for layer in range(stage.start, stage.end)] == list(range(model.layers))
    memory = {node.node_id: node.memory_bytes for node in pool}
    for stage in plan:
        ends = {"first": stage.start == 0, "last": stage.end == model.layers}
        assert stage.layers <= layer_capacity(model, memory[stage.node_id], context=KV_TOKENS_PER_STAGE, **ends)
    assert still_right(model, pool, plan), "the same members keep the same layers"


@given(st.integers(1, 100), st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 100)), min_size=1, max_size=10))
def test_proportional_counts_sum_up_and_respect_capacity(layers: int, nodes: list[tuple[int, int]]) -> None:
    weights, capacities = [w for w, _ in nodes], [c for _, c in nodes]
    if sum(capacities) < layers:
        return
    shares = proportional_counts(layers, weights, capacities)
    assert sum(shares) == layers
    assert all(0 <= share <= capacity for share, capacity in zip(shares, capacities, strict=True))


def test_as_an_objective_it_gives_one_pipeline_and_says_what_it_is() -> None:
    plan = allocate(SMOLLM, members(8, 8, 8), Links(), "share")
    assert [(stage.start, stage.end) for stage in plan.pipelines[0].stages] == [(0, 10), (10, 20), (20, 30)]
    assert plan.standby == ()
    assert "in proportion" in plan.note


def test_a_gap_between_hand_set_ranges_is_told() -> None:
    pool = [PoolNode("a", GIB, pinned=(0, 10)), PoolNode("b", GIB, pinned=(20, 30))]
    plan = allocate(SMOLLM, pool, Links(), "share")
    assert plan.pipelines == ()
    assert "10–19" in plan.note


def test_a_node_that_is_barred_leaves_its_share_and_gets_one_again_when_it_may() -> None:
    here = members(8, 8)
    plan = allocate(SMOLLM, here, Links(), "share")
    barred = [here[0], PoolNode("node-01", 8 * GIB, barred="drains")]
    without = replan(plan, Pool(tuple(barred), Links())).plan
    assert [stage.layers for stage in without.stages()] == [30]
    assert "drains" in without.standby[0].reason
    assert replan(without, Pool(tuple(barred), Links())).steps == ()
    again = replan(without, Pool(tuple(here), Links())).plan
    assert sorted(stage.layers for stage in again.stages()) == [15, 15]


def test_a_hand_set_range_that_overfills_its_node_is_refused() -> None:
    pool = [PoolNode("a", GIB // 8, pinned=(0, 20)), PoolNode("b", 8 * GIB, pinned=(20, 30))]
    with pytest.raises(BadLayers, match=r"a has 0\.12 GiB"):
        allocate(SMOLLM, pool, Links(), "share")


def test_who_leaves_ranges_set_by_hand_behind_leaves_a_gap_that_is_told() -> None:
    a, b = PoolNode("a", 8 * GIB, pinned=(0, 10)), PoolNode("b", 8 * GIB)
    plan = allocate(SMOLLM, [a, b], Links(), "share")
    delta = replan(plan, Pool((a,), Links()))
    assert [*delta.plan.stages()] != [*plan.stages()]
    assert delta.uncovered == (10, 30)
    assert "10–29" in delta.reason


def test_a_gap_that_pins_leave_is_told_without_a_speed() -> None:
    pool = [PoolNode("a", GIB, pinned=(0, 5)), PoolNode("b", GIB, pinned=(10, 20)), PoolNode("c", GIB, pinned=(20, 30))]
    plan = allocate(SMOLLM, pool, Links(), "share")
    text = report_text(plan, predict(plan))
    assert "layers 5–9 are left open" in text
    assert "tokens/s" not in text


def test_what_is_taken_back_lets_go_and_small_changes_of_memory_do_not() -> None:
    plain = members(8, 8, 8)
    fair = allocate(SMOLLM, plain, Links(), "share")
    for odd in (replace(plain[0], pinned=(0, 20)), replace(plain[0], memory_bytes=GIB // 4)):
        steered = replan(fair, Pool((odd, *plain[1:]), Links())).plan
        assert [*steered.stages()] != [*fair.stages()]
        back = replan(steered, Pool(tuple(plain), Links())).plan
        assert {stage.node_id: stage.layers for stage in back.stages()} == {node.node_id: 10 for node in plain}
        assert back.note == fair.note
    a_little_less = replace(plain[0], memory_bytes=plain[0].memory_bytes * 95 // 100)
    assert replan(fair, Pool((a_little_less, *plain[1:]), Links())).plan is fair
