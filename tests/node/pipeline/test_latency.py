"""A node tells of its decode steps from loading on, of layers and head apart, and never a figure that cannot be."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.engine.base import BatchResult, StageInfo
from node.pipeline.latency import StepTimes
from node.wire.records import LayerLatency


def loaded(layer_ms: float | None = 2.0, head_ms: float | None = None) -> StageInfo:
    return StageInfo(100, 10, 5, 0.5, 576, "float32", layer_ms, head_ms)


def step(compute_ms: float, head_ms: float = 0.0) -> BatchResult:
    return BatchResult(b"", (), compute_ms, head_ms)


def test_nothing_is_told_before_a_range_was_loaded() -> None:
    times = StepTimes()
    assert (times.layer(), times.head_ms, times.overhead_ms) == (None, None, None)


def test_what_was_measured_at_loading_is_told_at_once() -> None:
    times = StepTimes()
    times.loaded(loaded(2.0, head_ms=5.0), "smol")
    assert times.layer() == LayerLatency(2.0, 2.0, 2.0)
    assert times.head_ms == 5.0


def test_steps_tell_layers_head_and_overhead_apart() -> None:
    times = StepTimes()
    times.loaded(loaded(9.0, head_ms=9.0), "smol")
    for _ in range(99):
        times.add(10, step(25.0, head_ms=5.0), overhead_ms=0.75)
    layer = times.layer()
    assert layer is not None
    assert layer.p50_ms == 2.0
    assert 2.0 < layer.mean_ms < 2.1
    assert (times.head_ms, times.overhead_ms) == (5.0, 0.75)


def test_another_range_of_the_model_keeps_the_heads_time_and_another_model_does_not() -> None:
    times = StepTimes()
    times.loaded(loaded(2.0, head_ms=5.0), "smol")
    times.loaded(loaded(3.0), "smol")
    assert times.layer() == LayerLatency(3.0, 3.0, 3.0)
    assert times.head_ms == 5.0
    times.loaded(loaded(None), "other")
    assert (times.layer(), times.head_ms) == (None, None)


def test_how_many_sequences_shared_a_step_is_told() -> None:
    times = StepTimes()
    for sequences in (1, 3, 4, 4):
        times.add(1, step(1.0), 0.0, sequences)
    assert times.layer() == LayerLatency(1.0, 1.0, 1.0, 3)
    times.renew(1, [(step(2.0), 0.0)])
    assert times.layer() == LayerLatency(2.0, 2.0, 2.0, 1)


def test_a_node_that_slows_down_is_told_of_soon() -> None:
    times = StepTimes()
    for _ in range(1000):
        times.add(1, step(1.0), 0.0)
    for _ in range(70):
        times.add(1, step(4.0), 0.0)
    layer = times.layer()
    assert layer is not None
    assert layer.p50_ms == 4.0


def test_steps_timed_while_idle_replace_all_older_ones_by_their_median() -> None:
    times = StepTimes()
    times.loaded(loaded(9.0, head_ms=9.0), "smol")
    for _ in range(1000):
        times.add(10, step(95.0, head_ms=5.0), overhead_ms=3.0)
    times.renew(
        10, [(step(25.0, head_ms=5.0), 0.5), (step(400.0, head_ms=300.0), 80.0), (step(24.0, head_ms=4.0), 0.25)]
    )
    assert times.layer() == LayerLatency(2.0, 2.0, 2.0)
    assert (times.head_ms, times.overhead_ms, times.in_service) == (5.0, 0.5, 1000)


def test_steps_timed_without_the_head_keep_its_time_and_garbage_replaces_nothing() -> None:
    times = StepTimes()
    times.loaded(loaded(2.0, head_ms=5.0), "smol")
    times.renew(10, [(step(math.nan), math.nan)])
    assert (times.layer(), times.head_ms) == (LayerLatency(2.0, 2.0, 2.0), 5.0)
    times.renew(10, [(step(30.0), 1.0)])
    assert (times.layer(), times.head_ms, times.overhead_ms) == (LayerLatency(3.0, 3.0, 3.0), 5.0, 1.0)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, -1.0, 1e300])
def test_figures_that_cannot_be_are_not_taken_in(garbage: float) -> None:
    times = StepTimes()
    times.loaded(loaded(garbage, head_ms=garbage), "smol")
    times.add(1, step(garbage, head_ms=0.0), overhead_ms=garbage)
    times.add(1, step(1.0, head_ms=garbage), overhead_ms=garbage)
    assert (times.layer(), times.head_ms, times.overhead_ms) == (None, None, None)


@given(st.lists(st.tuples(st.floats(), st.floats(), st.floats())))
def test_whatever_an_engine_answers_fits_into_a_record(steps: list[tuple[float, float, float]]) -> None:
    times = StepTimes()
    for compute_ms, head_ms, overhead_ms in steps:
        times.add(3, step(compute_ms, head_ms), overhead_ms)
    layer = times.layer()
    figures = [times.head_ms, times.overhead_ms, *((layer.mean_ms, layer.p50_ms, layer.p95_ms) if layer else ())]
    assert all(figure is None or 0 <= figure <= 1e9 for figure in figures)


def test_a_long_chunk_tells_what_a_row_takes_in_a_layer_and_a_short_one_tells_nothing() -> None:
    times = StepTimes()
    times.loaded(loaded(2.0), "smol")
    times.add_prompt(10, 8, step(25.0))
    assert times.prompt_row_ms is None
    for _ in range(3):
        times.add_prompt(10, 128, step(69.0, head_ms=5.0))
    times.add_prompt(10, 128, step(math.nan))
    assert times.prompt_row_ms == pytest.approx(0.05)
    times.loaded(loaded(2.0), "other")
    assert times.prompt_row_ms is None
