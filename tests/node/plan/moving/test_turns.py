"""Who loads and who drops when, with every node acting by itself on what the others' records say."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as changed

from node.plan.moving.node_layers import NodeLayers, holdings_of, kept_layers, weights_of
from node.plan.moving.order import layers_of, left_out, ordered_steps
from node.plan.moving.whose_turn import Turns, turns
from node.plan.placement.allocation import Stage
from node.wire.ids import NodeId
from node.wire.models import ModelFacts, ModelRef
from node.wire.plans import Assignment, Override, Plan, PlanSettings
from node.wire.records import Hardware, HeldRange, NodeRecord
from tests.fakes.pools import small_model

LAYERS = 12
MODEL = small_model(LAYERS, layer_mib=1, vocab=256)
MIB = MODEL.layer_bytes


def layers(start: int, end: int) -> frozenset[int]:
    return frozenset(range(start, end))


def node(name: str, held: tuple[int, int] | None, wanted: tuple[int, int] | None, room: int) -> NodeLayers:
    """One that has memory for `room` layers."""
    own = layers(*held) if held else layers(0, 0)
    return NodeLayers(name, own, layers(*wanted) if wanted else layers(0, 0), room * MIB + 2 * MODEL.embedding_bytes)


def tight(name: str, held: tuple[int, int], wanted: tuple[int, int], room: int) -> NodeLayers:
    """One that has memory for `room` layers and for no end of the model."""
    return NodeLayers(name, layers(*held), layers(*wanted), room * MIB)


def test_who_has_room_for_both_loads_and_drops_nothing() -> None:
    swap = [node("a", (0, 6), (6, 12), 12), node("b", (6, 12), (0, 6), 12)]
    assert turns(MODEL, swap, 0) == Turns(loads={"a": layers(6, 12), "b": layers(0, 6)})


def test_of_two_that_lack_room_one_makes_a_start() -> None:
    swap = [node("b", (6, 12), (0, 6), 6), node("a", (0, 6), (6, 12), 6)]
    assert turns(MODEL, swap, 0) == Turns(drops={"a": layers(0, 6)})
    begun = [swap[0], replace(swap[1], held=layers(0, 0), loading=True)]
    assert turns(MODEL, begun, 0) == Turns(loads={"a": frozenset()}), "a loads: b keeps what nobody else has"
    done = [swap[0], replace(swap[1], held=layers(6, 12))]
    assert turns(MODEL, done, 0) == Turns(drops={"b": layers(6, 12)})


def test_who_lacks_room_drops_no_more_of_what_nobody_else_has_than_it_must() -> None:
    pool = [tight("a", (1, 7), (7, 10), 6), tight("b", (7, 11), (1, 5), 4)]
    assert turns(MODEL, pool, 0) == Turns(drops={"a": layers(1, 4)})


def test_what_no_node_holds_on_the_way_is_foretold() -> None:
    before, after = [Stage("a", 1, 4), Stage("b", 4, 7)], [Stage("a", 4, 7), Stage("b", 1, 4)]
    for room, out in ((3, [(1, 4)]), (4, [])):
        steps = ordered_steps(MODEL, before, after, {"a": room * MIB, "b": 3 * MIB}, 0)
        assert left_out(before, steps) == out


def test_who_only_lets_go_needs_no_room() -> None:
    pool = [node("a", (0, 6), (3, 6), 4), node("b", None, (0, 3), 12)]
    assert turns(MODEL, pool, 0) == Turns(loads={"b": layers(0, 3)})


def test_layers_that_another_keeps_may_go_while_others_still_load() -> None:
    pool = [node("a", (0, 4), (4, 8), 4), node("b", (0, 8), (0, 8), 12), node("c", None, (8, 12), 12)]
    assert turns(MODEL, pool, 0) == Turns(loads={"c": layers(8, 12)}, drops={"a": layers(0, 4)})


def test_what_only_a_drainer_holds_is_not_counted_on() -> None:
    pool = [node("a", (0, 4), (4, 8), 4), node("b", (0, 4), None, 4), node("c", None, (0, 4), 4)]
    assert turns(MODEL, pool, 0).drops == {}, "c will have them in a moment"


def test_one_that_failed_holds_up_nobody() -> None:
    pool = [node("a", (0, 6), (6, 12), 6), replace(node("b", (6, 12), (0, 6), 6), awaited=False, keeps=False)]
    assert turns(MODEL, pool, 0) == Turns(drops={"a": layers(0, 6)})


def test_room_for_one_layer_is_enough_to_swap_without_leaving_any_out() -> None:
    swap = [node("a", (0, 6), (6, 12), 7), node("b", (6, 12), (0, 6), 6)]
    first = turns(MODEL, swap, 0)
    assert first == Turns(loads={"a": layers(6, 7)}), "next to what it holds"
    swap[0] = replace(swap[0], held=layers(0, 7))
    assert turns(MODEL, swap, 0) == Turns(drops={"b": layers(6, 7)})


def test_room_does_not_go_first_where_it_does_not_come_back_from() -> None:
    swap = [tight("a", (1, 5), (6, 11), 5), tight("b", (7, 11), (1, 5), 4)]
    pool = [*swap, tight("c", (6, 7), (5, 6), 1), tight("d", (5, 6), (5, 6), 1)]
    assert turns(MODEL, pool, 0) == Turns(loads={"a": layers(7, 8)}), "c has nothing for the others, b has"


def test_what_nobody_holds_is_loaded_as_far_as_there_is_room_for_it() -> None:
    pool = [node("a", (0, 4), (3, 8), 6), node("b", (8, 12), (0, 3), 4)]
    assert turns(MODEL, pool, 0) == Turns(loads={"a": layers(4, 6)})


def test_a_tied_embedding_is_counted_once() -> None:
    tied = replace(MODEL, tied=True)
    assert weights_of(tied, layers(0, LAYERS)) == tied.total_bytes
    assert weights_of(tied, {0, LAYERS - 1}) == 2 * MIB + tied.embedding_bytes
    small = NodeLayers("a", layers(0, 1), layers(LAYERS - 1, LAYERS), 2 * MIB + tied.embedding_bytes)
    assert small.can_finish(tied, 0)
    assert not small.can_finish(MODEL, 0)


def test_dense_layers_count_with_their_own_size() -> None:
    mixture = replace(MODEL, experts=4, top_k=1, expert_params=1_000_000, dense_layers=2)
    assert weights_of(mixture, {1, 2}) == mixture.dense_layer_bytes + mixture.sparse_layer_bytes


ranges = st.tuples(st.integers(0, LAYERS - 1), st.integers(1, LAYERS)).filter(lambda r: r[0] < r[1])
rows = st.lists(st.tuples(st.none() | ranges, st.none() | ranges, st.integers(1, LAYERS + 4)), min_size=1, max_size=6)


def play(pool: dict[str, NodeLayers], chance: random.Random, told: set[str] | None = None) -> set[int]:
    """Every node acts when chance has it until none can any more; layers that were covered and at some time were not.

    `told` have the plan already; the others hear of it some time.
    """
    told = set(pool) if told is None else told
    covered = frozenset[int]().union(*(h.held for h in pool.values()))
    lost: set[int] = set()
    at_it: dict[str, frozenset[int]] = {}
    while True:
        seen = list(pool.values())
        due, kept = turns(MODEL, seen, 0), kept_layers(seen)
        doers = {n for n in told if pool[n].awaited}
        moves = [("hears", n) for n in pool if n not in told]
        moves += [("loads" if not pool[n].loading else "has it", n) for n in due.loads if n in doers]
        moves += [("drops", n) for n in due.drops if n in doers]
        moves += [("retires", n) for n in doers if pool[n].surplus & kept and not pool[n].missing]
        if not moves:
            return lost
        move, name = chance.choice(sorted(moves))
        mine = pool[name]
        match move:
            case "hears":
                told.add(name)
                pool[name] = replace(mine, keeps=True)
            case "loads":
                at_it[name] = due.loads[name]
                pool[name] = replace(mine, loading=True)
            case "has it":
                pool[name] = replace(mine, loading=False, held=mine.held | at_it.pop(name))
            case "drops":
                pool[name] = replace(mine, held=mine.held - due.drops[name])
            case "retires":
                pool[name] = replace(mine, held=mine.held - (mine.surplus & kept))
        lost |= covered - frozenset[int]().union(*(h.held for h in pool.values()))


@given(rows, st.integers(0, 2**32), st.integers(0, 5))
def test_in_any_order_of_events_everybody_arrives_and_no_more_is_uncovered_than_foretold(
    figures: list[tuple[tuple[int, int] | None, tuple[int, int] | None, int]], seed: int, late: int
) -> None:
    before = [Stage(f"n{i}", *held) for i, (held, _, _) in enumerate(figures) if held]
    after = [Stage(f"n{i}", *wanted) for i, (_, wanted, _) in enumerate(figures) if wanted]
    pool = {f"n{i}": node(f"n{i}", *row) for i, row in enumerate(figures)}
    memory = {name: holding.memory_bytes for name, holding in pool.items()}
    foretold: set[int] = set()
    state = {name: set(held) for name, held in layers_of(before).items()}
    covered = set[int]().union(*state.values()) if state else set()
    for step in ordered_steps(MODEL, before, after, memory, 0):
        span = set(range(step.start, step.end))
        mine = state.setdefault(step.node_id, set())
        state[step.node_id] = mine | span if step.kind == "load" else mine - span
        foretold |= covered - set[int]().union(*state.values())
    told = set(list(pool)[late:])
    pool |= {name: replace(pool[name], keeps=False) for name in pool if name not in told}

    lost = play(pool, random.Random(seed), told)

    assert lost <= foretold
    assert all(not holding.missing for holding in pool.values())
    kept = kept_layers(pool.values())
    assert all(not holding.surplus & kept for holding in pool.values()), "what others keep is dropped in the end"


@given(rows, st.integers(0, 2**32), st.data())
def test_members_that_do_nothing_keep_nobody_else_from_arriving(
    figures: list[tuple[tuple[int, int] | None, tuple[int, int] | None, int]], seed: int, data: st.DataObject
) -> None:
    pool = {f"n{i}": node(f"n{i}", *row) for i, row in enumerate(figures)}
    idle = data.draw(st.sets(st.sampled_from(sorted(pool))))
    pool |= {name: replace(pool[name], awaited=False, keeps=False) for name in idle}
    play(pool, random.Random(seed))
    assert all(not holding.missing for name, holding in pool.items() if name not in idle)


swaps = (
    st.sets(st.integers(1, LAYERS - 1), min_size=4, max_size=4).map(sorted).map(lambda e: ((e[0], e[1]), (e[2], e[3])))
)


@given(swaps, st.integers(1, 3), st.booleans(), st.integers(0, 2**32))
def test_two_that_swap_leave_no_layer_out_while_one_has_room_for_one_more(
    spans: tuple[tuple[int, int], tuple[int, int]], more: int, first: bool, seed: int
) -> None:
    left, right = spans
    most = max(left[1] - left[0], right[1] - right[0])
    rooms = (most + more, most) if first else (most, most + more)
    pool = {"a": tight("a", left, right, rooms[0]), "b": tight("b", right, left, rooms[1])}
    before, after = [Stage("a", *left), Stage("b", *right)], [Stage("a", *right), Stage("b", *left)]
    memory = {name: holding.memory_bytes for name, holding in pool.items()}
    assert left_out(before, ordered_steps(MODEL, before, after, memory, 0)) == []
    assert play(pool, random.Random(seed)) == set()
    assert all(not holding.missing for holding in pool.values())


FACTS = ModelFacts(LAYERS, MIB, MIB, MIB, 8, 4, 251, 4096)
PLAN = Plan(
    3,
    "a",
    ModelRef("toy", "test", "toy"),
    "float32",
    FACTS,
    (Assignment("a", 0, 6), Assignment("b", 6, 12)),
    settings=PlanSettings(overrides=(Override("b", memory_bytes=5 * MIB),)),
)
RECORD = NodeRecord(
    "a", "ada", 1, 5.0, "desk", (), "fake", hardware=Hardware("cpu", "toy", 100 * MIB, 1e9, 1e9, 1), plan_epoch=3
)


def holding_of(record: NodeRecord, silent: set[str] | None = None) -> NodeLayers:
    records = {NodeId(record.node_id): record}
    return holdings_of(PLAN, records, silent or ())[0]


def test_a_record_tells_what_a_node_holds_and_whether_to_wait_for_it() -> None:
    ours, other = PLAN.weights, "another model"
    held = (
        HeldRange(0, 2, "draining", 1, ours),
        HeldRange(2, 4, "ready", 2, other),
        HeldRange(4, 6, "ready", 2, ours),
        HeldRange(6, 12, "loading", 3, ours),
    )
    ada = holding_of(changed(RECORD, held=held))
    assert (ada.held, ada.wanted) == (layers(0, 2) | layers(4, 6), layers(0, 6))
    assert (ada.loading, ada.awaited, ada.keeps) == (True, True, True)
    assert not holding_of(RECORD, {"a"}).awaited
    failed = holding_of(changed(RECORD, held=held, state="failed"))
    assert (failed.loading, failed.awaited, failed.keeps, failed.held) == (False, False, False, ada.held)
    assert not holding_of(changed(RECORD, hardware=None)).awaited
    assert not holding_of(changed(RECORD, plan_epoch=2)).keeps


def test_a_cap_from_the_plan_binds() -> None:
    assert holding_of(changed(RECORD, node_id="b")).memory_bytes == 5 * MIB
    assert holding_of(RECORD).memory_bytes == 70 * MIB
