"""The node's side of the engine worker: a child process that holds stages. Knows pipes; no tensor library.

Resource handling: `open_engine` owns the process, its pipes and the tasks that serve them. Leaving the context ends the
worker for sure: its input is closed, which makes it exit, and it is killed if that takes longer than `GRACE_S`. A node
that is killed itself closes the same pipe, so that the worker never outlives it.

Error handling: the worker's death is an event, not an accident: every call that waits, and every later one, raises
`WorkerDied` with the worker's last words, and `died` is set. The context stays open, for its owner to leave.
"""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import trio

from node.engine.base import Buffer, StageInfo, StageSpec, Step, StepResult
from node.engine.messages import (
    PREFIX,
    CloseStage,
    DeviceChoice,
    Free,
    Load,
    Loaded,
    Ran,
    Ready,
    Refused,
    Reply,
    Request,
    Reserve,
    Run,
    SetThreads,
    Start,
    pack_head,
    unpack_prefix,
    unpack_reply,
)
from node.errors import BadWireData, EngineError, LoadFailed, OutOfKV, WorkerDied
from node.wire.records import Hardware

logger = logging.getLogger(__name__)

GRACE_S = 2.0
"""Between closing the worker's input and killing it."""

LAST_WORDS_BYTES = 8192
"""Of the worker's stderr, kept to say why it died."""

JOIN_BYTES = 64 * 1024
"""Bodies up to a pipe's usual capacity are written together with their header, in one system call."""

SPIN = {
    # How long idle GNU OpenMP threads spin before they sleep. Decode of a 135 M model on 2 cores, ms per token:
    # the default: 32 in bf16 alone, 220 in fp32 with two workers of 2 threads each; never spinning
    # (OMP_WAIT_POLICY=PASSIVE): 54 and 83; this: 33 and 73. A value from outside wins.
    "GOMP_SPINCOUNT": "10000",
}

ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",  # the models room fetches; a worker only reads files
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONUNBUFFERED": "1",
}


@dataclass(slots=True)
class Waiting:
    """A caller that waits for its reply."""

    event: trio.Event = field(default_factory=trio.Event)
    reply: Reply | None = None
    body: Buffer = b""


class ProcessStage:
    """A `base.Stage` in the worker process."""

    def __init__(self, engine: EngineProcess, number: int, info: StageInfo) -> None:
        self.info = info
        self._engine = engine
        self._number = number

    async def reserve(self, session: str, tokens: int) -> None:
        """See `base.Stage.reserve`. Cancelled while it waits, it takes the reservation back."""
        try:
            await self._engine._call(lambda number: Reserve(number, self._number, session, tokens))
        except trio.Cancelled:
            self._engine._post(Free(self._engine._next_number(), self._number, session))
            raise

    async def run(self, step: Step) -> StepResult:
        """See `base.Stage.run`. Cancelled while it waits, it leaves the step done or not: free the sequence."""

        def request(number: int) -> Run:
            return Run(number, self._number, step.session, step.position, step.count, step.dtype, step.sampling)

        reply, body = await self._engine._call(request, memoryview(step.data).cast("B"))
        if not isinstance(reply, Ran):
            raise EngineError(f"the worker answered a step with {reply}")
        return StepResult(body, reply.token, reply.compute_ms, reply.head_ms)

    async def free(self, session: str) -> None:
        """See `base.Stage.free`. Takes effect even where the caller is being cancelled."""
        await self._engine._farewell(lambda number: Free(number, self._number, session))

    async def close(self) -> None:
        """See `base.Stage.close`. Takes effect even where the caller is being cancelled."""
        await self._engine._farewell(lambda number: CloseStage(number, self._number))


