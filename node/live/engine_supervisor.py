"""Holds the layers that the plan gives this node: keeps an engine worker alive, and its ranges as the plan has them.

A crash of the worker is an event that the node survives: sequences on it end, another one is started, the range is
loaded again.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import trio

from node.engine.base import Engine
from node.errors import EngineError, WorkerDied
from node.live.model_store import ModelStore
from node.live.mover import Mover
from node.live.remeasuring import Remeasuring
from node.live.served_ranges import ServedRange, ServedRanges
from node.pipeline.stage import StageRunner
from node.plan.live.members import siblings_of
from node.swarm.base import Swarm
from node.wire.events import Event, Notice
from node.wire.models import Quantise
from node.wire.plans import Plan

log = logging.getLogger(__name__)

MOST_PROBLEM = 512
"""Characters of a record's problem."""

RESTART_FIRST_S, RESTART_MOST_S = 0.5, 30.0
"""Pause before another worker is started; doubled each time one dies young."""


class MortalEngine(Engine, Protocol):
    """An engine whose end can be awaited."""

    died: trio.Event

    @property
    def death(self) -> WorkerDied | None:
        """How it ended, once it has."""


OpenEngine = Callable[[int], AbstractAsyncContextManager[MortalEngine]]
"""Starts a worker with that many threads."""


class EngineSupervisor:
    """This node's engine, and what it loads into `ranges`, where the pipeline finds it."""

    def __init__(
        self,
        swarm: Swarm,
        store: ModelStore,
        ranges: ServedRanges,
        runner: StageRunner,
        open_engine: OpenEngine,
        emit: Callable[[Event], object],
        cores: int,
        most_threads: int | None = None,
        quantise: Quantise = "auto",
    ) -> None:
        self._swarm, self._open_engine, self._emit = swarm, open_engine, emit
        self._ranges, self._runner = ranges, runner
        self._cores, self._most_threads = cores, most_threads
        self._mover = Mover(swarm, store, emit, ranges, runner.uses, self._close, runner.times.loaded, quantise)
        self._engine: MortalEngine | None = None

    @property
    def kv_tokens(self) -> int:
        """Room of the range that serves now, while nothing is held beside it."""
        serving = self._ranges.serving()
        return serving.stage.info.kv_tokens if serving is not None else 0

    @property
    def kv_tokens_used(self) -> int:
        """Of that room: what sequences on any range take, and what other layers take that come or go."""
        serving = self._ranges.serving()
        if serving is None:
            return 0
        taken_bytes = self._runner.reserved_bytes + self._mover.bytes_beside(serving)
        info = serving.stage.info
        return min(info.kv_tokens, -(-taken_bytes // info.kv_bytes_per_token))

    def follow(self, plan: Plan) -> None:
        """A new plan is in force."""
        self._mover.follow(plan)

    async def use_threads(self) -> None:
        """Divide the machine's cores among its nodes."""
        if self._engine is not None and not self._engine.died.is_set():
            try:
                await self._engine.set_threads(self.threads())
            except WorkerDied as error:
                log.warning("%s", error)

    def threads(self) -> int:
        """This node's share of the cores, and no more than its owner allows."""
        records = self._swarm.members()
        own = records[self._swarm.node_id]
        share = max(1, self._cores // max(1, siblings_of(records)[own.machine_id]))
        return share if self._most_threads is None else min(share, self._most_threads)

    async def run(self) -> None:
        """Keep an engine alive and the plan's range on it, until cancelled."""
        pause_s = RESTART_FIRST_S
        first = True
        while True:
            started_s = trio.current_time()
            try:
                async with self._worker() as engine:
                    await self._serve(engine)
                why = str(engine.death)
            except (EngineError, OSError) as error:  # it did not even start
                if first:
                    raise
                why = str(error)
                log.error("%s", error)
            first = False
            if trio.current_time() - started_s > 60:
                pause_s = RESTART_FIRST_S
            self._emit(Notice.of("error", f"the engine worker died; another is started in {pause_s:.1f} s: {why}"))
            problem = f"the engine worker died and is started again: {why}"
            await self._swarm.update(state="starting", held=(), problem=problem[:MOST_PROBLEM])
            await trio.sleep(pause_s)
            pause_s = min(RESTART_MOST_S, pause_s * 2)

    @asynccontextmanager
    async def _worker(self) -> AsyncIterator[MortalEngine]:
        async with self._open_engine(self.threads()) as engine:
            self._engine = engine
            try:
                yield engine
            finally:
                self._engine = None
                for held in self._ranges:
                    self._end_sequences(held, "its engine worker died")
                self._ranges.clear()

    async def _serve(self, engine: MortalEngine) -> None:
        """Follow plans on one worker until it dies."""
        await self._swarm.update(hardware=engine.hardware)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._mover.run, engine)
            nursery.start_soon(Remeasuring(self._swarm, self._ranges, self._runner).run)
            await engine.died.wait()
            self._mover.engine_died()
            nursery.cancel_scope.cancel()

    # --- what the pipeline does with ranges -------------------------------------------------------------------------

    def _end_sequences(self, held: ServedRange, reason: str) -> None:
        self._runner.drop_all_on(held.stage, reason)

    async def _close(self, held: ServedRange, reason: str) -> None:
        """End the sequences on a range that is no longer listed, and free its weights."""
        self._end_sequences(held, reason)
        with trio.CancelScope(shield=True):  # waits for the engine's present step at most
            await held.stage.drop()
