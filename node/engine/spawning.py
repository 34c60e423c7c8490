"""A worker's process, and how one is started anew. No messages. See `forking` for the other way."""

from __future__ import annotations

import subprocess
from typing import Protocol

import trio

from node.python_child import own_session
from node.worker_start import command, environment


class WorkerProcess(Protocol):
    """A worker's process, with pipes to its descriptors 0, 1 and 2."""

    pid: int
    stdin: trio.abc.SendStream
    stdout: trio.abc.ReceiveStream
    stderr: trio.abc.ReceiveStream

    @property
    def returncode(self) -> int | None:
        """Its exit status, minus the signal's number where one ended it; None while it lives or where nobody knows."""

    async def wait(self) -> object:
        """Until it has ended."""

    def kill(self) -> None:
        """End it for sure, stopped or not. Harmless when it has ended."""

    def release(self) -> None:
        """Give up what the system keeps of it, once it has ended."""


class SpawnedWorker:
    """A `WorkerProcess` that is a child of ours."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._process = process
        self.pid, self.stdin, self.stdout, self.stderr = process.pid, process.stdin, process.stdout, process.stderr

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    async def wait(self) -> object:
        return await self._process.wait()

    def kill(self) -> None:
        self._process.kill()

    def release(self) -> None:
        pass  # waiting for it did that


async def spawn_worker(python: str) -> WorkerProcess:
    """Start a worker under the interpreter `python`.

    Raises:
        OSError: there is no such interpreter.
    """
    process = await trio.lowlevel.open_process(
        command(python),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        **own_session(),
    )
    return SpawnedWorker(process)
