"""One engine worker after another: the next one is ready soon after the last has died.

What takes long at a worker's start is importing its libraries, then measuring the machine. Where the system allows it,
workers are forked from a process that has imported what they need, which the node may have started before itself; and
the machine is measured once.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Protocol

import trio

from node.engine.base import DeviceChoice, StageInfo
from node.engine.environments import EngineWithEnvironments, with_environments
from node.engine.forking import ForkServer
from node.engine.process import EngineProcess, open_engine
from node.engine.spawning import WorkerProcess, spawn_worker
from node.errors import WorkerDied
from node.wire.records import Hardware
from node.worker_start import CAN_FORK, USUAL_BACKENDS, StartedForkServer


class MachineMemory(Protocol):
    """What is known of the machine from earlier starts. Its methods block for as long as a disk takes."""

    def hardware(self) -> Hardware | None: ...

    def measured(self, hardware: Hardware) -> None: ...

    def computes_with(self, backends: tuple[str, ...]) -> None: ...


class Workers:
    """Where workers come from. Made by `open_workers`."""

    def __init__(
        self,
        nursery: trio.Nursery,
        device: DeviceChoice,
        python: str,
        imports: tuple[str, ...],
        memory: MachineMemory | None,
        environments: Mapping[str, str],
    ) -> None:
        self._nursery, self._device, self._python = nursery, device, python
        self._environments = environments
        self._backends = imports
        """What the next workers are going to need."""
        self._used: tuple[str, ...] = ()
        """What this run's models have needed, the last one last."""
        self._server: ForkServer | None = None
        self._memory = memory
        self._hardware = memory.hardware() if memory is not None else None

    @asynccontextmanager
    async def engine(self, threads: int) -> AsyncIterator[EngineProcess | EngineWithEnvironments]:
        """A new worker, which ends with the context. See `process.open_engine`, and `environments` for those that it
        has beside it where backends have interpreters of their own."""
        async with open_engine(
            threads=threads, device=self._device, spawn=self._spawn, known=self._hardware, loaded=self._note
        ) as engine:
            if engine.hardware != self._hardware:
                self._hardware = engine.hardware
                if self._memory is not None:
                    await trio.to_thread.run_sync(self._memory.measured, engine.hardware)
            if not self._environments:
                yield engine
                return
            async with with_environments(engine, self._environments, self._device, threads) as wider:
                yield wider

    def take_over(self, started: StartedForkServer) -> None:
        """Have workers forked by a process that was started before."""
        self._server = ForkServer.take_over(self._nursery, started)

    async def prepare(self) -> None:
        """Begin with what takes long, where it can be done before a worker is asked for.

        Raises:
            OSError: there is no such interpreter.
        """
        if CAN_FORK and (self._server is None or self._server.ended.is_set()):
            self._server = await ForkServer.start(self._nursery, self._python, self._backends)

    def _note(self, stage: StageInfo) -> None:
        """What a worker has loaded with, the next one is going to load with, too."""
        if stage.backend not in self._backends:
            self._backends = (*self._backends, stage.backend)
            if self._server is not None:
                self._nursery.start_soon(self._server.use, stage.backend)
        if self._memory is not None:
            used = (*(name for name in self._used if name != stage.backend), stage.backend)
            if used != self._used:
                self._used = used
                self._nursery.start_soon(trio.to_thread.run_sync, self._memory.computes_with, used)

    async def _spawn(self) -> WorkerProcess:
        await self.prepare()
        if self._server is None:
            return await spawn_worker(self._python)
        try:
            return await self._server.fork()
        except WorkerDied:
            if not self._server.has_imported:  # the next one would fare no better
                raise
        await self._server.end()  # it had died, or hung: nobody had noticed yet
        await self.prepare()
        return await self._server.fork()


@asynccontextmanager
async def open_workers(
    *,
    device: DeviceChoice = "auto",
    python: str = sys.executable,
    imports: tuple[str, ...] = USUAL_BACKENDS,
    started: StartedForkServer | None = None,
    memory: MachineMemory | None = None,
    environments: Mapping[str, str] | None = None,
) -> AsyncIterator[Workers]:
    """Workers that compute on one device, under the interpreter `python`.

    What the backends `imports` need is imported at once, what others need once a model has needed it. `started` is a
    fork server that imports already. With a `memory`, what was measured at an earlier start is not measured again.
    `environments` are the interpreters of backends that have one of their own.
    """
    async with trio.open_nursery() as nursery:
        workers = Workers(
            nursery, device, python, imports if started is None else started.backends, memory, environments or {}
        )
        if started is not None:
            workers.take_over(started)
        await workers.prepare()
        yield workers
        nursery.cancel_scope.cancel()
