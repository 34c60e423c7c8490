"""The node's side of the fork server: asks it for workers, and starts it. Linux only."""

from __future__ import annotations

import array
import os
import signal
import socket
import subprocess
from contextlib import suppress

import trio

from node.engine.base import BackendName
from node.engine.fork_server import (
    PACKET_BYTES,
    Ended,
    Fork,
    Forked,
    Import,
    Imported,
    decode,
    descriptors_of,
    encode,
)
from node.engine.last_words import LastWords
from node.engine.patience import START_S
from node.engine.spawning import WorkerProcess
from node.errors import WorkerDied, WorkerHung
from node.worker_start import StartedForkServer, start_fork_server

FORK_S = 10.0
"""For a worker, once everything is imported."""

STATUS_S = 2.0
"""Between a worker's end and being told how it ended."""


class ForkedWorker:
    """A `spawning.WorkerProcess` that is a child of the fork server."""

    def __init__(self, pid: int, process: int, stdin: int, stdout: int, stderr: int) -> None:
        self.pid = pid
        self.stdin: trio.abc.SendStream = trio.lowlevel.FdStream(stdin)
        self.stdout: trio.abc.ReceiveStream = trio.lowlevel.FdStream(stdout)
        self.stderr: trio.abc.ReceiveStream = trio.lowlevel.FdStream(stderr)
        self.returncode: int | None = None
        self.told = trio.Event()
        """How it ended."""
        self._process = process
        self._waiting = trio.Lock()
        """One at a time may wait for a descriptor."""

    async def wait(self) -> object:
        async with self._waiting:
            await trio.lowlevel.wait_readable(self._process)
        with trio.move_on_after(STATUS_S):
            await self.told.wait()
        return self.returncode

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._process, signal.SIGKILL)

    def release(self) -> None:
        os.close(self._process)


