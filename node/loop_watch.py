"""Sees what holds the event loop: each step of a task is timed by the processor time that it takes.

Everything that a node does waits while one task computes: answers to peers, heartbeats, tokens of other requests. So
what takes long belongs into a thread or a child process. Processor time, since a busy machine makes every step long by
the clock.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from time import monotonic, thread_time
from types import CodeType, FrameType

import trio

log = logging.getLogger(__name__)

TOLD_FROM_S = 0.1
TOLD_EVERY_S = 10.0
"""What holds the loop once does so again and again; the log is for people."""

OnBlocked = Callable[[str, float], None]
"""Called with what held the loop and for how long, in seconds of a processor."""


class LoopWatch(trio.abc.Instrument):
    """Reports steps that took `least_s` or more."""

    def __init__(self, least_s: float, on_blocked: OnBlocked) -> None:
        self._least_s, self._on_blocked = least_s, on_blocked
        self._begun_s = 0.0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._begun_s = thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        took_s = thread_time() - self._begun_s
        if took_s >= self._least_s:
            self._on_blocked(f"{task.name} at {_place(task)}", took_s)


class BlockedLoopLog:
    """Writes what held the loop into the log, seldom enough to be read."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._told_s = float("-inf")
        self._untold = 0

    def __call__(self, what: str, took_s: float) -> None:
        now_s = self._clock()
        if now_s - self._told_s < TOLD_EVERY_S:
            self._untold += 1
            return
        more = f"; {self._untold} more times since the last such line" if self._untold else ""
        log.warning("the event loop was held for %.0f ms of processor time by %s%s", took_s * 1e3, what, more)
        self._told_s, self._untold = now_s, 0


def log_blocked_loop() -> LoopWatch:
    """For a node's own run."""
    return LoopWatch(TOLD_FROM_S, BlockedLoopLog())


def _place(task: trio.lowlevel.Task) -> str:
    """Where the task waits now, as deep as its own code goes: that is close to what it did before."""
    place = "its end"
    awaited: object = task.coro
    while awaited is not None:
        code: CodeType | None = getattr(awaited, "cr_code", None) or getattr(awaited, "ag_code", None)
        frame: FrameType | None = getattr(awaited, "cr_frame", None) or getattr(awaited, "ag_frame", None)
        if code is not None and frame is not None and "trio" not in Path(code.co_filename).parts:
            place = f"{Path(code.co_filename).name}:{frame.f_lineno}"
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "ag_await", None)
    return place
