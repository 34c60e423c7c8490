"""Layer assignment: what must hold for every pool, and the cases that people will meet first."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import BadLayers, DoesNotFit
from node.plan.assign import Member, assign_layers, layer_capacity, proportional_counts, still_holds
from node.wire.ids import NodeId
from node.wire.models import ModelFacts
from node.wire.plans import Assignment

GIB = 1024**3
SMOLLM = ModelFacts(30, 14_160_000, 113_246_208, 113_248_512, 1536, 576, 49152, 8192)


def members(*gib: float) -> list[Member]:
    return [Member(NodeId(f"node-{index:02}"), int(size * GIB)) for index, size in enumerate(gib)]


def counts(assignments: tuple[Assignment, ...]) -> list[int]:
    return [assignment.end - assignment.start for assignment in assignments]


def test_one_node_holds_everything() -> None:
    assert assign_layers("m", SMOLLM, members(8)) == (Assignment("node-00", 0, 30),)


def test_equal_nodes_share_equally() -> None:
    assert counts(assign_layers("m", SMOLLM, members(8, 8, 8))) == [10, 10, 10]


def test_shares_follow_memory() -> None:
    assert counts(assign_layers("m", SMOLLM, members(16, 8, 8))) == [15, 8, 7]


def test_a_pool_that_is_too_small_says_how_much_is_missing() -> None:
    with pytest.raises(DoesNotFit, match=r"0\.\d\d GiB missing") as caught:
        assign_layers("m", SMOLLM, members(0.2, 0.2))
    assert caught.value.missing_bytes > 0


def test_a_hand_set_range_is_kept_and_the_rest_is_shared() -> None:
    pool = [Member(NodeId("a"), GIB, (5, 12)), Member(NodeId("b"), GIB), Member(NodeId("c"), GIB)]
    plan = assign_layers("m", SMOLLM, pool)
    assert Assignment("a", 5, 12) in plan
    assert sorted(layer for a in plan for layer in range(a.start, a.end)) == list(range(30))


def test_hand_set_ranges_that_leave_a_gap_leave_it_visible() -> None:
    plan = assign_layers("m", SMOLLM, [Member(NodeId("a"), GIB, (0, 10)), Member(NodeId("b"), GIB, (20, 30))])
    assert plan == (Assignment("a", 0, 10), Assignment("b", 20, 30))


def test_a_hand_set_range_beyond_the_model_is_refused_with_its_size() -> None:
    with pytest.raises(BadLayers, match="20:40: the model has 30 layers"):
        assign_layers("m", SMOLLM, [Member(NodeId("a"), GIB, (20, 40))])


def test_a_newcomer_goes_behind_those_who_were_there() -> None:
    pool = [Member(NodeId("zoe"), GIB), Member(NodeId("ada"), GIB)]
    before = assign_layers("m", SMOLLM, pool[:1])
    assert [a.node_id for a in assign_layers("m", SMOLLM, pool, before)] == ["zoe", "ada"]
    assert [a.node_id for a in assign_layers("m", SMOLLM, pool)] == ["ada", "zoe"]


pools = st.lists(st.integers(1, 200 * GIB), min_size=1, max_size=12)
models = st.builds(
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


@given(pools, models, st.integers())
def test_every_plan_covers_each_layer_once_within_memory_whatever_the_order(
    memories: list[int], facts: ModelFacts, seed: int
) -> None:
    pool = [Member(NodeId(f"n{index:02}"), memory) for index, memory in enumerate(memories)]
    shuffled = random.Random(seed).sample(pool, len(pool))
    try:
        plan = assign_layers("m", facts, pool)
    except DoesNotFit:
        with pytest.raises(DoesNotFit):
            assign_layers("m", facts, shuffled)
        return
    assert plan == assign_layers("m", facts, shuffled)
    assert [layer for a in plan for layer in range(a.start, a.end)] == list(range(facts.layers))
    memory = {member.node_id: member.memory_bytes for member in pool}
    for a in plan:
        room = layer_capacity(facts, memory[a.id], first=a.start == 0, last=a.end == facts.layers)
        assert a.end - a.start <= room
    assert still_holds(facts, pool, plan), "the same members keep the same layers"


@given(st.integers(1, 100), st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 100)), min_size=1, max_size=10))
def test_proportional_counts_sum_up_and_respect_capacity(layers: int, nodes: list[tuple[int, int]]) -> None:
    weights, capacities = [w for w, _ in nodes], [c for _, c in nodes]
    if sum(capacities) < layers:
        return
    shares = proportional_counts(layers, weights, capacities)
    assert sum(shares) == layers
    assert all(0 <= share <= capacity for share, capacity in zip(shares, capacities, strict=True))
