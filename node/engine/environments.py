"""An engine some of whose ranges run in workers of their own, under other interpreters.

A backend that pins its own tensor library cannot run in our worker. Each range on it gets a worker, which ends with the
range; for its stage nothing is different. Where such a worker dies, the whole engine counts as dead: its owner starts
anew, as after the death of the first one.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from node.engine.base import BackendInfo, Batch, BatchResult, DeviceChoice, GoesOn, Stage, StageInfo, StageSpec
from node.engine.process import EngineProcess, open_engine
from node.errors import EngineError, LoadFailed, WorkerDied
from node.wire.frames import Sampling
from node.wire.layer_range import layer_range
from node.wire.records import Hardware

if TYPE_CHECKING:
    from node.task_status import TaskStatus

log = logging.getLogger(__name__)

TAKEN_BY_ITSELF = {"cuda": "sglang"}
"""What runs a model on a device where nobody said what shall, once its environment is there."""


class SeparateStage:
    """A stage in a worker of its own."""

    def __init__(self, stage: Stage, ended: trio.Event) -> None:
        self.info: StageInfo = stage.info
        self._stage, self._ended = stage, ended
        self.dropped = trio.Event()

    async def open(
        self,
        sequence: str,
        start: int,
        end: int,
        sampling: Sampling | None,
        kv_tokens: int,
        prefix: tuple[bytes, ...] = (),
    ) -> int:
        """See `base.Stage.open`."""
        return await self._stage.open(sequence, start, end, sampling, kv_tokens, prefix)

    async def run(self, batch: Batch) -> BatchResult:
        """See `base.Stage.run`."""
        return await self._stage.run(batch)

    async def rewind(self, sequence: str, position: int) -> None:
        """See `base.Stage.rewind`."""
        await self._stage.rewind(sequence, position)

    async def close(self, sequence: str, keep: tuple[bytes, ...] = ()) -> None:
        """See `base.Stage.close`."""
        await self._stage.close(sequence, keep)

    async def drop(self) -> None:
        """See `base.Stage.drop`. Ends the worker, and with it all that it holds."""
        self.dropped.set()
        await self._ended.wait()


class EngineWithEnvironments:
    """A `base.Engine` whose end can be awaited. Made by `with_environments`."""

    def __init__(
        self, own: EngineProcess, nursery: trio.Nursery, pythons: Mapping[str, str], device: DeviceChoice, threads: int
    ) -> None:
        self.hardware: Hardware = own.hardware
        self.backends: tuple[BackendInfo, ...] = own.backends
        self.died = trio.Event()
        self.death: WorkerDied | None = None
        self._own, self._nursery, self._pythons = own, nursery, pythons
        self._device, self._threads = device, threads
        self._others: set[EngineProcess] = set()

    async def load(self, spec: StageSpec, goes_on: GoesOn = lambda share: None) -> Stage:
        """See `base.Engine.load`."""
        if spec.backend in self._pythons:
            return await self._load_apart(spec, self._pythons[spec.backend], goes_on)
        by_itself = TAKEN_BY_ITSELF.get(self.hardware.device, "")
        if spec.backend == "auto" and by_itself in self._pythons:
            try:
                return await self._load_apart(spec, self._pythons[by_itself], goes_on)
            except LoadFailed as error:
                log.warning("%s is not taken: %s", by_itself, error)
        return await self._own.load(spec, goes_on)

    async def set_threads(self, threads: int) -> None:
        """See `base.Engine.set_threads`."""
        self._threads = threads
        await self._own.set_threads(threads)
        for other in list(self._others):
            await other.set_threads(threads)

    async def watch(self) -> None:
        """Notice the death of the first worker."""
        await self._own.died.wait()
        self._end(self._own.death)

    async def _load_apart(self, spec: StageSpec, python: str, goes_on: GoesOn) -> Stage:
        result: Stage | EngineError = await self._nursery.start(self._hold, spec, python, goes_on)
        if isinstance(result, EngineError):
            raise result
        return result

    async def _hold(
        self, spec: StageSpec, python: str, goes_on: GoesOn, task_status: TaskStatus[Stage | EngineError]
    ) -> None:
        """One range's worker, from its start to its end."""
        started, ended = False, trio.Event()
        try:
            async with open_engine(
                threads=self._threads, device=self._device, python=python, known=self.hardware
            ) as engine:
                self._others.add(engine)
                started = True
                try:
                    await self._serve(engine, spec, goes_on, task_status, ended)
                finally:
                    self._others.discard(engine)
        except (EngineError, OSError) as error:  # it did not start: no such interpreter, no such device
            if started:
                raise
            task_status.started(LoadFailed(layer_range(spec.start, spec.end), str(error)))
        finally:
            ended.set()

    async def _serve(
        self,
        engine: EngineProcess,
        spec: StageSpec,
        goes_on: GoesOn,
        task_status: TaskStatus[Stage | EngineError],
        ended: trio.Event,
    ) -> None:
        """Load the range, and return when it is dropped; at once where it could not be loaded."""
        try:
            stage = SeparateStage(await engine.load(spec, goes_on), ended)
        except EngineError as error:
            task_status.started(error)
            return
        task_status.started(stage)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_with, engine)
            await stage.dropped.wait()
            nursery.cancel_scope.cancel()

    async def _end_with(self, engine: EngineProcess) -> None:
        await engine.died.wait()
        self._end(engine.death)

    def _end(self, death: WorkerDied | None) -> None:
        if not self.died.is_set():
            self.death = death
            self.died.set()


@asynccontextmanager
async def with_environments(
    own: EngineProcess, pythons: Mapping[str, str], device: DeviceChoice, threads: int
) -> AsyncIterator[EngineWithEnvironments]:
    """An engine over `own` and workers under these interpreters, by backend. All but `own` end with the context."""
    async with trio.open_nursery() as nursery:
        engine = EngineWithEnvironments(own, nursery, pythons, device, threads)
        nursery.start_soon(engine.watch)
        yield engine
        nursery.cancel_scope.cancel()
