"""The node's side of the engine worker: a child process that holds stages. Knows pipes; no tensor library.

Resource handling: `open_engine` owns the process, its pipes and the tasks that serve them. Leaving the context ends the
worker for sure: its input is closed, which makes it exit, and it is killed if that takes longer than `GRACE_S`. A node
that is killed itself closes the same pipe, so that the worker never outlives it.

Error handling: the worker's death is an event, not an accident: every call that waits, and every later one, raises
`WorkerDied` with the worker's last words, and `died` is set. A worker that hangs is killed and has died, too
(`WorkerHung`): see `watch`. The context stays open, for its owner to leave.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

import trio
from msgspec.structs import replace

from node.engine.base import (
    BATCHES_IN_FLIGHT,
    BackendInfo,
    Batch,
    BatchResult,
    DeviceChoice,
    GoesOn,
    StageInfo,
    StageSpec,
)
from node.engine.last_words import LastWords, LineBudget, lines_of
from node.engine.messages import (
    Close,
    DropStage,
    Load,
    Loaded,
    LoadGoesOn,
    Open,
    Opened,
    Ping,
    Pong,
    Ran,
    Ready,
    Refused,
    Reply,
    Request,
    Rewind,
    Run,
    SetThreads,
    Shared,
    Start,
    pack_head,
    text_of,
)
from node.engine.patience import CALL_S, START_S, StepTimes
from node.engine.places import Places
from node.engine.replies import ReplyReader
from node.engine.request_pipe import RequestPipe
from node.engine.shared_rows import WORTH_BYTES, SharedRows, path_of
from node.engine.spawning import WorkerProcess, spawn_worker
from node.engine.watch import Watch
from node.errors import BadWireData, EngineError, LoadFailed, OutOfKV, TooLong, WorkerDied, WorkerHung
from node.wire.frames import BODY_LIMIT_BYTES, Buffer, Sampling
from node.wire.records import Hardware

logger = logging.getLogger(__name__)

GRACE_S = 2.0
"""Between closing the worker's input and killing it."""

KILL_S = 5.0
"""For a killed process to be gone. One that waits for a broken disk inside the system may stay longer; we go on."""

SECOND_LOOK_S = 0.5
"""Between finding that the worker hangs and believing it."""

LOGGED_LINES, LOGGED_PER_S = 40, 10.0
"""Of the worker's stderr."""


@dataclass(slots=True)
class Waiting:
    """A caller that waits for its reply."""

    event: trio.Event = field(default_factory=trio.Event)
    reply: Reply | None = None
    body: Buffer = b""


class ProcessStage:
    """A `base.Stage` in the worker process."""

    def __init__(self, engine: EngineProcess, number: int, info: StageInfo, layers: int) -> None:
        self.info = info
        self._engine = engine
        self._number = number
        self._times = StepTimes(info, layers)

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
        stage = self._number
        try:
            reply = await self._engine._call(
                lambda number: Open(number, stage, sequence, start, end, sampling, kv_tokens, prefix)
            )
        except trio.Cancelled:
            self._engine._post(Close(self._engine._next_number(), stage, sequence))
            raise
        return reply.held_tokens if isinstance(reply, Opened) else 0

    async def run(self, batch: Batch) -> BatchResult:
        """See `base.Stage.run`."""
        rows = batch.rows
        reply, body = await self._engine._run(
            lambda number: Run(number, self._number, batch.slots, batch.dtype),
            memoryview(batch.data).cast("B"),
            self._times.allowance_s(rows),
        )
        if not isinstance(reply, Ran) or len(reply.slots) != len(batch.slots):
            raise EngineError(f"the worker answered a batch of {len(batch.slots)} slots with {reply}")
        if not any(slot.problem for slot in reply.slots):
            self._times.note(rows, reply.compute_ms)
        return BatchResult(body, reply.slots, reply.compute_ms, reply.head_ms, reply.free_kv_tokens)

    async def rewind(self, sequence: str, position: int) -> None:
        """See `base.Stage.rewind`."""
        await self._engine._call(lambda number: Rewind(number, self._number, sequence, position))

    async def close(self, sequence: str, keep: tuple[bytes, ...] = ()) -> None:
        """See `base.Stage.close`. Takes effect even where the caller is being cancelled."""
        await self._engine._farewell(lambda number: Close(number, self._number, sequence, keep))

    async def drop(self) -> None:
        """See `base.Stage.drop`. Takes effect even where the caller is being cancelled."""
        await self._engine._farewell(lambda number: DropStage(number, self._number))


