"""What membership costs while nobody asks anything; see `tests/bench/control_traffic.py` for the table."""

from __future__ import annotations

import pytest

from node.wire.statements import STATUS_SIGNED_BYTES
from tests.bench.control_traffic import measured


@pytest.mark.parametrize(("members", "most_bytes_per_s"), [(16, 2_000), (256, 30_000)])
@pytest.mark.holds_the_loop("all neighbours join in one step of the test")
def test_an_idle_swarm_is_quiet(members: int, most_bytes_per_s: int) -> None:
    traffic = measured(members, busy=False, for_s=10.0)
    assert traffic.sent_bytes + traffic.heartbeat_bytes < most_bytes_per_s
    assert traffic.received_bytes + traffic.heartbeat_bytes < most_bytes_per_s
    assert traffic.hearing_s < 0.25


@pytest.mark.holds_the_loop("all neighbours join in one step of the test")
def test_a_status_that_is_told_each_second_is_small() -> None:
    traffic = measured(16, busy=True, for_s=10.0)
    assert traffic.status_bytes <= STATUS_SIGNED_BYTES
    assert traffic.sent_bytes < 15 * 4 * STATUS_SIGNED_BYTES
