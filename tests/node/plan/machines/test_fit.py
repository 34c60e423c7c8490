"""Whether a model fits, and how much memory one more machine would need: exactly, not about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import DoesNotFit, amount
from node.plan import allocate
from node.plan.costs.presets import preset
from node.plan.machines.pool import Links, PoolNode
from node.plan.placement.allocate import DEFAULT_WORKLOAD
from node.plan.placement.allocation import Objective
from tests.fakes.pools import GIB, machine, mixture, small_model

OBJECTIVES: tuple[Objective, ...] = ("balanced", "latency", "throughput", "share")


def missing(wanted: object, memories: list[int], objective: Objective, speeds: Sequence[float] = (4e11,)) -> int:
    model = preset(wanted) if isinstance(wanted, str) else wanted
    nodes = [
        PoolNode(f"n{i:02}", memory, speed, 25 * speed)
        for i, (memory, speed) in enumerate(zip(memories, cycle(speeds)))
    ]
    try:
        plan = allocate(model, nodes, Links(), objective)  # type: ignore[arg-type]
    except DoesNotFit as error:
        return max(1, error.missing_bytes)
    assert plan.pipelines
    return 0


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 3 * GIB), min_size=1, max_size=6),
    st.sampled_from(OBJECTIVES),
    st.sampled_from([small_model(12), replace(small_model(12), tied=True), mixture(2)]),
    st.lists(st.floats(1e9, 3e12), min_size=1, max_size=3),
)
def test_what_is_missing_is_exactly_what_one_more_machine_must_have(
    memories: list[int], objective: Objective, model: object, speeds: list[float]
) -> None:
    if short := missing(model, memories, objective, speeds):
        assert missing(model, [*memories, short], objective, speeds) == 0
        assert missing(model, [*memories, short - 1], objective, speeds) > 0


@settings(max_examples=100)
@given(st.lists(st.floats(0.1, 2.0), min_size=1, max_size=5), st.integers(1, 5), st.sampled_from(OBJECTIVES))
def test_machines_that_could_hold_a_middle_and_no_end_are_counted_too(
    shares: list[float], layers: int, objective: Objective
) -> None:
    model = small_model(layers)
    memories = [int(share * model.total_bytes / len(shares)) for share in shares]
    if short := missing(model, memories, objective):
        assert missing(model, [*memories, short], objective) == 0
        assert missing(model, [*memories, short - 1], objective) > 0


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("gib", [12.1, 12.3, 12.5, 12.7])
def test_a_slow_machine_lends_its_memory_where_it_is_needed(objective: Objective, gib: float) -> None:
    assert missing("gpt-oss-20b", [int(gib * GIB), 2 * GIB], objective, [3e12, 3e10]) == 0


@pytest.mark.parametrize("name", ["glm-4.6", "deepseek-v3", "kimi-k2", "llama-3.3-70b", "minimax-m2", "gpt-oss-120b"])
def test_a_machine_that_holds_a_models_weights_and_cache_holds_the_model(name: str) -> None:
    model = preset(name)
    assert model is not None
    cache = model.layers * model.kv_layer_bytes(min(DEFAULT_WORKLOAD.context, model.context_tokens))
    for objective in ("balanced", "latency", "throughput"):
        assert missing(name, [model.total_bytes + cache], objective) == 0
        assert missing(name, [model.total_bytes + cache - GIB], objective) > 0


@pytest.mark.parametrize(("first", "second"), [(64, 24), (24, 64), (100, 20)])
def test_what_the_sentence_says_is_enough(first: int, second: int) -> None:
    for objective in OBJECTIVES:
        short = missing("llama-3.3-70b", [first * GIB, second * GIB], objective)
        told, unit = amount(short).split()
        assert unit == "GiB"
        assert missing("llama-3.3-70b", [first * GIB, second * GIB, round(float(told) * GIB)], objective) == 0


def test_an_amount_is_never_told_as_nothing() -> None:
    assert amount(1) == "0.01 MiB"
    assert amount(GIB) == "1.00 GiB"
    assert amount(GIB + 1) == "1.01 GiB"


def test_a_large_pool_that_can_hold_a_model_does_wherever_its_nodes_are() -> None:
    nodes = [replace(machine(i, "D", f"far {i}"), memory_bytes=(1 + i % 5) * GIB + i) for i in range(40)]
    model = small_model(40, layer_mib=900)
    assert allocate(model, nodes, Links()).pipelines
