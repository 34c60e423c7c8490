"""Round trip, clock offset and silence, all from stamps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.swarm.heartbeat import (
    INTERVAL_S,
    LONGEST_INTERVAL_S,
    LONGEST_PATIENCE_S,
    REMEMBERED_S,
    SILENT_AFTER_S,
    PeerClock,
    SilenceWatch,
    interval_s,
)
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


@given(st.lists(st.floats(0.0, 20.0), min_size=1, max_size=60))
def test_however_late_our_own_loop_is_a_peer_that_speaks_all_the_time_is_kept(lateness_s: list[float]) -> None:
    """Before each tick we stand still for a while and cannot listen: the last byte we read is from before that."""
    watch, now, heard_s = SilenceWatch(0.0), 0.0, 0.0
    for late_s in lateness_s:
        heard_s = now
        now += INTERVAL_S + late_s
        assert not watch.tick(now, heard_s)


def ticks(watch: SilenceWatch, now: float, until: float, heard_s: float | None) -> tuple[float, bool]:
    """Ticks without lateness, with a byte at `heard_s`, or at each; (the last, whether the peer was given up)."""
    while now < until:
        now += INTERVAL_S
        if watch.tick(now, now if heard_s is None else heard_s):
            return now, True
    return now, False


def with_silences(*silences_s: float) -> tuple[SilenceWatch, float]:
    """A peer that was silent for so long, each time after ten seconds of talk."""
    watch, now = SilenceWatch(0.0), 0.0
    for silence_s in silences_s:
        now, gone = ticks(watch, now, now + 10, None)
        now, gone = ticks(watch, now, now + silence_s, now)
        assert not gone
    now, gone = ticks(watch, now, now + 1, None)
    assert not gone
    return watch, now


def test_a_peer_that_stalls_under_load_is_kept_for_twice_its_longest_silence() -> None:
    watch, now = with_silences(1.0, 2.5, 1.5)
    now, gone = ticks(watch, now, now + 4.0, now)
    assert not gone
    _, gone = ticks(watch, now, now + 3.0, now - 4.0)
    assert gone, "but not for ever"


def test_patience_with_a_restless_peer_has_an_end_and_is_forgotten() -> None:
    watch, now = with_silences(3.0)
    assert watch.patience_s() > SILENT_AFTER_S + 1
    for _ in range(3):
        now, gone = ticks(watch, now, now + REMEMBERED_S, None)
        assert not gone
    assert watch.patience_s() == SILENT_AFTER_S
    for silence_s in (3.0, 6.0, 12.0, 20.0):
        now, gone = ticks(watch, now, now + 5, None)
        now, gone = ticks(watch, now, now + silence_s, now)
        assert watch.patience_s() <= LONGEST_PATIENCE_S
        if gone:
            break
    assert gone


def test_neighbours_without_links_are_pinged_seldom_where_there_are_many() -> None:
    assert interval_s(300, carries_links=True) == interval_s(8, carries_links=False) == INTERVAL_S
    assert interval_s(32, carries_links=False) == 2 * INTERVAL_S
    assert interval_s(1000, carries_links=False) == LONGEST_INTERVAL_S
    watch, now = SilenceWatch(0.0), 0.0
    while not watch.tick(now := now + LONGEST_INTERVAL_S, 0.0, LONGEST_INTERVAL_S):
        pass
    assert now > 3 * LONGEST_INTERVAL_S, "one lost ping is not enough, nor are two"


def test_a_peer_that_began_anew_is_measured_anew() -> None:
    clock = PeerClock()
    clock.pong(Pong(clock.ping(1.0), 5.0, 5.0), 1.01)
    pending = clock.ping(2.0)
    clock.reset()
    assert (clock.rtt_ms, clock.to_ours(1.0)) == (None, None)
    clock.pong(Pong(pending, 6.0, 6.0), 2.01)
    assert clock.rtt_ms is None, "an answer to a question of before"