class _ServerProcess:
    """The process, which was started without trio."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self.pid = process.pid
        self.stdout = trio.lowlevel.FdStream(os.dup(process.stdout.fileno()))
        process.stdout.close()
        self._process = process
        self._descriptor = os.pidfd_open(process.pid)  # nobody has waited for it: the number is its own
        self._waiting = trio.Lock()
        """One at a time may wait for a descriptor."""

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    def kill(self) -> None:
        self._process.kill()

    async def wait(self) -> None:
        async with self._waiting:
            if self._process.returncode is None:
                await trio.lowlevel.wait_readable(self._descriptor)
                self._process.wait()
                os.close(self._descriptor)


class ForkServer:
    """A fork server that runs. Made by `start`; its tasks live in the nursery given there."""

    def __init__(self, process: _ServerProcess, control: trio.socket.SocketType, backends: tuple[str, ...]) -> None:
        self.ended = trio.Event()
        self.has_imported = False
        """It has been ready for a worker to be asked for."""
        self._backends = set(backends)
        self._process, self._control = process, control
        self._imported = trio.Event()
        self._asking = trio.Lock()
        self._answer: trio.Event | None = None
        self._forked: tuple[int, int] | None = None
        """Process id and descriptor of the worker that was asked for last."""
        self._workers: dict[int, ForkedWorker] = {}
        self._endings: dict[int, int] = {}
        """Process id to status, of a worker that ended before we knew it."""
        self._last_words = LastWords()

    @classmethod
    def take_over(cls, nursery: trio.Nursery, started: StartedForkServer) -> ForkServer:
        """Of one that was started before there was an event loop."""
        server = cls(_ServerProcess(started.process), trio.socket.from_stdlib_socket(started.control), started.backends)
        nursery.start_soon(server._read_words)
        nursery.start_soon(server._read_control)
        return server

    @classmethod
    async def start(cls, nursery: trio.Nursery, python: str, backends: tuple[str, ...]) -> ForkServer:
        """Start one under the interpreter `python`; it imports what these backends need while the caller does other
        things.

        Raises:
            OSError: there is no such interpreter.
        """
        with trio.CancelScope(shield=True):  # some milliseconds; a process that nobody knows of would stay
            started = await trio.to_thread.run_sync(start_fork_server, python, backends)
        return cls.take_over(nursery, started)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def use(self, backend: BackendName) -> None:
        """A model has needed this backend: the next worker shall find it imported. Nothing where it has been."""
        async with self._asking:
            if backend in self._backends or self.ended.is_set():
                return
            self._backends.add(backend)
            self._imported = trio.Event()
            with suppress(OSError):  # it has just ended: the next one is started with what is known then
                await self._control.send(encode(Import(backend)))

    async def fork(self) -> WorkerProcess:
        """A worker, as soon as everything is imported.

        Raises:
            WorkerDied: the server has ended, or does before it answers, or had to be ended since it did not.
        """
        async with self._asking:
            with trio.move_on_after(START_S):
                await self._imported.wait()
            if not self._imported.is_set():
                await self.end()
                raise WorkerHung(self._process.returncode, "importing its libraries", START_S, self._words)
            pipes = [os.pipe(), os.pipe(), os.pipe()]  # each: the end to read from, the end to write to
            theirs = [pipes[0][0], pipes[1][1], pipes[2][1]]
            ours = [pipes[0][1], pipes[1][0], pipes[2][0]]
            try:
                pid, process = await self._ask(theirs)
            except BaseException:
                for descriptor in ours:
                    os.close(descriptor)
                raise
            finally:
                for descriptor in theirs:
                    os.close(descriptor)
            worker = self._workers[pid] = ForkedWorker(pid, process, *ours)
            if (code := self._endings.pop(pid, None)) is not None:
                self._note_end(pid, code)
            return worker

    def _note_end(self, pid: int, code: int) -> None:
        if worker := self._workers.pop(pid, None):
            worker.returncode = code
            worker.told.set()
        else:
            self._endings = {pid: code}

    async def _ask(self, pipes: list[int]) -> tuple[int, int]:
        """Process id and descriptor of a new worker with these pipes."""
        self._answer, self._forked = trio.Event(), None
        with trio.CancelScope(shield=True, deadline=trio.current_time() + FORK_S) as patience:
            # Shielded: a worker that nobody waits for any more is known to us all the same, and ends with its pipes.
            if not self.ended.is_set():
                with suppress(OSError):
                    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", pipes).tobytes())
                    await self._control.sendmsg([encode(Fork())], [rights])
                    await self._answer.wait()
        if self._forked is not None:
            return self._forked
        await self.end()
        if patience.cancelled_caught:
            raise WorkerHung(self._process.returncode, "forking from what is imported", FORK_S, self._words)
        raise WorkerDied(self._process.returncode, self._words)

    @property
    def _words(self) -> str:
        return self._last_words.sentence

    async def _read_control(self) -> None:
        try:
            while True:
                packet, ancillary, *_ = await self._control.recvmsg(PACKET_BYTES, socket.CMSG_SPACE(4))
                descriptors = descriptors_of(ancillary)
                match decode(packet) if packet else None:
                    case Imported():
                        self.has_imported = True
                        self._imported.set()
                    case Forked(pid) if len(descriptors) == 1 and self._answer is not None:
                        self._forked = (pid, descriptors[0])
                        self._answer.set()
                    case Ended(pid, code):
                        self._note_end(pid, code)
                    case _:
                        break
        except (OSError, trio.ClosedResourceError):
            pass  # it is gone, or we have ended it
        finally:
            with trio.CancelScope(shield=True):
                await self.end()

    async def _read_words(self) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while words := await self._process.stdout.receive_some(8192):
                self._last_words.add(words)

    async def end(self) -> None:
        """Have it ended. Its workers live on. Harmless when repeated."""
        self._control.close()
        self._process.kill()
        await self._process.wait()
        self.ended.set()
        self._imported.set()  # who waits for it learns that it will never come
        if self._answer is not None:
            self._answer.set()
