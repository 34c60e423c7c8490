"""What a plan will achieve, and what is said of it."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.plan import allocate, predict
from node.plan.chain_time import CHUNK_TOKENS, chain_of_nodes
from node.plan.costs.presets import preset
from node.plan.machines.pool import Links, Pool, PoolNode, Workload
from node.plan.outlook.figures import figure, milliseconds
from node.plan.outlook.report import report_data, report_text
from node.plan.placement.allocation import Pipeline, Stage
from node.wire.layer_range import layer_range
from tests.fakes.pools import GIB, machines, mixture, small_model


def test_figures_of_one_node_follow_the_roofline() -> None:
    model = small_model(10)
    node = PoolNode("only", 4 * GIB, 100e9, 10e12)
    prediction = predict(allocate(model, [node], Links()), Workload(600, 50))
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
    told = predict(replace(plan, pool=replace(plan.pool, nodes=tuple(skewed))))
    assert told.bottleneck.startswith("studio limits you: ")
    assert "layers to attic would make one user's answers " in told.bottleneck


MOVE = re.compile(r"(one|two|three) layers? to (\w+) would make one user's answers (\d+)% faster")


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(1e10, 1e12), st.integers(1, 20), st.floats(0, 10)), min_size=2, max_size=4),
    st.floats(0, 60),
    st.integers(1, 3000),
)
def test_a_move_is_told_only_where_the_changed_layout_is_faster_for_one_user_and_by_how_much(
    rows: list[tuple[float, int, float]], rtt_ms: float, prompt: int
) -> None:
    layers = [count for _, count, _ in rows]
    model, work = small_model(sum(layers)), Workload(prompt, 100)
    nodes = [
        PoolNode(f"n{i}", 8 * GIB, bandwidth, bandwidth * 20, overhead_ms=overhead_ms)
        for i, (bandwidth, _, overhead_ms) in enumerate(rows)
    ]
    pool = Pool(tuple(nodes), Links(near_ms=rtt_ms))
    starts = [sum(layers[:i]) for i in range(len(layers))]
    stages = tuple(Stage(n.node_id, s, s + c) for n, s, c in zip(nodes, starts, layers, strict=True))
    plan = replace(
        allocate(model, nodes, pool.links, workload=work), pool=pool, pipelines=(Pipeline(stages, 1.0, 1.0, 1),)
    )
    told = predict(plan).bottleneck
    found = MOVE.search(told)
    if found is None:
        return
    number, taker, gain = {"one": 1, "two": 2, "three": 3}[found[1]], found[2], int(found[3])
    changed = list(layers)
    changed[[n.node_id for n in nodes].index(told.split()[0])] -= number
    changed[[n.node_id for n in nodes].index(taker)] += number
    before, after = (
        chain_of_nodes(model, pool.links, nodes, counts, work).token_ms(work) for counts in (layers, changed)
    )
    assert after < before
    assert 100 * (before / after - 1) == pytest.approx(gain, abs=0.51)


def test_the_first_token_comes_when_the_chunks_that_overlap_are_through() -> None:
    nodes = [PoolNode(name, 3 * GIB, 1e12, 1e12) for name in "abc"]
    plan = allocate(
        small_model(24), [replace(n, pinned=(8 * i, 8 * i + 8)) for i, n in enumerate(nodes)], Links(near_ms=1.0)
    )
    one, many = (predict(plan, Workload(tokens, 64)).ttft_ms for tokens in (CHUNK_TOKENS, 16 * CHUNK_TOKENS))
    assert many == pytest.approx(one * (3 + 15) / 3, rel=0.1)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0000123, "0.0000123"),
        (5.6249, "5.62"),
        (99.96, "100"),
        (178.4, "178"),
        (2310.0, "2,310"),
        (50, "50"),
    ],
)
def test_figures_have_no_exponent(value: float, text: str) -> None:
    assert figure(value) == text


def test_long_times_are_told_in_seconds() -> None:
    assert milliseconds(10_195.0) == "10.2 s"
    assert milliseconds(812.3) == "812 ms"


def test_ranges_are_told_as_people_count_them() -> None:
    nodes = [PoolNode("a", GIB, 1e12, 1e14), PoolNode("b", GIB, 1e12, 1e14)]
    plan = allocate(small_model(20), nodes, Links())
    text = report_text(plan, predict(plan))
    assert all(layer_range(stage.start, stage.end) in text for stage in plan.stages())
    assert not re.search(r"\d+:\d+", text)


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