class EngineProcess:
    """A `base.Engine` in a child process. Made by `open_engine`."""

    hardware: Hardware
    backends: tuple[BackendInfo, ...]

    def __init__(self, process: WorkerProcess, loaded: Callable[[StageInfo], object]) -> None:
        self._loaded = loaded
        self.died = trio.Event()
        """Set once the process has ended, wanted or not."""
        self.leaving = False
        """Its end is wanted."""
        self._process = process
        self._death: WorkerDied | None = None
        self._last_words = LastWords()
        self._stderr_ended = trio.Event()
        self._numbers = count(1)
        self._waiting: dict[int, Waiting] = {}
        self._goes_on: dict[int, GoesOn] = {}
        """Whom a load that is under way tells how far it is."""
        self._watch = Watch(trio.current_time)
        self._hang: tuple[str, float] | None = None
        """What it was at, and for how many seconds nothing was heard, where we killed it for that."""
        self._places = Places(BATCHES_IN_FLIGHT)
        self._batches: dict[int, int] = {}
        """Number to place, of those that the worker has."""
        self._shared_rows: SharedRows | None = None
        self._requests = RequestPipe(process.stdin)

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    @property
    def under_way(self) -> frozenset[int]:
        """The numbers of the batches that the worker has."""
        return frozenset(self._batches)

    @property
    def death(self) -> WorkerDied | None:
        """Why it ended, once it has: a new instance each time, for an exception that is raised in two tasks mixes
        their tracebacks."""
        match self._death:
            case None:
                return None
            case WorkerHung(code=code, running=running, waited_s=waited_s, last_words=words):
                return WorkerHung(code, running, waited_s, words)
            case WorkerDied(code=code, last_words=words):
                return WorkerDied(code, words)

    async def load(self, spec: StageSpec, goes_on: GoesOn = lambda share: None) -> ProcessStage:
        """See `base.Engine.load`. Cancelled while it waits, it gives the load up."""
        stage = self._next_number()
        posted: list[int] = []

        def request(number: int) -> Request:
            self._goes_on[number] = goes_on
            posted.append(number)
            return Load(number, stage, spec)

        try:
            reply = await self._call(request)
        except trio.Cancelled:
            self._post(DropStage(self._next_number(), stage))
            raise
        finally:
            for number in posted:
                del self._goes_on[number]
        if not isinstance(reply, Loaded):
            raise EngineError(f"the worker answered a load with {reply}")
        self._loaded(reply.info)
        return ProcessStage(self, stage, reply.info, spec.end - spec.start)

    async def set_threads(self, threads: int) -> None:
        """See `base.Engine.set_threads`."""
        await self._call(lambda number: SetThreads(number, threads))

    # --- calls ------------------------------------------------------------------------------------------------------

    def _next_number(self) -> int:
        return next(self._numbers)

    def _post(self, request: Request, data: Buffer = b"", allowance_s: float = CALL_S) -> None:
        """Queue a request; nothing happens when the worker is dead.

        Raises:
            EngineError: it is too large for the pipe.
        """
        if self._death is None:
            head = pack_head(request, len(data))
            if isinstance(request, Load):
                self._watch.load_posted(request.number, text_of(request))
            elif not isinstance(request, Ping):
                self._watch.posted(request.number, text_of(request), allowance_s)
            self._requests.post(head, data)

    async def _call(self, make: Callable[[int], Request], *, allowance_s: float = CALL_S) -> Reply:
        """Post a request and wait for its reply.

        Raises:
            WorkerDied: the worker is gone, or goes before it replies.
            EngineError: the worker refused; its kind as the worker said.
        """
        number = self._next_number()
        self._post(make(number), allowance_s=allowance_s)
        return (await self._reply_to(number))[0]

    async def _run(self, make: Callable[[int], Run], rows: memoryview, allowance_s: float) -> tuple[Reply, Buffer]:
        """Have a batch run as soon as it is its turn. Raises as `_call` does."""
        place = await self._places.take()
        number = self._next_number()
        try:
            request, body = make(number), rows
            if self._shared_rows is not None:
                in_memory = WORTH_BYTES <= len(rows) <= BODY_LIMIT_BYTES
                if in_memory:
                    self._shared_rows.put_request(place, rows)
                    body = memoryview(b"")
                request = replace(request, shared=Shared(place, len(rows) if in_memory else 0))
            self._post(request, body, allowance_s)
        except EngineError:
            self._places.give_back(place)
            raise
        if self._death is None:
            self._batches[number] = place  # which the reply gives back, not we, who may have given up before
        else:
            self._places.give_back(place)
        return await self._reply_to(number)

    async def _reply_to(self, number: int) -> tuple[Reply, Buffer]:
        """The reply to what has just been posted."""
        waiting = self._waiting[number] = Waiting()
        try:
            if self._death is None:
                await waiting.event.wait()
        finally:
            del self._waiting[number]
        if waiting.reply is None:
            raise self.death or WorkerDied(None)
        if isinstance(waiting.reply, Refused):
            raise _error_of(waiting.reply)
        return waiting.reply, waiting.body

    async def _farewell(self, make: Callable[[int], Request]) -> None:
        """Post a request at once and wait for it to be done; a dead worker has done it already, and one that cannot do
        it is no reason for the node to end."""
        try:
            await self._call(make)
        except WorkerDied:
            await trio.lowlevel.checkpoint()
        except EngineError as error:
            logger.error("%s", error)

    # --- tasks of `open_engine` -------------------------------------------------------------------------------------

    async def _greet(self, device: DeviceChoice, threads: int, known: Hardware | None) -> None:
        made = SharedRows.create()
        path = "" if made is None else path_of(made[1])
        try:
            reply = await self._call(lambda number: Start(number, device, threads, path, known), allowance_s=START_S)
        finally:
            if made is not None:
                os.close(made[1])
        if not isinstance(reply, Ready):
            raise EngineError(f"the worker answered its greeting with {reply}")
        self.hardware, self.backends = reply.hardware, reply.backends
        self._shared_rows = made[0] if made is not None and reply.shares_rows else None
        self._watch.started = True

    async def _read_replies(self) -> None:
        replies = ReplyReader(self._process.stdout)
        try:
            while True:
                self._take(*await replies.next())
        except (EOFError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except BadWireData as error:
            logger.error("the engine worker is ended: %s", error)
        finally:  # also where the node leaves: a caller who waits in a shielded scope would wait for ever
            await self._end()

    def _take(self, reply: Reply, body: Buffer) -> None:
        match reply:
            case Pong(number, running, since_s):
                self._watch.ponged(number, running, since_s)
            case LoadGoesOn(number, share):
                self._watch.goes_on(number)
                if (goes_on := self._goes_on.get(number)) is not None:
                    goes_on(share)
            case _:
                self._watch.replied(reply.number)
                place = self._batches.pop(reply.number, None)
                waiting = self._waiting.get(reply.number)
                if waiting and place is not None and isinstance(reply, Ran) and reply.shared_bytes:
                    assert self._shared_rows is not None
                    body = self._shared_rows.reply(place, reply.shared_bytes)
                if place is not None:
                    self._places.give_back(place)
                if waiting:
                    waiting.reply, waiting.body = reply, body
                    waiting.event.set()

    async def _keep_watch(self) -> None:
        """Ask whether the worker is there, and end it where it hangs."""
        while not self.died.is_set():
            if self._watch.ping_is_due():
                number = self._next_number()
                self._watch.pinged(number)
                self._post(Ping(number))
            await trio.sleep_until(self._watch.next_look_s())
            if self._watch.hangs() is not None:
                # Perhaps it was us who stood still: what the worker has said meanwhile lies in the pipe.
                await trio.sleep(SECOND_LOOK_S)
            if (hang := self._watch.hangs()) is not None and self._death is None:
                self._hang = hang
                self._process.kill()
                await self._end()

    async def _read_stderr(self) -> None:
        pipe = self._process.stderr
        budget = LineBudget(LOGGED_LINES, LOGGED_PER_S)
        try:
            while words := await pipe.receive_some(8192):
                self._last_words.add(words)
                for line in budget.take(lines_of(words), trio.current_time()):
                    logger.warning("engine worker: %s", line)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._stderr_ended.set()

    async def _end(self) -> None:
        """Have the process ended and every caller told. Bounded in time; harmless when repeated."""
        with trio.CancelScope(shield=True):
            await self._requests.aclose()
            if self._hang is None:
                with trio.move_on_after(GRACE_S):
                    await self._process.wait()
            if self._process.returncode is None:
                self._process.kill()
                with trio.move_on_after(KILL_S) as patience:
                    await self._process.wait()
                if patience.cancelled_caught:
                    logger.error("the engine worker (process %d) cannot be ended; it holds its memory", self.pid)
            with trio.move_on_after(GRACE_S):  # what it said last may still be in the pipe
                await self._stderr_ended.wait()
            if self._death is not None:
                return
            code, words = self._process.returncode, self._last_words.sentence
            self._death = WorkerDied(code, words) if self._hang is None else WorkerHung(code, *self._hang, words)
            if not self.leaving:
                logger.error("%s", self._death)
            for waiting in self._waiting.values():
                waiting.event.set()
            while self._batches:  # whoever waits for a place shall learn of it too
                self._places.give_back(self._batches.popitem()[1])
            self.died.set()


Spawn = Callable[[], Awaitable[WorkerProcess]]


@asynccontextmanager
async def open_engine(
    *,
    threads: int,
    device: DeviceChoice = "auto",
    python: str = sys.executable,
    spawn: Spawn | None = None,
    known: Hardware | None = None,
    loaded: Callable[[StageInfo], object] = lambda stage: None,
) -> AsyncIterator[EngineProcess]:
    """Start a worker under the interpreter `python`, or as `spawn` does it, and end it with the context.

    The interpreter's environment needs msgspec, numpy, psutil and what a backend computes with; nothing of ours.
    `known` is what an earlier worker measured, which then is not measured again. `loaded` is told of each stage.

    Raises:
        WorkerDied: it ended before it was ready, for instance because its interpreter lacks a package.
        EngineError: the device is not there.
        OSError: there is no such interpreter.
    """
    process = await (spawn_worker(python) if spawn is None else spawn())
    engine = EngineProcess(process, loaded)
    try:
        async with trio.open_nursery() as nursery:
            for task in (engine._read_stderr, engine._read_replies, engine._requests.run, engine._keep_watch):
                nursery.start_soon(task)
            try:
                await engine._greet(device, threads, known)
                yield engine
            finally:
                engine.leaving = True
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
                await pipe.aclose()
            process.release()


def _error_of(refused: Refused) -> EngineError:
    match refused.kind:
        case "kv":
            return OutOfKV(refused.needed_tokens, refused.free_tokens)
        case "long":
            return TooLong(refused.needed_tokens, refused.free_tokens)
        case "load":
            return LoadFailed(refused.layers, refused.text)
        case "engine":
            return EngineError(refused.text)
