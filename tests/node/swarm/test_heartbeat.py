"""Round trip, clock offset and silence, all from stamps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.swarm.heartbeat import INTERVAL_S, SILENT_AFTER_S, PeerClock, SilenceWatch
from node.wire.control import Pong


def test_offset_and_round_trip_come_from_the_least_delayed_ping() -> None:
    clock, ahead_s = PeerClock(), 1000.0
    for now, there_s, back_s in ((1.0, 0.050, 0.001), (2.0, 0.002, 0.002), (3.0, 0.001, 0.080)):
        number = clock.ping(now)
        arrived = now + there_s
        clock.pong(Pong(number, arrived + ahead_s, arrived + ahead_s + 0.2), arrived + 0.2 + back_s)
    assert clock.rtt_ms == pytest.approx(4.0)
    assert clock.to_ours(1500.0) == pytest.approx(500.0)


def test_nothing_is_claimed_before_the_first_answer() -> None:
    clock = PeerClock()
    assert (clock.rtt_ms, clock.to_ours(1.0)) == (None, None)


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False))
def test_a_peer_cannot_claim_a_negative_round_trip_nor_answer_unasked(received_s: float, sent_s: float) -> None:
    clock = PeerClock()
    clock.pong(Pong(77, 1.0, 1.0), 2.0)
    assert clock.rtt_ms is None
    clock.pong(Pong(clock.ping(1.0), received_s, sent_s), 1.01)
    assert clock.rtt_ms is None or clock.rtt_ms >= 0


def test_a_clock_that_is_no_number_is_refused_at_the_door() -> None:
    with pytest.raises(ValueError, match="finite"):
        Pong(1, float("nan"), 1.0)


def test_a_peer_is_given_up_after_seven_missed_pings() -> None:
    watch, now = SilenceWatch(0.0), 0.0
    while not watch.tick(now := now + INTERVAL_S, heard_s=0.0):
        pass
    assert SILENT_AFTER_S < now <= SILENT_AFTER_S + INTERVAL_S


def test_a_byte_now_and_then_keeps_a_peer() -> None:
    watch = SilenceWatch(0.0)
    assert not any(watch.tick(t * INTERVAL_S, heard_s=t * INTERVAL_S - 3.0) for t in range(1, 100))


def test_a_process_that_stood_still_itself_blames_nobody() -> None:
    watch = SilenceWatch(0.0)
    watch.tick(0.5, heard_s=0.4)
    assert not watch.tick(60.0, heard_s=0.4)
    assert not watch.tick(60.5, heard_s=0.4)
    assert any(watch.tick(60.5 + t * INTERVAL_S, heard_s=0.4) for t in range(1, 10))
