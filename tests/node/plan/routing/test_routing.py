"""Phase 2: known answers, equality with exhaustive search, load, room and ties."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import BadPool, NoRoom, NoRoute
from node.plan import route, route_disjoint
from node.plan.machines.pool import Links, PoolNode
from node.plan.routing.disjoint import most_disjoint
from node.plan.routing.router import Host, Request, Route, Router, route_or_wait
from tests.fakes.every_chain import cheapest, step_ms, token_ms

TABLE = [
    (6, [("a", 0, 4, 1), ("b", 2, 6, 1)], {("a", "b"): 10}, 26.0),
    (6, [("a", 0, 4, 5), ("b", 2, 6, 1)], {("a", "b"): 10}, 34.0),
    (6, [("a", 0, 4, 1), ("b", 2, 6, 5)], {("a", "b"): 10}, 34.0),
    (6, [("a", 0, 6, 3), ("b", 2, 4, 0.5)], {("a", "b"): 2}, 17.0),
    (12, [("a", 0, 11, 10), ("b", 11, 12, 1), ("c", 0, 6, 6), ("d", 6, 12, 6)], {}, 67.0),
]


def published(rtt: dict[tuple[str, str], float]) -> Links:
    """The published formula charges a whole round trip per hop."""
    return Links(rtt, near_ms=0.0, trips=1.0)


@pytest.mark.parametrize(("layers", "rows", "rtt", "cost"), TABLE)
def test_known_costs(
    layers: int, rows: list[tuple[str, int, int, float]], rtt: dict[tuple[str, str], float], cost: float
) -> None:
    found = route(layers, [Host(*row) for row in rows], published(rtt))
    assert found.step_ms == pytest.approx(cost)
    tiles(found, layers)


def test_known_chains() -> None:
    found = route(6, [Host("a", 0, 6, 3), Host("b", 2, 4, 0.5)], published({("a", "b"): 2}))
    assert [(s.node_id, s.start, s.end) for s in found.stages] == [("a", 0, 2), ("b", 2, 4), ("a", 4, 6)]
    rows = TABLE[4][1]
    found = route(12, [Host(*row) for row in rows], published({}))
    assert [(s.node_id, s.start, s.end) for s in found.stages] == [("c", 0, 6), ("d", 6, 11), ("b", 11, 12)]


def test_uncovered_layers_are_named() -> None:
    with pytest.raises(NoRoute, match="layers 2 of 5"):
        route(5, [Host("a", 0, 2, 1), Host("b", 3, 5, 1)], published({("a", "b"): 1}))
    with pytest.raises(NoRoute, match="layers 0–4 of 5"):
        route(5, [], Links())


def tiles(found: Route, layers: int) -> None:
    assert found.stages[0].start == 0
    assert found.stages[-1].end == layers
    assert all(a.end == b.start and a.node_id != b.node_id for a, b in pairwise(found.stages))


LAYERS = 5
host = st.builds(
    lambda start, width, ms, load, region: (start, min(LAYERS, start + width), ms, region, load),
    st.integers(0, LAYERS - 1),
    st.integers(1, LAYERS),
    st.floats(0.01, 20),
    st.integers(0, 5),
    st.sampled_from(["eu", "us", ""]),
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(host, min_size=1, max_size=5),
    st.dictionaries(st.sampled_from([("n0", "n1"), ("n1", "n2"), ("eu", "us"), ("n3", "n0")]), st.floats(0, 200)),
    st.integers(0, 10**6),
    st.sampled_from([None, "n0", "n9"]),
    st.integers(0, 7),
)
def test_equal_to_exhaustive_search(
    rows: list[tuple[int, int, float, str, int]],
    rtt: dict[tuple[str, str], float],
    hop_bytes: int,
    head: str | None,
    spread: int,
) -> None:
    hosts = [Host(f"n{i}", start, end, ms, region, load) for i, (start, end, ms, region, load) in enumerate(rows)]
    links = Links(rtt)
    at = next((h.region for h in hosts if h.node_id == head), "us")
    request = Request(hop_bytes, 0, PoolNode(head, 0, region=at) if head else None, spread)
    best = cheapest(LAYERS, hosts, links, request)
    if best == float("inf"):
        with pytest.raises(NoRoute):
            route(LAYERS, hosts, links, request)
        return
    found = route(LAYERS, hosts, links, request)
    assert found.token_ms == pytest.approx(best)
    tiles(found, LAYERS)
    assert token_ms(chain_of(found, hosts), links, request) == pytest.approx(best)
    assert step_ms(chain_of(found, hosts), links, request) == pytest.approx(found.step_ms)


def chain_of(found: Route, hosts: Sequence[Host]) -> list[tuple[Host, int]]:
    by_id = {host.node_id: host for host in hosts}
    return [(by_id[stage.node_id], stage.layers) for stage in found.stages]


def test_two_ranges_of_one_node_are_two_stages() -> None:
    """As in the middle of a change; a node runs a stage in one of the ranges that it holds, never across two."""
    rows = [("a", 0, 4, 1.0), ("a", 3, 6, 1.0), ("b", 5, 8, 1.0)]
    found = route(8, [Host(*row) for row in rows], Links())
    assert all(
        any(node == s.node_id and start <= s.start and s.end <= end for node, start, end, _ in rows)
        for s in found.stages
    )
    assert [s.node_id for s in found.stages] == ["a", "a", "b"]


def test_load_turns_requests_away_at_once_and_they_return_at_once() -> None:
    def chosen(load: float) -> tuple[str, ...]:
        hosts = [Host("a", 0, 4, 1.0, load=load), Host("b", 0, 4, 1.2)]
        return route(4, hosts, Links()).nodes

    assert chosen(0) == ("a",)
    assert chosen(1) == ("b",)
    assert chosen(0) == ("a",)
    assert route(4, [Host("a", 0, 4, 1.0, load=1000.0)], Links()).token_ms < float("inf")


@pytest.mark.parametrize("seed", range(6))
def test_no_node_hands_a_long_prompt_over_to_itself(seed: int) -> None:
    chance = random.Random(seed)
    rows = [("a", 12, 24, 1.0), ("b", 24, 36, 0.7), ("c", 0, 12, 1.1), ("d", 24, 30, 0.4), ("e", 30, 36, 0.4)]
    rows += [("f", 12, 18, 0.1), ("g", 18, 22, 0.1), ("h", 22, 26, 0.1), ("i", 0, 3, 0.0)]
    hosts = [
        Host(name, start, end, chance.uniform(0.06, 0.12), load=load, chunk_layer_ms=chance.uniform(1.5, 3.5))
        for name, start, end, load in rows
    ]
    for prompt in (282, 322, 440):
        found = route(36, hosts, Links(near_ms=1.0), Request(5760.0, prompt_tokens=prompt, output_tokens=72)).nodes
        assert all(a != b for a, b in pairwise(found))


def test_room_in_the_cache_is_a_condition() -> None:
    hosts = [Host("a", 0, 4, 1.0, kv_free_tokens=100), Host("b", 0, 4, 5.0, kv_free_tokens=1000)]
    assert route(4, hosts, Links(), Request(kv_tokens=50)).nodes == ("a",)
    assert route(4, hosts, Links(), Request(kv_tokens=500)).nodes == ("b",)
    with pytest.raises(NoRoom, match=r"layers 0–3 of 4 .* without KV room for 5000"):
        route(4, hosts, Links(), Request(kv_tokens=5000))
    with pytest.raises(NoRoute, match="layers 4 of 5 have no ready node") as absent:
        route(5, hosts, Links(), Request(kv_tokens=5000))
    assert not isinstance(absent.value, NoRoom)


def test_nodes_to_avoid_are_not_used() -> None:
    hosts = [Host("a", 0, 4, 1.0), Host("b", 0, 4, 5.0)]
    assert route(4, hosts, Links(), Request(avoid=frozenset("a"))).nodes == ("b",)
    with pytest.raises(NoRoute, match="have no ready node"):
        route(4, hosts, Links(), Request(avoid=frozenset("ab")))


def test_each_visit_and_the_last_stage_cost_what_they_cost() -> None:
    hosts = [Host("a", 0, 6, 3, overhead_ms=1, head_ms=4), Host("b", 2, 4, 0.5, overhead_ms=10, head_ms=1)]
    found = route(6, hosts, published({("a", "b"): 2}))
    assert (found.nodes, found.step_ms) == (("a",), 23)
    halves = [Host("c", 0, 3, 1, overhead_ms=0.5), Host("d", 3, 6, 1, overhead_ms=0.25, head_ms=2)]
    assert route(6, halves, published({("c", "d"): 1})).step_ms == pytest.approx(6 + 0.5 + 0.25 + 2 + 1 + 1)


@given(st.permutations(range(4)), st.integers(0, 11))
def test_among_equal_chains_held_ranges_are_used_whole(order: list[int], spread: int) -> None:
    held = [("a", 0, 3), ("b", 3, 6), ("c", 2, 6), ("d", 0, 4)]
    links = Links({(x, y): 2.0 for x in "abcd" for y in "abcd" if x < y})
    found = route(6, [Host(*held[i], 1.0) for i in order], links, Request(spread=spread))
    assert [(s.node_id, s.start, s.end) for s in found.stages] == [("a", 0, 3), ("b", 3, 6)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(host, min_size=1, max_size=6),
    st.lists(st.floats(0, 50), min_size=15, max_size=15),
    st.integers(0, 5),
    st.booleans(),
)
def test_equal_to_exhaustive_search_where_every_pair_was_measured(
    rows: list[tuple[int, int, float, str, int]], rtt_ms: list[float], spread: int, with_head: bool
) -> None:
    hosts = [Host(f"n{i}", start, end, ms, "", load) for i, (start, end, ms, _, load) in enumerate(rows)]
    pairs = [(f"n{i}", f"n{j}") for i in range(6) for j in range(i)]
    links = Links(dict(zip(pairs, rtt_ms, strict=True)))
    request = Request(64.0, 0, PoolNode("n0", 0) if with_head else None, spread)
    best = cheapest(LAYERS, hosts, links, request)
    if best < float("inf"):
        assert route(LAYERS, hosts, links, request).token_ms == pytest.approx(best)


def test_equal_nodes_share_the_requests() -> None:
    hosts = [Host(f"n{i}", 0, 4, 1.0) for i in range(4)]
    counts = Counter(route(4, hosts, Links(), Request(spread=i)).nodes[0] for i in range(400))
    assert set(counts.values()) == {100}


def test_unknown_round_trips_leave_every_layer_usable() -> None:
    hosts = [Host("a", 0, 2, 1.0, "eu"), Host("b", 2, 4, 1.0, "moon")]
    assert route(4, hosts, Links()).nodes == ("a", "b")


def test_one_router_serves_many_requests() -> None:
    hosts = [Host("a", 0, 4, 1.0, kv_free_tokens=10), Host("b", 0, 4, 5.0)]
    router = Router(4, hosts, Links())
    assert router.route(Request(kv_tokens=5)).nodes == ("a",)
    assert router.route(Request(kv_tokens=50)).nodes == ("b",)


def test_a_part_of_a_range_is_used_for_what_it_saves() -> None:
    hosts = [Host("a", 0, 6, 100.0, head_ms=20.0), Host("b", 0, 6, 101.0, head_ms=1.0)]
    assert route(6, hosts, Links(near_ms=1.0)).nodes == ("a", "b")
    assert route(6, hosts, Links(near_ms=1.0), Request(part_worth=0.05)).nodes == ("b",)
    faster = [*hosts, Host("c", 3, 6, 50.0)]
    assert route(6, faster, Links(near_ms=1.0), Request(part_worth=0.05)).nodes == ("a", "c")


def test_disjoint_chains_share_no_node() -> None:
    hosts = [Host("a", 0, 4, 1.0), Host("b", 4, 8, 1.0), Host("c", 0, 5, 2.0), Host("d", 3, 8, 2.0), Host("e", 0, 2, 9)]
    chains = route_disjoint(8, hosts, Links(), k=5)
    assert [c.nodes for c in chains] == [("a", "b"), ("c", "d")]
    assert most_disjoint(8, hosts) == 2


@settings(max_examples=100, deadline=None)
@given(st.lists(host, min_size=1, max_size=9), st.integers(1, 5))
def test_there_are_as_many_disjoint_chains_as_the_rarest_layer_has_nodes(
    rows: list[tuple[int, int, float, str, int]], k: int
) -> None:
    hosts = [Host(f"n{i}", start, end, ms, region, load) for i, (start, end, ms, region, load) in enumerate(rows)]
    most = most_disjoint(LAYERS, hosts)
    if most == 0:
        with pytest.raises(NoRoute):
            route_disjoint(LAYERS, hosts, Links(), k=k)
        return
    chains = route_disjoint(LAYERS, hosts, Links(), k=k)
    assert len(chains) == min(k, most)
    best = route(LAYERS, hosts, Links()).token_ms
    assert chains[0].token_ms >= best * (1 - 1e-9)
    if k == 1:
        assert chains[0].token_ms == best
    nodes = [node for chain in chains for node in set(chain.nodes)]
    assert len(set(nodes)) == len(nodes)
    for chain in chains:
        tiles(chain, LAYERS)


def test_forty_eight_nodes_with_millions_of_paths_are_no_matter() -> None:
    hosts = [Host(f"n{i:02}", 6 * (i % 6), 6 * (i % 6) + 6, 1.0 + i / 100) for i in range(48)]
    chains = route_disjoint(36, hosts, Links(), k=8)
    assert len(chains) == 8


def test_a_request_waits_for_room_on_a_much_faster_chain() -> None:
    def answer(slow_ms: float) -> Route | None:
        hosts = [Host("fast", 0, 4, 1.0, kv_free_tokens=10), Host("slow", 0, 4, slow_ms)]
        return route_or_wait(Router(4, hosts, Links()), Request(kv_tokens=50))

    assert answer(50.0) is None
    found = answer(2.0)
    assert found is not None
    assert found.nodes == ("slow",)


def test_a_request_never_waits_for_a_node_that_is_too_small_for_it_even_when_idle() -> None:
    small = Host("fast", 0, 4, 1.0, kv_free_tokens=10, kv_tokens=40)
    found = route_or_wait(Router(4, [small, Host("slow", 0, 4, 50.0)], Links()), Request(kv_tokens=50))
    assert found is not None
    assert found.nodes == ("slow",)


@pytest.mark.parametrize("figure", ["layer_ms", "load", "overhead_ms", "head_ms", "chunk_layer_ms"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_a_host_with_figures_that_cannot_be_is_not_used(figure: str, value: float) -> None:
    odd = replace(Host("odd", 0, 4, 1.0), **{figure: value})
    sound = Host("sound", 0, 4, 5.0)
    assert route(4, [odd, sound], Links()).nodes == ("sound",)
    router = Router(4, [Host("odd", 0, 4, 1.0), sound], Links())
    router.update([odd, sound])
    assert router.route().nodes == ("sound",)
    with pytest.raises(NoRoute):
        route(4, [odd], Links())


def test_a_model_without_layers_has_no_chain() -> None:
    with pytest.raises(NoRoute):
        route(0, [Host("a", 0, 4, 1.0)], Links())


@pytest.mark.parametrize("figure", ["near_ms", "far_ms", "trips"])
@pytest.mark.parametrize("value", [float("nan"), -1.0])
def test_links_that_cannot_be_are_refused(figure: str, value: float) -> None:
    with pytest.raises(BadPool, match=figure):
        Links(**{figure: value})
