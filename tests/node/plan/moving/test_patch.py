"""Layers that nobody holds any more go where the fewest bytes have to be loaded."""

from __future__ import annotations

import itertools
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import DoesNotFit
from node.plan import allocate, replan
from node.plan.machines.pool import Links, Pool, PoolNode
from node.plan.moving.fewest_bytes import patched
from node.plan.moving.node_layers import bytes_of, weights_of
from node.plan.placement.allocation import Allocation, Stage
from node.plan.routing.router import uncovered
from tests.fakes.pools import small_model

LINKS = Links()
MIB = 1024**2
LAYER_MIB = 64


def laid_out(nodes: dict[str, float], layers: int, *stages: Stage) -> tuple[Allocation, dict[str, PoolNode]]:
    """A plan with these stages, on nodes that have room for so many layers."""
    model = small_model(layers, LAYER_MIB)
    pool = {name: PoolNode(name, int(room * (LAYER_MIB + 3) * MIB), 1e11, 1e13) for name, room in nodes.items()}
    plan = allocate(model, [replace(node, memory_bytes=10**12) for node in pool.values()], LINKS, "latency")
    line = replace(plan.pipelines[0], stages=stages)
    return replace(plan, pipelines=(line,), replicas=(), standby=()), pool


def kept(plan: Allocation, names: str) -> list[Stage]:
    return [stage for stage in plan.stages() if stage.node_id in names]


def ranges(stages: list[Stage]) -> dict[str, tuple[int, int]]:
    return {stage.node_id: (stage.start, stage.end) for stage in stages}


def test_a_neighbour_reaches_over_what_another_holds_when_that_loads_least() -> None:
    stages = Stage("gone", 0, 1), Stage("full", 1, 2), Stage("roomy", 2, 4), Stage("last", 4, 6)
    plan, nodes = laid_out({"gone": 2, "full": 1, "roomy": 7, "last": 3}, 6, *stages)
    here = [nodes[name] for name in ("full", "roomy", "last")]
    found = ranges(patched(plan, kept(plan, "full roomy last"), Pool(tuple(here), LINKS)))
    assert found == {"full": (1, 2), "roomy": (0, 4), "last": (4, 6)}


def test_nodes_move_up_where_nobody_alone_has_room() -> None:
    stages = Stage("a", 0, 2), Stage("gone", 2, 3), Stage("b", 3, 5), Stage("c", 5, 6)
    plan, nodes = laid_out({"a": 3, "gone": 2, "b": 2.5, "c": 3.2}, 6, *stages)
    here = [nodes[name] for name in "abc"]
    found = patched(plan, kept(plan, "abc"), Pool(tuple(here), LINKS))
    assert ranges(found) == {"a": (0, 2), "b": (2, 4), "c": (4, 6)}


def test_layers_that_a_node_has_already_and_may_not_keep_whole_are_used() -> None:
    plan, nodes = laid_out({"a": 2.6, "b": 9}, 6, Stage("a", 0, 6))
    found = ranges(patched(plan, [], Pool((nodes["a"], nodes["b"]), LINKS)))
    assert found == {"a": (0, 1), "b": (1, 6)}, "a keeps the embedding and what fits beside it"


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0.5, 6.0), min_size=2, max_size=6), st.integers(3, 12), st.integers(1, 3), st.data())
def test_a_patch_never_overfills_a_node_of_a_model_whose_first_layers_are_small(
    room: list[float], layers: int, dense: int, data: st.DataObject
) -> None:
    model = replace(
        small_model(layers, 8), experts=8, top_k=2, expert_params=4 * MIB, dense_layers=min(dense, layers - 1)
    )
    nodes = [PoolNode(f"n{i}", int(size * model.sparse_layer_bytes), 1e11, 1e13) for i, size in enumerate(room)]
    try:
        plan = allocate(model, nodes, LINKS, "latency")
    except DoesNotFit:
        return
    here = [node for node in nodes if data.draw(st.booleans())]
    context = min(plan.workload.context, model.context_tokens)
    for stage in replan(plan, Pool(tuple(here), LINKS)).plan.stages():
        memory = next(node.memory_bytes for node in here if node.node_id == stage.node_id)
        assert bytes_of(model, frozenset(range(stage.start, stage.end)), context) <= memory


rooms = st.lists(st.floats(0.9, 6.0), min_size=2, max_size=4)


@settings(deadline=None, max_examples=60)
@given(rooms, st.integers(2, 5), st.data())
def test_no_layout_that_covers_all_layers_loads_less_than_the_patch(
    room: list[float], layers: int, data: st.DataObject
) -> None:
    model = small_model(layers, LAYER_MIB)
    nodes = [PoolNode(f"n{i}", int(size * (LAYER_MIB + 3) * MIB), 1e11, 1e13) for i, size in enumerate(room)]
    try:
        plan = allocate(model, nodes, LINKS, data.draw(st.sampled_from(["latency", "throughput", "balanced"])))
    except DoesNotFit:
        return
    here = [node for node in nodes if data.draw(st.booleans())]
    names = {node.node_id for node in here}
    stays = [stage for stage in plan.stages() if stage.node_id in names]
    found = patched(plan, stays, Pool(tuple(here), LINKS))
    before = {s.node_id: frozenset(range(s.start, s.end)) for s in stays}

    def to_load(name: str, span: frozenset[int]) -> int:
        return weights_of(model, span) - weights_of(model, span & before.get(name, frozenset()))

    context = min(plan.workload.context, model.context_tokens)
    spans = [frozenset(range(a, b)) for a in range(layers) for b in range(a + 1, layers + 1)]
    able = [[None, *(s for s in spans if bytes_of(model, s, context) <= node.memory_bytes)] for node in here]
    least: int | None = None
    for choice in itertools.product(*able):
        layout = {node.node_id: span for node, span in zip(here, choice, strict=True) if span is not None}
        whole = frozenset().union(*layout.values()) == frozenset(range(layers))
        loads = sum(to_load(name, span) for name, span in layout.items())
        least = loads if whole and (least is None or loads < least) else least
    if least is None:
        assert uncovered(layers, found) is not None
        return
    assert uncovered(layers, found) is None
    assert sum(to_load(s.node_id, frozenset(range(s.start, s.end))) for s in found) == least


def test_what_can_be_patched_is_not_planned_anew_for_less_than_a_fifth() -> None:
    stages = Stage("gone", 0, 1), Stage("full", 1, 2), Stage("roomy", 2, 4), Stage("last", 4, 6)
    plan, nodes = laid_out({"gone": 2, "full": 1, "roomy": 7, "last": 3}, 6, *stages)
    delta = replan(plan, Pool(tuple(nodes[name] for name in ("full", "roomy", "last")), LINKS))
    assert delta.uncovered is None
    assert delta.anew == ("better" in delta.reason)
