"""One engine worker after another: the next one is ready soon after the last has died.

What takes long at a worker's start is importing its libraries, then measuring the machine. Where the system allows it,
workers are forked from a process that has imported everything; and the machine is measured once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from node.engine.backend import BACKENDS, BackendName, DeviceChoice
from node.engine.forking import CAN_FORK, ForkServer
from node.engine.process import EngineProcess, open_engine
from node.engine.spawning import WorkerProcess, spawn_worker
from node.wire.records import Hardware


class Workers:
    """Where workers come from. Made by `open_workers`."""

    def __init__(self, nursery: trio.Nursery, backend: BackendName, device: DeviceChoice, python: str | None) -> None:
        self._nursery, self._backend, self._device = nursery, backend, device
        self._python = python or BACKENDS[backend].python
        self._server: ForkServer | None = None
        self._hardware: Hardware | None = None

    @asynccontextmanager
    async def engine(self, threads: int) -> AsyncIterator[EngineProcess]:
        """A new worker, which ends with the context. See `process.open_engine`."""
        async with open_engine(
            threads=threads, backend=self._backend, device=self._device, spawn=self._spawn, known=self._hardware
        ) as engine:
            self._hardware = engine.hardware
            yield engine

    async def prepare(self) -> None:
        """Begin with what takes long, where it can be done before a worker is asked for.

        Raises:
            OSError: there is no such interpreter.
        """
        if CAN_FORK and (self._server is None or self._server.ended.is_set()):
            self._server = await ForkServer.start(self._nursery, self._python, self._backend)

    async def _spawn(self) -> WorkerProcess:
        await self.prepare()
        return await (spawn_worker(self._python) if self._server is None else self._server.fork())


@asynccontextmanager
async def open_workers(
    *, backend: BackendName = "torch", device: DeviceChoice = "auto", python: str | None = None
) -> AsyncIterator[Workers]:
    """Workers of one backend on one device, under the interpreter `python` or the backend's own."""
    async with trio.open_nursery() as nursery:
        workers = Workers(nursery, backend, device, python)
        await workers.prepare()
        yield workers
        nursery.cancel_scope.cancel()
