"""What a plan will achieve, and what is said of it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from node.plan import allocate, predict
from node.plan.costs.presets import preset
from node.plan.machines.pool import Links, PoolNode, Workload
from node.plan.outlook.report import report_data, report_text
from tests.fakes.pools import GIB, machines, mixture, small_model


def test_figures_of_one_node_follow_the_roofline() -> None:
    model = small_model(10)
    node = PoolNode("only", 4 * GIB, 100e9, 10e12)
    prediction = predict(allocate(model, [node], Links()), Workload(100, 50))
    read = 10 * model.layer_bytes + model.embedding_bytes
    assert prediction.tpot_ms == pytest.approx(read / 100e9 / 0.7 * 1000, rel=0.02)
    assert prediction.tokens_per_s == pytest.approx(1000 / prediction.tpot_ms)
    assert prediction.ttft_ms > prediction.tpot_ms
    assert "only limits you" in prediction.bottleneck
    assert "it runs alone" in prediction.bottleneck


@pytest.mark.parametrize("users", [1, 1000, 100_000])
def test_no_node_is_said_to_use_more_memory_than_it_has(users: int) -> None:
    plan = allocate(mixture(36), machines("AAABCD"), Links())
    assert plan.replicas
    for node in predict(plan, Workload(256, 96, users)).memory:
        assert node.weight_bytes + node.kv_bytes <= node.memory_bytes


def test_a_measured_head_and_overhead_count_where_they_happen() -> None:
    model = small_model(10)
    plain = PoolNode("only", 4 * GIB, 100e9, 10e12, layer_ms=((1, 2.0),))
    measured = replace(plain, head_ms=7.0, overhead_ms=0.5)
    alone = predict(allocate(model, [measured], Links()), Workload(500, 24))
    assert alone.tpot_ms == pytest.approx(10 * 2.0 + 7.0 + 0.5, rel=0.02)
    pair = [replace(measured, node_id="a", pinned=(0, 5)), replace(measured, node_id="b", pinned=(5, 10), head_ms=3.0)]
    apart = predict(allocate(model, pair, Links({("a", "b"): 4.0})), Workload(500, 24))
    assert apart.tpot_ms == pytest.approx(10 * 2.0 + 3.0 + 2 * 0.5 + 4.0, rel=0.02), "the tail's head, both overheads"


def test_a_node_with_a_slow_head_is_not_made_the_tail() -> None:
    node = PoolNode("a", 1500 * 1024**2, 100e9, 10e12, layer_ms=((1, 2.0),))
    pair = [replace(node, head_ms=9.0), replace(node, node_id="b", head_ms=1.0)]
    assert allocate(small_model(24), pair, Links()).pipelines[0].stages[-1].node_id == "b"


def test_more_users_get_more_together_and_less_each() -> None:
    plan = allocate(mixture(24), machines("AAAA"), Links(), "throughput", workload=Workload(512, 256, 16))
    one, many = predict(plan, Workload(512, 256, 1)), predict(plan, Workload(512, 256, 16))
    assert many.users_tokens_per_s > one.users_tokens_per_s
    assert many.users_tpot_ms > one.users_tpot_ms


def test_a_slow_node_is_named_with_the_move_that_helps() -> None:
    nodes = [PoolNode("studio", 1500 * 1024**2, 30e9, 5e12), PoolNode("attic", 1500 * 1024**2, 30e9, 5e12)]
    plan = allocate(small_model(24, vocab=1000), nodes, Links(), "balanced")
    skewed = [PoolNode("studio", 1500 * 1024**2, 10e9, 5e12), nodes[1]]
    told = predict(plan.__class__(**{**_fields(plan), "pool": plan.pool.__class__(tuple(skewed), plan.pool.links)}))
    assert told.bottleneck.startswith("studio limits you: ")
    assert "layers to attic ≈ +" in told.bottleneck


def _fields(plan: object) -> dict[str, object]:
    return {name: getattr(plan, name) for name in plan.__dataclass_fields__}  # type: ignore[attr-defined]


def test_a_slow_network_is_named() -> None:
    nodes = [PoolNode("a", GIB, 1e12, 1e14, "eu"), PoolNode("b", GIB, 1e12, 1e14, "us")]
    plan = allocate(small_model(20), nodes, Links({("eu", "us"): 200.0}))
    assert predict(plan).bottleneck.startswith("the network limits you: ")


def test_memory_is_accounted_for() -> None:
    nodes = machines("AAA")
    plan = allocate(mixture(24), nodes, Links())
    prediction = predict(plan)
    assert {m.node_id for m in prediction.memory} == {stage.node_id for stage in plan.stages()}
    assert all(m.weight_bytes + m.kv_bytes <= m.memory_bytes for m in prediction.memory)


def test_which_machines_for_a_known_model_needs_no_download() -> None:
    model = preset("GLM-4.6")
    assert model is not None
    nodes = [PoolNode(f"studio{i}", 400 * GIB, 800e9, 30e12) for i in range(3)]
    plan = allocate(model, nodes, Links(), "latency")
    prediction = predict(plan)
    text = report_text(plan, prediction)
    assert "glm-4.6: 92 layers" in text
    assert "studio0" in text
    assert "█" in text
    data = report_data(plan, prediction)
    assert json.loads(json.dumps(data))["prediction"]["tpot_ms"] == pytest.approx(prediction.tpot_ms)


def test_the_report_tells_why_a_node_stands_by() -> None:
    nodes = [*machines("AA"), PoolNode("tiny", GIB)]
    plan = allocate(mixture(24), nodes, Links())
    assert "tiny has 1.00 GiB for the model" in report_text(plan, predict(plan))
