"""What records offer to a request: which ranges serve, with which times, load and room."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from node.errors import NoRoute
from node.plan.costs.model import cost_of_plan
from node.plan.live.offers import NONE_UNTOLD, Offer, Untold, in_service, offer_of
from node.plan.machines.pool import Links
from node.plan.routing.router import Host, route
from node.wire.models import ModelFacts
from node.wire.plans import Plan
from node.wire.records import Hardware, HeldRange, LayerLatency, NodeRecord
from tests.node.plan.live.test_decide import MODEL, record

MIB = 1024**2
LAYERS = 6
PLAN = Plan(1, "a", MODEL, "float32", ModelFacts(LAYERS, 10 * MIB, MIB, MIB, 64, 64, 1000, 4096), ())
COST, WEIGHTS = cost_of_plan(PLAN), PLAN.weights

Held = tuple[int, int, Literal["loading", "ready", "draining"]]


def holding(node_id: str, *ranges: Held, **changes: Any) -> NodeRecord:
    return record(
        node_id, held=tuple(HeldRange(start, end, state, 1, WEIGHTS) for start, end, state in ranges), **changes
    )


def host_of(told: NodeRecord, untold: Untold = NONE_UNTOLD) -> Host:
    (host,) = offer_of(told, "serve", COST, WEIGHTS, untold).ready
    return host


def routed(*records: NodeRecord, **duties: Literal["serve", "drain", "exclude"]) -> list[tuple[str, int, int]]:
    offers = [offer_of(each, duties.get(each.node_id, "serve"), COST, WEIGHTS) for each in records]
    found = route(LAYERS, in_service(LAYERS, offers), Links(near_ms=1.0))
    return [(stage.node_id, stage.start, stage.end) for stage in found.stages]


def test_ranges_that_tile_are_used_in_order() -> None:
    assert routed(holding("b", (2, 6, "ready")), holding("a", (0, 2, "ready"))) == [("a", 0, 2), ("b", 2, 6)]


def test_of_overlapping_ranges_one_is_used_in_part() -> None:
    chain = routed(holding("a", (0, 4, "ready")), holding("b", (2, 6, "ready")))
    assert chain in ([("a", 0, 4), ("b", 4, 6)], [("a", 0, 2), ("b", 2, 6)])


def test_fewest_stages_win_among_alike_and_then_the_idle_node() -> None:
    whole, busy = holding("z", (0, 6, "ready")), holding("a", (0, 6, "ready"), load=3.0)
    assert routed(holding("a", (0, 3, "ready")), holding("b", (3, 6, "ready")), whole) == [("z", 0, 6)]
    assert routed(busy, whole) == [("z", 0, 6)]


def test_ranges_of_another_model_or_in_a_state_that_is_not_known_here_cover_nothing() -> None:
    foreign = record("a", held=(HeldRange(0, 6, "ready", 1, "another model"),))
    untold = record("b", held=(HeldRange(0, 6, "ready", 1),))
    newer = record("c", held=(HeldRange(0, 6, "half-asleep", 1, WEIGHTS),))
    with pytest.raises(NoRoute, match="layers 0–5"):
        routed(foreign, untold, newer)
    assert routed(foreign, untold, newer, holding("d", (0, 6, "ready"))) == [("d", 0, 6)]


def test_a_range_that_is_not_there_yet_is_not_used() -> None:
    with pytest.raises(NoRoute, match="layers 2–5 of 6"):
        routed(holding("a", (0, 2, "ready")), holding("b", (2, 6, "loading")))


def test_an_outdated_range_serves_until_the_new_ones_are_ready() -> None:
    old_and_new = holding("a", (0, 6, "draining"), (0, 3, "ready"))
    chain = routed(old_and_new, holding("b", (3, 6, "loading")))
    assert {node for node, _, _ in chain} == {"a"}
    assert routed(old_and_new, holding("b", (3, 6, "ready"))) == [("a", 0, 3), ("b", 3, 6)]


def test_the_first_gap_is_named() -> None:
    with pytest.raises(NoRoute, match="layers 0–5 of 6"):
        routed()
    with pytest.raises(NoRoute, match="layers 1–2 of 6"):
        routed(holding("a", (0, 1, "ready")), holding("b", (3, 6, "ready")))


def test_ranges_beyond_the_model_are_ignored() -> None:
    with pytest.raises(NoRoute):
        routed(holding("a", (0, 8, "ready")))
    assert routed(holding("a", (0, 8, "ready")), holding("b", (0, 6, "draining"))) == [("b", 0, 6)]


def test_a_node_that_shall_drain_serves_only_while_it_is_needed() -> None:
    fast, slow = (holding(n, (0, 6, "ready"), layer_latency=LayerLatency(ms, ms, ms)) for n, ms in (("a", 1), ("b", 9)))
    assert routed(fast, slow) == [("a", 0, 6)]
    assert routed(fast, slow, a="drain") == [("b", 0, 6)]
    assert routed(fast, a="drain") == [("a", 0, 6)]


def test_an_excluded_node_gets_nothing_even_where_nobody_else_has_the_layers() -> None:
    assert routed(holding("a", (0, 6, "ready")), holding("b", (0, 6, "draining")), a="exclude") == [("b", 0, 6)]
    with pytest.raises(NoRoute, match="layers 0–5 of 6"):
        routed(holding("a", (0, 6, "ready")), a="exclude")


def test_a_node_to_avoid_does_not_count_as_cover_for_those_that_are_spare() -> None:
    offers = [offer_of(holding("a", (0, 6, "ready")), "serve", COST, WEIGHTS), Offer(spare=(Host("b", 0, 6, 1.0),))]
    assert [host.node_id for host in in_service(LAYERS, offers)] == ["a"]
    assert [host.node_id for host in in_service(LAYERS, offers, {"a"})] == ["a", "b"]


def test_the_measured_time_goes_before_the_predicted_one() -> None:
    predicted = host_of(holding("a", (0, 6, "ready")))
    assert 10 * MIB / 1e9 * 1000 < predicted.layer_ms < 30 * MIB / 1e9 * 1000
    assert host_of(holding("a", (0, 6, "ready"), layer_latency=LayerLatency(4.0, 4.0, 4.0))).layer_ms == 4.0


absurd = [
    {"hardware": None},
    {"hardware": Hardware("cpu", "?", 2**53, 1e18, 1e18, 1)},
    {"hardware": Hardware("cpu", "?", 0, 0.0, 0.0, 1)},
    {"layer_latency": LayerLatency(1e9, 1e9, 1e9)},
    {"layer_latency": LayerLatency(0.0, 0.0, 0.0)},
    {"head_ms": 1e9, "overhead_ms": 1e9},
    {"load": 1e6, "sessions": 2**53, "queue_depth": 2**53},
    {"rtt_ms": {"b": 1e9}},
]


@pytest.mark.parametrize("figures", absurd)
def test_absurd_figures_leave_the_node_usable_and_its_times_finite(figures: dict[str, Any]) -> None:
    told = holding("a", (0, 6, "ready"), **figures)
    host = host_of(told)
    assert 0 < host.layer_ms < 1e6
    assert 0 <= host.overhead_ms < 1e6
    assert routed(told) == [("a", 0, 6)]
    chain = routed(told, holding("b", (0, 6, "ready")))
    assert (chain[0][1], chain[-1][2]) == (0, 6)


def test_load_and_room_count_what_the_record_does_not_tell_yet() -> None:
    told = holding("a", (0, 6, "ready"), load=2.0, kv_tokens_total=1000, kv_tokens_used=300)
    assert (host_of(told).load, host_of(told).kv_free_tokens) == (2, 700)
    more = host_of(told, Untold(1, 200))
    assert (more.load, more.kv_free_tokens) == (3, 500)
    less = host_of(told, Untold(-5, -300))
    assert (less.load, less.kv_free_tokens) == (0, 1000)
    assert {host_of(told).kv_tokens, more.kv_tokens, less.kv_tokens} == {1000}


def test_room_that_was_not_told_is_not_bounded_here() -> None:
    assert host_of(holding("a", (0, 6, "ready"))).kv_free_tokens is None
    old = holding("a", (0, 6, "draining"), kv_tokens_total=10)
    assert [host.kv_free_tokens for host in offer_of(old, "serve", COST, WEIGHTS).spare] == [None]


def test_a_refusal_bounds_the_room_that_is_told_and_that_which_is_not() -> None:
    refused = Untold(refused_tokens=90)
    told = holding("a", (0, 6, "ready"), kv_tokens_total=1000)
    assert (host_of(told, refused).kv_free_tokens, host_of(told, refused).kv_tokens) == (89, 1000)
    assert host_of(told, Untold(1, 950, 90)).kv_free_tokens == 50
    (old,) = offer_of(holding("a", (0, 6, "draining")), "serve", COST, WEIGHTS, refused).spare
    assert (old.kv_free_tokens, old.kv_tokens) == (89, None)
