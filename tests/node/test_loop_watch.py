"""What holds the event loop is seen, with its name."""

from __future__ import annotations

import logging
import time

import pytest
import trio

from node.loop_watch import BlockedLoopLog, LoopWatch


def compute(seconds: float) -> None:
    begun_s = time.thread_time()
    while time.thread_time() - begun_s < seconds:
        pass


async def busy() -> None:
    compute(0.03)
    await trio.lowlevel.checkpoint()


def test_a_step_that_computes_is_told_with_its_task_and_one_that_waits_is_not() -> None:
    held: list[tuple[str, float]] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(busy)
        await trio.sleep(0.05)

    trio.run(main, instruments=[LoopWatch(0.025, lambda what, took_s: held.append((what, took_s)))])
    ((what, took_s),) = held
    assert "busy" in what
    assert "test_loop_watch.py" in what
    assert took_s >= 0.025


def test_the_log_is_told_seldom(caplog: pytest.LogCaptureFixture) -> None:
    now_s = 0.0
    told = BlockedLoopLog(lambda: now_s)
    with caplog.at_level(logging.WARNING):
        for now_s in (0.0, 1.0, 2.0, 30.0):  # noqa: B007 - the clock reads it
            told("node.api.chat at chat.py:40", 0.25)
    assert len(caplog.records) == 2
    assert "250 ms of processor time by node.api.chat at chat.py:40" in caplog.text
    assert "2 more times" in caplog.text
