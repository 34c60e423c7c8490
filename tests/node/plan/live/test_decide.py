"""Who plans, when a plan is due, and when it stays."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from node.errors import BadLayers
from node.plan.live.decide import RETURN_MOST_S, Problem, decide, return_grace_s
from node.plan.live.members import planner_of
from node.plan.live.propose import propose
from node.wire.codec import encode
from node.wire.ids import NodeId
from node.wire.models import ModelFacts, ModelRef
from node.wire.plan_size import PLAN_LIMIT_BYTES
from node.wire.plans import Assignment, Override, Plan, PlanSettings, Standby
from node.wire.records import Hardware, LayerLatency, NodeRecord

GIB = 1024**3
FACTS = ModelFacts(30, 14_160_000, 113_246_208, 113_248_512, 1536, 576, 49152, 8192)
MODEL = ModelRef("smol", "default", "abc")
A, B, C = NodeId("a"), NodeId("b"), NodeId("c")


def record(node_id: str, **changes: Any) -> NodeRecord:
    fields: dict[str, Any] = {
        "node_id": node_id,
        "name": node_id,
        "seq": 1,
        "ttl_s": 5.0,
        "machine_id": f"machine of {node_id}",
        "addresses": (),
        "software": "test",
        "hardware": Hardware("cpu", "test", 8 * GIB, 1e9, 1e12, 4),
    }
    return NodeRecord(**(fields | changes))


def records(*given: NodeRecord) -> dict[NodeId, NodeRecord]:
    return {each.id: each for each in given}


def plan_for(*owners: str, epoch: int = 4) -> Plan:
    share = 30 // len(owners)
    assignments = tuple(Assignment(owner, k * share, (k + 1) * share) for k, owner in enumerate(owners))
    return Plan(epoch, owners[0], MODEL, "float32", FACTS, assignments, settings=SHARE)


SHARE = PlanSettings("share")


def decided(
    self_id: NodeId,
    members: dict[NodeId, NodeRecord],
    current: Plan | None,
    settings: PlanSettings = SHARE,
    **more: Any,
) -> Any:
    return decide(self_id, members, MODEL, "float32", FACTS, current, settings, **more)


def test_only_the_eligible_member_with_the_smallest_id_plans() -> None:
    members = records(record("b"), record("a"), record("c"))
    assert decided(B, members, None) is None
    plan = decided(A, members, None)
    assert [(x.node_id, x.start, x.end) for x in plan.assignments] == [("a", 0, 10), ("b", 10, 20), ("c", 20, 30)]
    assert planner_of(records(record("a", hardware=None), record("b", state="failed"), record("c"))) == C
    assert planner_of({}) is None


def test_the_same_members_need_no_new_plan() -> None:
    members = records(record("a"), record("b"))
    assert decided(A, members, plan_for("a", "b")) is None


def test_a_newcomer_calls_for_a_plan_with_a_higher_epoch() -> None:
    plan = decided(A, records(record("a"), record("b")), plan_for("a", epoch=9))
    assert plan.epoch == 10
    assert [x.end - x.start for x in plan.assignments] == [15, 15]


def test_a_remembered_epoch_is_outdone() -> None:
    assert decided(A, records(record("a")), None, last_epoch=41).epoch == 42


def test_the_place_of_a_member_that_may_return_is_kept() -> None:
    members = records(record("a"), record("c"))
    current = plan_for("a", "b", "c")
    assert decided(A, members, current, expected=frozenset({B})) is None
    plan = decided(A, members, current)
    assert [x.node_id for x in plan.assignments] == ["a", "c"]


def test_a_member_that_failed_to_load_is_planned_around() -> None:
    plan = decided(A, records(record("a"), record("b", state="failed")), plan_for("a", "b"))
    assert plan.assignments == (Assignment("a", 0, 30),)


def test_nodes_of_one_machine_divide_its_memory() -> None:
    alone = decided(A, records(record("a"), record("b"), record("c", machine_id="x")), None)
    shared = decided(A, records(record("a", machine_id="x"), record("b"), record("c", machine_id="x")), None)
    assert [x.end - x.start for x in alone.assignments] == [10, 10, 10]
    assert [x.end - x.start for x in shared.assignments] == [8, 15, 7]


def test_a_memory_cap_counts_as_it_is() -> None:
    plan = decided(A, records(record("a", memory_cap_bytes=2 * GIB), record("b", memory_cap_bytes=4 * GIB)), None)
    assert [x.end - x.start for x in plan.assignments] == [10, 20]


def test_a_plan_with_reasons_for_a_thousand_nodes_that_stand_by_can_travel() -> None:
    crowd = [record(f"12D3KooW{number:044d}", memory_cap_bytes=10_000) for number in range(1000)]
    plan = decided(crowd[0].id, records(record("z"), *crowd), None)
    assert len(plan.standby) == 1000
    assert all(each.reason for each in plan.standby)
    assert len(encode(plan)) <= PLAN_LIMIT_BYTES


def test_a_pool_that_is_too_small_is_a_problem_in_words() -> None:
    problem = decided(A, records(record("a", memory_cap_bytes=10_000)), None)
    assert isinstance(problem, Problem)
    assert "missing" in problem.reason


def test_plans_are_totally_ordered() -> None:
    low, high = plan_for("a", epoch=1), plan_for("b", epoch=2)
    assert high.outranks(low)
    assert not low.outranks(high)
    assert plan_for("a", epoch=2).outranks(high), "equal epochs: the smaller author"
    assert not high.outranks(high)
    assert low.outranks(None)


def ranges(plan: Plan) -> dict[str, tuple[int, int]]:
    return {each.node_id: (each.start, each.end) for each in plan.assignments}


def test_left_to_us_the_objective_is_to_share_on_one_machine_and_balanced_on_several() -> None:
    together = decided(A, records(record("a", machine_id="x"), record("b", machine_id="x")), None, PlanSettings())
    assert (together.objective, sorted(ranges(together).values())) == ("share", [(0, 15), (15, 30)])
    apart = decided(A, records(record("a"), record("b")), None, PlanSettings())
    assert apart.objective == "balanced"
    assert ranges(apart) == {"a": (0, 30), "b": (0, 30)}, "the model fits into each: two pipelines"
    assert apart.settings.objective == "auto"


def test_left_to_us_the_objective_is_to_share_again_when_all_have_been_on_one_machine_for_long() -> None:
    here = records(record("a", machine_id="x"), record("b", machine_id="x"))
    apart = decided(A, here | records(record("c")), None, PlanSettings())
    assert apart.objective == "balanced"
    soon = decided(A, here, apart, apart.settings)
    assert soon is None or soon.objective == "balanced", "it may come back"
    later = decided(A, here, soon or apart, apart.settings, settled=True)
    assert (later.objective, sorted(ranges(later).values())) == ("share", [(0, 15), (15, 30)])
    assert decided(A, here, later, later.settings) is None
    chosen = decided(A, here, None, PlanSettings("balanced"))
    assert decided(A, here, chosen, chosen.settings, settled=True) is None, "what people choose stays"
    assert decided(A, here | records(record("c")), apart, apart.settings, settled=True) is None


def test_the_same_members_need_no_new_plan_whatever_the_objective() -> None:
    members = records(*(record(name, rtt_ms={}) for name in "abcd"))
    for objective in ("share", "latency", "balanced", "throughput"):
        settings = PlanSettings(objective)  # type: ignore[arg-type]
        plan = decided(A, members, None, settings)
        assert decided(A, members, plan, plan.settings) is None


def test_a_model_too_large_for_one_node_is_split_by_speed_not_by_memory() -> None:
    fast = Hardware("cpu", "test", 4 * GIB // 5, 3e9, 1e12, 4)
    slow = Hardware("cpu", "test", 4 * GIB // 5, 1e9, 1e12, 4)
    plan = decided(A, records(record("a", hardware=fast), record("b", hardware=slow)), None, PlanSettings("balanced"))
    layers = {node: end - start for node, (start, end) in ranges(plan).items()}
    assert sum(layers.values()) == 30
    assert layers["a"] > layers["b"]


def test_a_hand_set_change_is_a_new_plan_and_travels_with_it() -> None:
    members = records(record("a"), record("b"))
    settings = PlanSettings("share", (Override("b", memory_bytes=GIB), Override("z", duty="exclude")))
    plan = decided(A, members, plan_for("a", "b"), settings)
    assert plan.settings == settings
    assert plan.epoch == 5
    assert decided(B, records(record("b")), plan, plan.settings).settings == settings, "whoever plans next keeps it"


def test_who_drains_or_is_excluded_holds_nothing_and_the_reason_is_told() -> None:
    members = records(record("a"), record("b"), record("c"))
    for duty, reason in (("drain", "drains"), ("exclude", "excluded by hand")):
        for objective in ("share", "balanced"):
            settings = PlanSettings(objective, (Override("b", duty=duty),))  # type: ignore[arg-type]
            plan = decided(A, members, plan_for("a", "b", "c"), settings)
            assert "b" not in ranges(plan)
            assert plan.standby == (Standby("b", f"b is given nothing: {reason}", barred=True),)
            assert decided(A, members, plan, settings) is None
            back = decided(A, members, plan, PlanSettings(objective))  # type: ignore[arg-type]
            assert "b" in ranges(back)


def test_a_lost_member_costs_the_others_no_more_than_what_it_held() -> None:
    capped = [record(name, memory_cap_bytes=GIB) for name in "abcd"]
    settings = PlanSettings("latency")
    plan = decided(A, records(*capped), plan_for("a", "b", "c"), settings)
    after = decided(A, records(*(each for each in capped if each.node_id != "c")), plan, settings)
    covered = {layer for start, end in ranges(after).values() for layer in range(start, end)}
    assert covered == set(range(30))
    kept = {node: held for node, held in ranges(plan).items() if node != "c"}
    for node, (start, end) in kept.items():
        assert ranges(after)[node][0] <= start
        assert ranges(after)[node][1] >= end


def test_hand_set_layers_that_cannot_be_are_planned_around() -> None:
    for objective in ("share", "balanced"):
        settings = PlanSettings(objective)  # type: ignore[arg-type]
        plan = decided(A, records(record("a"), record("b", pinned_layers=(20, 40))), None, settings)
        assert ranges(plan) == {"a": (0, 30)}
        assert "20–39, cannot be: the model has 30 layers" in plan.standby[0].reason
    problem = decided(A, records(record("a", pinned_layers=(20, 40))), None)
    assert isinstance(problem, Problem)
    assert "20–39" in problem.reason


def test_layers_set_from_elsewhere_that_cannot_be_are_refused_and_planned_around_once_they_are_set() -> None:
    members = records(record("a"), record("b", memory_cap_bytes=GIB // 8))
    for objective in ("share", "balanced"):
        for layers, words in (((20, 40), "has 30 layers"), ((0, 30), "b has 0.12 GiB")):
            settings = PlanSettings(objective, (Override("b", layers),))  # type: ignore[arg-type]
            with pytest.raises(BadLayers, match=words):
                propose(A, members, MODEL, "float32", FACTS, plan_for("a"), settings)
            plan = decided(A, members, plan_for("a"), settings)
            assert ranges(plan) == {"a": (0, 30)}
            assert words in plan.standby[0].reason


def test_when_nobody_may_hold_layers_the_plan_stays_and_everybodys_reason_is_told() -> None:
    by_hand = (Override("a", duty="drain"), Override("b", duty="exclude"))
    for objective in ("share", "balanced"):
        settings = PlanSettings(objective, by_hand)  # type: ignore[arg-type]
        problem = decided(A, records(record("a"), record("b")), plan_for("a", "b"), settings)
        assert isinstance(problem, Problem)
        assert "a: drains; b: excluded by hand" in problem.reason
        assert "--reset" in problem.reason


def test_who_asks_for_shares_gets_them_whatever_was_in_force() -> None:
    members = records(record("a"), record("b"), record("c"))
    whole = decided(A, members, None, PlanSettings("balanced"))
    assert set(ranges(whole).values()) == {(0, 30)}
    assert sorted(ranges(decided(A, members, whole, SHARE)).values()) == [(0, 10), (10, 20), (20, 30)]


def test_a_machine_that_visits_does_not_turn_the_objective_over_and_over() -> None:
    home = [record("a", machine_id="x"), record("b", machine_id="x")]
    alone = decided(A, records(*home), None, PlanSettings())
    still_measuring = record("v", hardware=None)
    assert decided(A, records(*home, still_measuring), alone, PlanSettings()) is None
    visited = decided(A, records(*home, record("v")), alone, PlanSettings())
    assert visited.objective == "balanced"
    assert decided(A, records(*home), visited, PlanSettings()).objective == "balanced"


@given(
    st.floats(0, 1e9, allow_subnormal=True),
    st.floats(0, 1e9, allow_subnormal=True),
    st.floats(0, 1e18, allow_subnormal=True),
    st.sampled_from(["share", "latency", "balanced", "throughput"]),
)
def test_no_record_that_the_wire_lets_through_stops_planning(
    layer_ms: float, head_ms: float, rate: float, objective: Any
) -> None:
    odd = record(
        "b",
        layer_latency=LayerLatency(layer_ms, layer_ms, layer_ms),
        head_ms=head_ms,
        overhead_ms=head_ms,
        hardware=Hardware("cpu", "test", 8 * GIB, rate, rate, 4),
        rtt_ms={"a": layer_ms},
    )
    plan = decided(A, records(record("a"), odd), None, PlanSettings(objective))
    covered = {layer for start, end in ranges(plan).values() for layer in range(start, end)}
    assert covered == set(range(30))


def test_a_lost_member_is_waited_for_as_long_as_its_layers_would_take_to_load() -> None:
    plan = plan_for("a", "b", "c")
    assert 1 < return_grace_s(plan, B) < 2, "ten layers of 14 MB"
    assert return_grace_s(plan, NodeId("d")) == 0
    whole = (Assignment("a", 0, 30), Assignment("b", 0, 30), Assignment("c", 0, 12))
    assert return_grace_s(structs.replace(plan, assignments=whole), B) == 0, "a holds all of it too: nothing is loaded"
    huge = Plan(1, "a", MODEL, "float32", ModelFacts(30, 10**9, 0, 0, 0, 1, 1, 1), plan.assignments)
    assert return_grace_s(huge, B) == RETURN_MOST_S