class EngineProcess:
    """A `base.Engine` in a child process. Made by `open_engine`."""

    hardware: Hardware

    def __init__(self, process: trio.Process) -> None:
        self.died = trio.Event()
        """Set once the process has ended, wanted or not."""
        self._process = process
        self._death: WorkerDied | None = None
        self._last_words = bytearray()
        self._stderr_ended = trio.Event()
        self._numbers = count(1)
        self._waiting: dict[int, Waiting] = {}
        # Unbounded, so that posting never waits and a cancelled caller can still say `Free`; in fact as long as there
        # are callers, since each of them waits for its reply.
        self._outbox, self._to_write = trio.open_memory_channel[tuple[bytes, Buffer]](math.inf)

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    async def load(self, spec: StageSpec) -> ProcessStage:
        """See `base.Engine.load`. Cancelled while it waits, it gives the load up."""
        stage = self._next_number()
        try:
            reply, _ = await self._call(lambda number: Load(number, stage, spec))
        except trio.Cancelled:
            self._post(CloseStage(self._next_number(), stage))
            raise
        if not isinstance(reply, Loaded):
            raise EngineError(f"the worker answered a load with {reply}")
        return ProcessStage(self, stage, reply.info)

    async def set_threads(self, threads: int) -> None:
        """See `base.Engine.set_threads`."""
        await self._call(lambda number: SetThreads(number, threads))

    # --- calls ------------------------------------------------------------------------------------------------------

    def _next_number(self) -> int:
        return next(self._numbers)

    def _post(self, request: Request, data: Buffer = b"") -> None:
        """Queue a request; nothing happens when the worker is dead."""
        if self._death is None:
            self._outbox.send_nowait((pack_head(request, len(data)), data))

    async def _call(self, make: Callable[[int], Request], data: Buffer = b"") -> tuple[Reply, Buffer]:
        """Post a request and wait for its reply.

        Raises:
            WorkerDied: the worker is gone, or goes before it replies.
            EngineError: the worker refused; its kind as the worker said.
        """
        number = self._next_number()
        waiting = self._waiting[number] = Waiting()
        try:
            if self._death is None:
                self._post(make(number), data)
                await waiting.event.wait()
        finally:
            del self._waiting[number]
        if waiting.reply is None:
            raise self._obituary()
        if isinstance(waiting.reply, Refused):
            raise _error_of(waiting.reply)
        return waiting.reply, waiting.body

    async def _farewell(self, make: Callable[[int], Request]) -> None:
        """Post a request at once and wait for it to be done; a dead worker has done it already."""
        try:
            await self._call(make)
        except WorkerDied:
            await trio.lowlevel.checkpoint()

    def _obituary(self) -> WorkerDied:
        """A new instance each time: an exception that is raised in two tasks mixes their tracebacks."""
        death = self._death
        return WorkerDied(death.code, death.last_words) if death else WorkerDied(None)

    # --- tasks of `open_engine` -------------------------------------------------------------------------------------

    async def _greet(self, device: DeviceChoice, threads: int) -> None:
        reply, _ = await self._call(lambda number: Start(number, device, threads))
        if not isinstance(reply, Ready):
            raise EngineError(f"the worker answered its greeting with {reply}")
        self.hardware = reply.hardware

    async def _write_requests(self) -> None:
        """The one writer, so that a cancelled caller never leaves half a message in the pipe."""
        pipe = self._process.stdin
        assert pipe is not None
        try:
            async for head, data in self._to_write:
                if len(data) <= JOIN_BYTES:
                    await pipe.send_all(head + bytes(data))
                else:
                    await pipe.send_all(head)
                    await pipe.send_all(memoryview(data))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the worker is gone: the reader sees it too, and tells

    async def _read_replies(self) -> None:
        pipe = self._process.stdout
        assert pipe is not None
        try:
            while True:
                header_bytes, body_bytes = unpack_prefix(await _receive_exactly(pipe, PREFIX.size))
                reply = unpack_reply(await _receive_exactly(pipe, header_bytes))
                body = await _receive_exactly(pipe, body_bytes)
                if waiting := self._waiting.get(reply.number):
                    waiting.reply, waiting.body = reply, body
                    waiting.event.set()
        except (EOFError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except BadWireData as error:
            logger.error("the engine worker is ended: %s", error)
        finally:  # also where the node leaves: a caller who waits in a shielded scope would wait for ever
            await self._end()

    async def _read_stderr(self) -> None:
        pipe = self._process.stderr
        assert pipe is not None
        try:
            while words := await pipe.receive_some(LAST_WORDS_BYTES):
                logger.debug("engine worker: %s", words.decode(errors="replace").rstrip())
                self._last_words = (self._last_words + words)[-LAST_WORDS_BYTES:]
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._stderr_ended.set()

    async def _end(self) -> None:
        """Have the process ended and every caller told. Bounded in time; harmless when repeated."""
        with trio.CancelScope(shield=True):
            assert self._process.stdin is not None
            await self._process.stdin.aclose()
            with trio.move_on_after(GRACE_S):
                await self._process.wait()
            if self._process.returncode is None:
                self._process.kill()
                await self._process.wait()
            with trio.move_on_after(GRACE_S):  # what it said last may still be in the pipe
                await self._stderr_ended.wait()
            if self._death is None:
                self._death = WorkerDied(self._process.returncode, last_sentence(bytes(self._last_words)))
            for waiting in self._waiting.values():
                waiting.event.set()
            self.died.set()


@asynccontextmanager
async def open_engine(
    *, threads: int, device: DeviceChoice = "auto", python: str = sys.executable
) -> AsyncIterator[EngineProcess]:
    """Start a worker under the interpreter `python` and end it with the context.

    The interpreter's environment needs msgspec, numpy, psutil, torch, transformers and safetensors; nothing of ours.

    Raises:
        WorkerDied: it ended before it was ready, for instance because its interpreter lacks a package.
        EngineError: the device is not there.
        OSError: there is no such interpreter.
    """
    process = await trio.lowlevel.open_process(
        [python, "-P", str(Path(__file__).with_name("bootstrap.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**SPIN, **os.environ, **ENVIRONMENT},
        **_own_session(),
    )
    engine = EngineProcess(process)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine._read_stderr)
            nursery.start_soon(engine._read_replies)
            nursery.start_soon(engine._write_requests)
            try:
                await engine._greet(device, threads)
                yield engine
            finally:
                await engine._end()
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # Ours is the only task here that raises: its error comes out as it went in, without the nursery's wrapping.
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from group.exceptions[0].__cause__
        raise
    finally:
        with trio.CancelScope(shield=True):
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    await pipe.aclose()


def last_sentence(stderr: bytes) -> str:
    """The last line that says something: of a traceback, its error."""
    lines = [line.strip() for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:500] if lines else ""


def _own_session() -> dict[str, Any]:
    """Keeps a terminal's Ctrl-C and hang-up from the worker: the node says goodbye first, then ends it."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


async def _receive_exactly(pipe: trio.abc.ReceiveStream, wanted: int) -> bytearray:
    """`wanted` bytes. Raises EOFError when the pipe ends before."""
    data = bytearray(wanted)
    filled = 0
    while filled < wanted:
        part = await pipe.receive_some(min(wanted - filled, 1 << 20))
        if not part:
            raise EOFError
        data[filled : filled + len(part)] = part
        filled += len(part)
    return data


def _error_of(refused: Refused) -> EngineError:
    match refused.kind:
        case "kv":
            return OutOfKV(refused.needed_tokens, refused.free_tokens)
        case "load":
            return LoadFailed(refused.layers, refused.text)
        case "engine":
            return EngineError(refused.text)
