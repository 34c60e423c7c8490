"""Who plans, when a plan is due, and when it stays."""

from __future__ import annotations

from typing import Any

from node.plan.decide import Problem, decide, planner_of
from node.wire.ids import NodeId
from node.wire.models import ModelFacts, ModelRef
from node.wire.plans import Assignment, Plan
from node.wire.records import Hardware, NodeRecord

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
        "hardware": Hardware("cpu", "test", 8 * GIB, 1e9, 1e9, 4),
    }
    return NodeRecord(**(fields | changes))


def records(*given: NodeRecord) -> dict[NodeId, NodeRecord]:
    return {each.id: each for each in given}


def plan_for(*owners: str, epoch: int = 4) -> Plan:
    share = 30 // len(owners)
    assignments = tuple(Assignment(owner, k * share, (k + 1) * share) for k, owner in enumerate(owners))
    return Plan(epoch, owners[0], MODEL, "float32", FACTS, assignments)


def decided(self_id: NodeId, members: dict[NodeId, NodeRecord], current: Plan | None, **more: Any) -> Any:
    return decide(self_id, members, MODEL, "float32", FACTS, current, **more)


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
