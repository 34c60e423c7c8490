"""Times a handful of decode steps of a stage that nobody uses, through the same edge as the steps in service.

No sequence of the swarm's: it is counted nowhere, and gives way to whoever wants the stage, after one step at most.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from node.engine.base import PROBE_BUDGET_S, PROBE_MOST_STEPS, PROBE_SLOW_STEP_S, Batch, BatchResult, Slot, Stage
from node.errors import EngineError
from node.pipeline.latency import StepTimes
from node.wire.frames import Sampling, Want
from node.wire.models import DTYPE_BYTES

log = logging.getLogger(__name__)

SESSION = "idle-probe"
"""The engine's name for the probe's sequence. Those of the swarm have a slash and the hop's number at the end."""


class IdleProbe:
    """One measurement at a time, and only while `idle` says so."""

    def __init__(self, times: StepTimes, idle: Callable[[], bool]) -> None:
        self._times, self._idle = times, idle
        self._measuring = trio.Lock()

    async def over(self) -> None:
        """Wait until the stage and its KV room are free of the probe. `idle` must say no by now, or it goes on."""
        async with self._measuring:
            pass

    async def measure(self, stage: Stage, start: int, end: int) -> bool:
        """Replace the times told of this node with those of layers [start, end) now; False where nothing came of it.

        That is where somebody wanted the stage, where it has no room, is closed or broken, or its worker is gone: all
        of them are others' to tell.
        """
        async with self._measuring:
            try:
                timed = await self._run(stage, start, end)
            except EngineError as error:
                log.debug("layers [%d, %d) were not timed: %s", start, end, error)
                return False
        if timed:
            self._times.renew(end - start, timed)
        return bool(timed)

    async def _run(self, stage: Stage, start: int, end: int) -> list[tuple[BatchResult, float]]:
        """Steps and their overheads in ms; none where somebody wants the stage."""
        if not self._idle():
            return []
        timed: list[tuple[BatchResult, float]] = []
        first, sampling = start == 0, Sampling() if stage.info.head_ms is not None else None
        try:
            await stage.open(SESSION, start, end, sampling, PROBE_MOST_STEPS + 1)
            if not self._idle():
                return []
            warm_up, took_s = await _step(stage, 0, first=first)
            until_s = trio.current_time() + PROBE_BUDGET_S
            if took_s > PROBE_SLOW_STEP_S:
                timed, until_s = [_with_overhead(warm_up, took_s)], 0.0
            while self._idle() and (not timed or (len(timed) < PROBE_MOST_STEPS and trio.current_time() < until_s)):
                timed.append(_with_overhead(*await _step(stage, len(timed) + 1, first=first)))
            return timed if self._idle() else []
        finally:
            await stage.close(SESSION)


async def _step(stage: Stage, position: int, *, first: bool) -> tuple[BatchResult, float]:
    """A decode step of token 0, or of a hidden state of zeros, and the seconds that it took from here."""
    info = stage.info
    data = bytes(4 if first else DTYPE_BYTES[info.dtype] * info.hidden_size)
    want: Want = "token" if info.head_ms is not None else "nothing"  # only a stage that ends the model has timed a head
    started_s = trio.current_time()
    result = await stage.run(Batch((Slot(SESSION, position, 1, want),), data, None if first else info.dtype))
    return result, trio.current_time() - started_s


def _with_overhead(result: BatchResult, took_s: float) -> tuple[BatchResult, float]:
    return result, max(0.0, 1e3 * took_s - result.compute_ms)
