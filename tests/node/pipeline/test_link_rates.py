"""What large frames tell of a link."""

from __future__ import annotations

import pytest

from node.pipeline.link_rates import LEAST_BYTES, LEAST_MS, MOST_PEERS, LinkRates
from node.plan.live.from_records import pool_of_records
from node.wire.ids import NodeId
from tests.node.plan.live.test_decide import record

A, B = NodeId("a"), NodeId("b")


def test_a_rate_is_what_the_bytes_took_beyond_the_way() -> None:
    rates = LinkRates()
    rates.add(A, 125_000, 50.0 + 100.0, 100.0)
    assert rates.told({A: None}) == {A: pytest.approx(10.0)}


def test_small_frames_and_impossible_times_tell_nothing() -> None:
    rates = LinkRates()
    rates.add(A, LEAST_BYTES - 1, 50.0, 0.0)
    for wire_ms in (0.0, -3.0, float("nan"), float("inf")):
        rates.add(A, LEAST_BYTES, wire_ms, 0.0)
    assert rates.told({A: None}) == {}


def test_a_clock_that_is_a_little_off_makes_no_link_endless() -> None:
    rates = LinkRates()
    rates.add(A, 10 * LEAST_BYTES, 1.0, 80.0)
    assert rates.told({A: None}) == {A: pytest.approx(10 * LEAST_BYTES * 8 / 1000 / LEAST_MS, rel=0.01)}


def test_one_frame_that_met_others_does_not_decide_and_who_is_gone_is_forgotten() -> None:
    rates = LinkRates()
    for wire_ms in (10.0, 10.0, 900.0):
        rates.add(A, 1_250_000, wire_ms, 0.0)
    rates.add(B, 1_250_000, 10.0, 0.0)
    assert rates.told({A: None}) == {A: pytest.approx(1000.0)}
    assert rates.told({A: None, B: None}) == {A: pytest.approx(1000.0)}


def test_a_record_stays_small_whoever_sends() -> None:
    rates, peers = LinkRates(), [NodeId(f"n{i}") for i in range(200)]
    for peer in peers:
        rates.add(peer, LEAST_BYTES, 5.0, 0.0)
    assert list(rates.told(dict.fromkeys(peers))) == peers[-MOST_PEERS:]


def test_a_plan_counts_each_direction_as_its_receiver_saw_it() -> None:
    pool = pool_of_records(
        [record("a", mbps={"b": 20.0}), record("b", mbps={"a": 300.0, "gone": 1.0}), record("c")]
    ).pool
    a, b, c = pool.nodes
    assert [pool.links.rate_mbps(*pair) for pair in ((b, a), (a, b))] == [20.0, 300.0]
    assert pool.links.rate_mbps(a, c) > 300.0
