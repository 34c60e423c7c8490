"""The matrix of round trips says what the planner's links say pair by pair."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.plan.live.from_records import UNKNOWN_MS, pool_of_records
from node.plan.live.round_trips import RoundTrips
from node.plan.machines.pool import PoolNode
from node.plan.routing.router import Host, Request, Router
from node.wire.records import NodeRecord
from tests.node.plan.live.test_decide import record

NAMES = "abcde"

members = st.lists(
    st.builds(
        lambda machine, region, rtt_ms, mbps: {
            "machine_id": machine,
            "region": region,
            "rtt_ms": rtt_ms,
            "mbps": mbps,
        },
        st.sampled_from("XYZ"),
        st.sampled_from(["", "eu", "us"]),
        st.dictionaries(st.sampled_from([*NAMES, "stranger"]), st.floats(0, 200), max_size=5),
        st.dictionaries(st.sampled_from([*NAMES, "stranger"]), st.floats(1e-9, 1e6), max_size=5),
    ),
    min_size=1,
    max_size=len(NAMES),
)


def records_of(told: Sequence[dict[str, object]]) -> list[NodeRecord]:
    return [record(name, **fields) for name, fields in zip(NAMES, told, strict=False)]


@given(members, st.floats(0, 1e5))
def test_hops_are_those_of_the_pool(told: list[dict[str, object]], sent_bytes: float) -> None:
    records = records_of(told)
    pool = pool_of_records(records).pool
    matrix = RoundTrips(records)
    hops = matrix.distances(pool.nodes).hop_ms(sent_bytes)
    for i, a in enumerate(pool.nodes):
        for j, b in enumerate(pool.nodes):
            if i != j:
                assert hops[i, j] == pytest.approx(pool.links.hop_ms(a, b, sent_bytes))
            assert matrix.way_ms(a, b) == pytest.approx(pool.links.hop_ms(a, b, 0.0))


@given(members, st.integers(0, 3))
def test_routes_cost_the_same(told: list[dict[str, object]], spread: int) -> None:
    records = records_of(told)
    ranges = [(0, 4), (0, 2), (2, 4), (1, 3), (0, 4)]
    hosts = [Host(r.node_id, *ranges[i], 1.0 + i, r.region) for i, r in enumerate(records)]
    request = Request(64.0, head=PoolNode("a", 0, region=records[0].region), spread=spread)
    links = pool_of_records(records).pool.links
    matrix = Router(4, hosts, RoundTrips(records)).route(request)
    assert matrix.token_ms == pytest.approx(Router(4, hosts, links).route(request).token_ms)


def test_a_node_without_a_record_is_far_away() -> None:
    matrix = RoundTrips([record("a")])
    assert "b" not in matrix.named
    assert matrix.way_ms(PoolNode("a", 0), PoolNode("b", 0)) == UNKNOWN_MS / 2
