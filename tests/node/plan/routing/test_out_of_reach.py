"""Members that cannot reach one another: what records tell of it, and what routing and planning make of it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations, pairwise

import pytest

from node.errors import NoRoute
from node.plan.live.from_records import NO_WAY_MS, RELAYED_MS, pool_of_records
from node.plan.live.round_trips import SAME_MACHINE_MS, UNKNOWN_MS, RoundTrips, apart
from node.plan.machines.pool import Links, PoolNode
from node.plan.routing.hosts import Host, Request
from node.plan.routing.router import Route, Router
from node.wire.records import NodeRecord
from tests.fakes.every_chain import cheapest
from tests.node.plan.live.test_decide import record


def told(name: str, rtt_ms: dict[str, float], unreachable: Sequence[str] = (), machine_id: str = "") -> NodeRecord:
    return record(name, machine_id=machine_id or name, rtt_ms=rtt_ms, unreachable=tuple(unreachable))


def pairs_apart(records: Sequence[NodeRecord]) -> set[str]:
    index = {r.node_id: i for i, r in enumerate(records)}
    away = apart(records, index)
    return {a.node_id + b.node_id for a, b in combinations(records, 2) if away[index[a.node_id], index[b.node_id]]}


TRIANGLE = [told("a", {"b": 10.0}, "c"), told("b", {"a": 10.0, "c": 30.0}), told("c", {"b": 30.0}, "a")]
"""All reach b; a and c do not reach one another."""


def test_members_are_apart_where_either_says_that_it_cannot_reach_the_other() -> None:
    assert pairs_apart(TRIANGLE) == {"ac"}
    assert pairs_apart([told("a", {}, "b"), told("b", {"a": 1.0})]) == {"ab"}, "what the other says may be older"


def test_members_that_have_not_tried_one_another_are_far_and_not_apart() -> None:
    records = [told("a", {"b": 10.0}), told("b", {"a": 10.0}), told("new", {})]
    assert pairs_apart(records) == set()
    assert RoundTrips(records).way_ms(PoolNode("a", 0), PoolNode("new", 0)) == UNKNOWN_MS / 2


def test_nodes_of_one_machine_are_never_apart() -> None:
    records = [told("a", {}, "b", machine_id="m"), told("b", {}, "a", machine_id="m")]
    assert RoundTrips(records).way_ms(PoolNode("a", 0), PoolNode("b", 0)) == SAME_MACHINE_MS / 2


def test_a_stranger_whom_a_member_cannot_reach_is_nobody() -> None:
    assert pairs_apart([told("a", {}, ["stranger"]), told("b", {})]) == set()


def routed(hosts: Sequence[Host], records: Sequence[NodeRecord], head: str = "") -> Route:
    layers = max(host.end for host in hosts)
    request = Request(head=PoolNode(head, 0) if head else None)
    return Router(layers, hosts, RoundTrips(records)).route(request)


def test_a_chain_goes_around_a_broken_pair() -> None:
    hosts = [Host("a", 0, 4, 1.0), Host("c", 4, 8, 1.0), Host("b", 4, 8, 3.0)]
    found = routed(hosts, TRIANGLE)
    assert found.nodes == ("a", "b")
    assert not found.relayed


def test_the_way_back_and_the_ways_of_the_head_are_not_broken_either() -> None:
    hosts = [Host("a", 0, 4, 1.0), Host("b", 4, 8, 1.0), Host("c", 8, 12, 1.0), Host("b", 8, 12, 3.0)]
    assert routed(hosts, TRIANGLE).nodes == ("a", "b", "b")
    whole = [Host("c", 0, 4, 1.0), Host("b", 0, 4, 3.0)]
    assert routed(whole, TRIANGLE, head="a").nodes == ("b",)


def test_where_no_order_works_frames_go_through_the_third_at_the_price_of_both_legs() -> None:
    hosts = [Host("a", 0, 4, 1.0), Host("b", 4, 8, 1.0), Host("c", 8, 12, 1.0)]
    found = routed(hosts, TRIANGLE)
    assert found.relayed
    assert found.nodes == ("a", "b", "c")
    assert found.step_ms == pytest.approx(12 + (10 + 30 + (10 + 30)) / 2)


def test_where_no_third_reaches_both_there_is_no_chain() -> None:
    records = [told("a", {}, "b"), told("b", {}, "a")]
    with pytest.raises(NoRoute, match="cannot reach one another"):
        routed([Host("a", 0, 4, 1.0), Host("b", 4, 8, 1.0)], records)


@pytest.mark.parametrize("seed", range(40))
def test_members_that_are_apart_are_neighbours_only_where_every_order_has_such_a_pair(seed: int) -> None:
    chance = random.Random(seed)
    names = "abcd"
    rtt = {pair: chance.uniform(1, 100) for pair in combinations(names, 2)}
    broken = {pair for pair in rtt if chance.random() < 0.4}
    records = []
    for name in names:
        own = {(set(pair) - {name}).pop(): (pair, ms) for pair, ms in rtt.items() if name in pair}
        lost = [peer for peer, (pair, _) in own.items() if pair in broken]
        records.append(told(name, {peer: ms for peer, (_, ms) in own.items() if peer not in lost}, lost))
    starts = [chance.randrange(4) for _ in names]
    hosts = [Host(n, s, chance.randint(s + 1, 5), chance.uniform(1, 9)) for n, s in zip(names, starts, strict=True)]
    hosts += [Host("a", 0, 2, 3.0), Host("b", 3, 5, 3.0)]
    never = Links({pair: 1e12 if pair in broken else ms for pair, ms in rtt.items()})
    best = cheapest(5, hosts, never, Request())
    try:
        found = Router(5, hosts, RoundTrips(records)).route(Request())
    except NoRoute:
        assert best > 1e9
        return
    assert found.relayed == (best > 1e9)
    if not found.relayed:
        assert found.token_ms == pytest.approx(best)
        around = [*found.nodes, found.nodes[0]]
        assert not any(tuple(sorted(pair)) in broken for pair in pairwise(around))


def test_a_plan_reckons_with_the_way_around_and_a_wait_at_the_third() -> None:
    links = pool_of_records(TRIANGLE).pool.links
    assert links.rtt(PoolNode("a", 0), PoolNode("c", 0)) == 10 + 30 + RELAYED_MS
    assert links.rtt(PoolNode("a", 0), PoolNode("b", 0)) == 10
    alone = pool_of_records([told("a", {}, "b"), told("b", {}, "a")]).pool.links
    assert alone.rtt(PoolNode("a", 0), PoolNode("b", 0)) == NO_WAY_MS
