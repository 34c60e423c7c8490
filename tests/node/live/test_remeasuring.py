"""A node tells how fast it is when things are quiet, not how fast it was among others that were starting."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from node.engine.base import PROBE_BUDGET_S, PROBE_MOST_STEPS, Slot
from node.errors import EngineError, OutOfKV
from node.live.remeasuring import EVERY_S, LOOK_EVERY_S, SETTLE_S, TURN_S
from node.pipeline.idle_probe import SESSION
from node.wire.records import LayerLatency
from tests.fakes.engine import HEAD_MS, HEAD_SHARE, LAYER_MS
from tests.node.live.test_engine_supervisor import LAYERS, LOAD_S, PROMPT, Lab, Node, answer, in_a_lab

AT_LOADING = LayerLatency(LAYER_MS, LAYER_MS, LAYER_MS)
DUE_S = SETTLE_S - 1.0
"""After `Lab.start`, which ends a second after the layers were loaded."""
PROBED_S = DUE_S + 2 * LOOK_EVERY_S + 2 * PROBE_BUDGET_S


def probes(node: Node) -> list[Slot]:
    return [step for stage in node.engine.stages for step in stage.steps if step.sequence == SESSION]


def layer_ms(node: Node) -> float:
    told = node.pipeline.stage.times.layer()
    assert told is not None
    return told.mean_ms


async def until_a_probe_runs(node: Node) -> None:
    while not any(SESSION in stage.sequences for stage in node.engine.stages):  # noqa: ASYNC110 - the fake has no event
        await trio.sleep(0.001)


async def join_machine(lab: Lab, name: str) -> Node:
    """One more node on a machine that they all share."""
    node = await lab.join(name, step_s=0.1)
    await node.swarm.update(machine_id="shared")
    return node


@in_a_lab
async def test_an_idle_node_times_its_layers_again_soon_after_they_were_loaded(lab: Lab) -> None:
    node = await lab.join("a", step_s=0.06)
    await lab.start(a=(0, LAYERS))
    times = node.pipeline.stage.times
    assert (times.layer(), times.head_ms, times.overhead_ms) == (AT_LOADING, HEAD_MS, None)
    await trio.sleep(PROBED_S)
    assert layer_ms(node) == pytest.approx(60.0 * (1 - HEAD_SHARE) / LAYERS)
    assert times.head_ms == pytest.approx(60.0 * HEAD_SHARE)
    assert times.overhead_ms == pytest.approx(0.0, abs=1e-6)
    assert 1 < len(probes(node)) <= 1 + PROBE_BUDGET_S / 0.06 + 1
    assert node.engine.live_sessions == 0


@in_a_lab
async def test_ranges_without_the_models_ends_are_timed_too(lab: Lab) -> None:
    for name in "abc":
        await lab.join(name, step_s=0.02)
    await lab.start(a=(0, 2), b=(2, 4), c=(4, 6))
    await trio.sleep(PROBED_S)
    assert layer_ms(lab.nodes["a"]) == layer_ms(lab.nodes["b"]) == pytest.approx(10.0)
    assert layer_ms(lab.nodes["c"]) == pytest.approx(10.0 * (1 - HEAD_SHARE))
    assert [lab.nodes[name].pipeline.stage.times.head_ms for name in "ab"] == [None, None]


@in_a_lab
async def test_a_slow_stage_runs_one_step(lab: Lab) -> None:
    node = await lab.join("a", step_s=3.0)
    await lab.start(a=(0, LAYERS))
    await trio.sleep(PROBED_S + 3.0)
    assert len(probes(node)) == 1
    assert layer_ms(node) == pytest.approx(3000.0 * (1 - HEAD_SHARE) / LAYERS)


@in_a_lab
async def test_the_record_shows_no_session_while_steps_are_timed(lab: Lab) -> None:
    node = await lab.join("a", step_s=0.06)
    await lab.start(a=(0, LAYERS))
    await until_a_probe_runs(node)
    stage = node.pipeline.stage
    assert (stage.sessions, stage.reserved_bytes, stage.queue_depth) == (0, 0, 0)


@in_a_lab
async def test_a_request_in_the_middle_waits_for_one_step_at_most_and_has_all_the_room(lab: Lab) -> None:
    node = await lab.join("a", step_s=0.1)
    await lab.start(a=(0, LAYERS))
    stage, count = node.engine.stages[0], PROBE_MOST_STEPS + 1 - len(PROMPT)
    stage.info = replace(stage.info, kv_tokens=PROBE_MOST_STEPS + 1)
    await until_a_probe_runs(node)
    await trio.sleep(0.15)  # in its second step
    before, began_s = len(probes(node)), trio.current_time()
    assert before == 2
    assert await lab.ask("a", ("a", 0, LAYERS), count=count) == answer(count)
    assert trio.current_time() - began_s <= 0.1 * (count + 1)
    assert len(probes(node)) == before


@in_a_lab
async def test_no_step_is_timed_while_a_sequence_is_open(lab: Lab) -> None:
    node = await lab.join("a", step_s=1.0)
    await lab.start(a=(0, LAYERS))
    assert await lab.ask("a", ("a", 0, LAYERS), count=30) == answer(30)
    assert probes(node) == []
    await trio.sleep(EVERY_S - 10)
    assert probes(node) == [], "steps in service tell more than a probe"


@in_a_lab
async def test_a_slow_down_while_nobody_asks_is_noticed(lab: Lab) -> None:
    node = await lab.join("a", step_s=0.01)
    await lab.start(a=(0, LAYERS))
    await lab.ask("a", ("a", 0, LAYERS), count=30)
    told_ms = layer_ms(node)
    node.engine.step_s = 0.04
    await trio.sleep(EVERY_S + PROBED_S)
    assert layer_ms(node) > 3 * told_ms
    await lab.ask("a", ("a", 0, LAYERS), count=30)
    node.engine.step_s = 0.01
    await lab.ask("a", ("a", 0, LAYERS), count=100)
    assert layer_ms(node) < 2 * told_ms, "steps in service win"


@in_a_lab
async def test_nodes_of_one_machine_take_turns_and_time_anew_when_another_one_comes(lab: Lab) -> None:
    nodes = [await join_machine(lab, name) for name in "ab"]
    await lab.start(a=(0, 3), b=(3, 6))
    together = 0
    with trio.move_on_after(2 * PROBED_S + TURN_S):
        while True:
            together += all(SESSION in node.engine.stages[0].sequences for node in nodes)
            await trio.sleep(0.01)
    assert together == 0
    before = [len(probes(node)) for node in nodes]
    assert all(before)
    nodes.append(await join_machine(lab, "c"))
    lab.plan(a=(0, 3), b=(3, 6), c=(3, 6))
    await trio.sleep(LOAD_S + SETTLE_S + PROBED_S + 3 * TURN_S)
    assert all(len(probes(node)) > count for node, count in zip(nodes, [*before, 0], strict=True))


@pytest.mark.parametrize("refusal", [OutOfKV(9, 0), EngineError("the stage is closed")])
def test_a_refused_probe_harms_nothing_and_is_tried_again(refusal: EngineError) -> None:
    @in_a_lab
    async def story(lab: Lab) -> None:
        node = await lab.join("a", step_s=0.01)
        await lab.start(a=(0, LAYERS))
        node.engine.refuse_next(refusal)
        await trio.sleep(PROBED_S)
        assert node.pipeline.stage.times.layer() == AT_LOADING
        await trio.sleep(SETTLE_S + PROBED_S)
        assert layer_ms(node) > LAYER_MS
        assert await lab.ask("a", ("a", 0, LAYERS)) == answer()

    story()


@in_a_lab
async def test_a_range_that_closes_in_the_middle_ends_the_probe_alone(lab: Lab) -> None:
    node = await lab.join("a", step_s=0.06)
    lab.plan(a=(0, LAYERS))
    await until_a_probe_runs(node)
    await node.engine.stages[0].drop()
    await trio.sleep(1.0)
    assert node.pipeline.stage.times.layer() == AT_LOADING
    assert node.pipeline.stage.idle


@in_a_lab
async def test_a_worker_that_dies_in_the_middle_is_started_again(lab: Lab) -> None:
    node = await lab.join("a", step_s=0.06)
    await lab.start(a=(0, LAYERS))
    await until_a_probe_runs(node)
    node.engine.die()
    await trio.sleep(0.1)
    node.engine.died = trio.Event()
    node.engine.stages.clear()
    await trio.sleep(2 * LOAD_S + SETTLE_S + PROBED_S)
    assert node.serves == (0, LAYERS)
    assert layer_ms(node) == pytest.approx(60.0 * (1 - HEAD_SHARE) / LAYERS)
