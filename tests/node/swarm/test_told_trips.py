"""When a new round trip is worth telling to everyone."""

from __future__ import annotations

from node.swarm.told_trips import (
    DRIFT_S,
    DRIFT_S_PER_PEER,
    GAINED_S,
    GAINED_S_PER_PEER,
    UNREACHED_S,
    ToldTrips,
)

EMPTY = {"rtt_ms": {}, "mbps": {}, "unreachable": ()}


def test_small_changes_keep_the_old_figure_and_large_ones_are_told_after_a_while() -> None:
    told = ToldTrips()
    assert told.due(0.0, {"a": 20.0, "b": None}, {}, ())["rtt_ms"] == {"a": 20.0}
    assert told.due(100.0, {"a": 23.9}, {}, ())["rtt_ms"] == {"a": 20.0}
    wait_s = DRIFT_S + DRIFT_S_PER_PEER
    assert told.due(wait_s - 0.1, {"a": 30.0}, {}, ())["rtt_ms"] == {"a": 20.0}
    assert told.due(wait_s, {"a": 30.0}, {}, ())["rtt_ms"] == {"a": 30.0}
    assert told.due(2 * wait_s, {"a": 30.1}, {"a": 90.0}, ())["mbps"] == {"a": 90.0}
    assert told.due(3 * wait_s, {"a": 30.1}, {"a": 80.0}, ())["mbps"] == {"a": 90.0}


def test_who_is_lost_is_told_at_once_and_who_is_gained_soon() -> None:
    told = ToldTrips()
    told.due(0.0, {"a": 1.0}, {}, ())
    assert told.due(0.1, {"a": 1.0, "b": 1.0}, {}, ())["rtt_ms"] == {"a": 1.0}
    soon_s = GAINED_S + 2 * GAINED_S_PER_PEER
    assert told.due(soon_s, {"a": 1.0, "b": 1.0}, {}, ())["rtt_ms"] == {"a": 1.0, "b": 1.0}
    assert told.due(soon_s + 0.01, {"b": 1.0}, {}, ())["rtt_ms"] == {"b": 1.0}


def test_who_is_dialed_in_vain_is_unreachable_after_a_while_and_until_it_is_connected() -> None:
    told = ToldTrips()
    assert told.due(0.0, {}, {}, ["z", "a"]) == EMPTY
    assert told.due(UNREACHED_S - 0.1, {}, {}, ["z", "a"])["unreachable"] == ()
    assert told.due(UNREACHED_S, {}, {}, ["z", "a"])["unreachable"] == ("a", "z")
    assert told.due(UNREACHED_S + 9, {"a": 5.0}, {}, ["z", "a"]) == {
        "rtt_ms": {"a": 5.0},
        "mbps": {},
        "unreachable": ("z",),
    }
    assert told.due(UNREACHED_S + 99, {"a": 5.0}, {}, [])["unreachable"] == ()
    assert told.due(UNREACHED_S + 100, {"a": 5.0}, {}, ["z"])["unreachable"] == (), "it begins anew"


def test_more_peers_than_a_record_takes_are_left_out() -> None:
    many = {f"n{number}": 1.0 for number in range(3000)}
    told = ToldTrips().due(0.0, many, many, ())
    assert len(told["rtt_ms"]) == len(told["mbps"]) == 1024  # type: ignore[arg-type]
