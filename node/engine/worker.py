"""The engine worker: a plain loop in a child process. Knows stages and steps; nothing of trio, peers or people.

The main thread computes. A second thread reads requests from the pipe, which has two uses: the node never waits to
write, and the end of the pipe is seen at once, also in the middle of a load or a step. That end means that the node is
gone, however it went (kill -9 too), and ends the process on the spot. Linux's PDEATHSIG is no substitute: it fires
when the *thread* that started us ends, and trio starts processes from threads that come and go.

Loading goes on tensor by tensor between requests, so that a stage in service answers while its successor loads.
"""

from __future__ import annotations

import gc
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedReader, FileIO
from typing import Protocol, assert_never

from msgspec.structs import replace

from node.engine.backend import BackendLost, KeepsPrefixes, LoadedStage
from node.engine.backends import Backends
from node.engine.base import BackendInfo, Batch, StageSpec
from node.engine.messages import (
    PREFIX,
    TEXT_LIMIT,
    Close,
    Done,
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
    Start,
    pack_head,
    text_of,
    unpack_prefix,
    unpack_request,
)
from node.engine.shared_rows import WORTH_BYTES, SharedRows
from node.errors import BadWireData, EngineError, LoadFailed, OutOfKV, TooLong
from node.wire.frames import Buffer
from node.wire.records import Hardware

EXIT_BACKEND_LOST = 5
"""The process's status where the backend computes nothing any more."""
EXIT_BAD_DATA = 3
"""The process's status after bytes on its pipe that are no request."""


Inbox = queue.SimpleQueue[tuple[Request, Buffer]]

TELL_EVERY_S = 0.2
"""How often at most a load says that it goes on."""

LOAD_LEAST_EVERY_S = 0.1
"""A load is got on with so often, however many batches wait: two may lie ready all the time."""

READ_AHEAD_BYTES = 64 * 1024
"""A pipe's usual capacity: a request with its rows comes in one read, where it fits."""


class Replies:
    """The pipe to the node, which both threads write to; a message goes out whole."""

    def __init__(self, out: FileIO) -> None:
        self._out = out
        self._lock = threading.Lock()

    def send(self, reply: Reply, data: Buffer = b"") -> None:
        """Write a reply. Waits for the node to read, as it does all the time."""
        head = pack_head(reply, len(data))
        with self._lock:
            if len(data) <= READ_AHEAD_BYTES:  # in one system call
                write_all(self._out, head + bytes(data) if data else head)
            else:
                write_all(self._out, head)
                write_all(self._out, data)


class Activity:
    """What the thread that computes is at, for the one that reads to tell."""

    def __init__(self) -> None:
        self._now: tuple[str, float] = ("", time.monotonic())

    def begin(self, what: str) -> None:
        """Say what is being done from now on; nothing where `what` is empty."""
        self._now = (what, time.monotonic())

    def told(self) -> tuple[str, float]:
        """What, and for how many seconds."""
        what, since_s = self._now
        return what, time.monotonic() - since_s


@dataclass(slots=True)
class Loading:
    """A load that is under way."""

    request: Load
    progress: Generator[float | None, None, LoadedStage]
    share: float = 0.0
    """Of its bytes, that is there."""
    told_s: float = 0.0
    """When the node was told last that it goes on."""


class Loader(Protocol):
    """What the worker loads with: `Backends`, or a script in tests."""

    @property
    def infos(self) -> tuple[BackendInfo, ...]: ...

    def measure(self) -> Hardware: ...

    def load(self, spec: StageSpec) -> Generator[float | None, None, LoadedStage]: ...

    def set_threads(self, threads: int) -> None: ...


class Worker:
    """Serves requests until the process ends."""

    def __init__(self, inbox: Inbox, replies: Replies, activity: Activity, loader: Loader | None = None) -> None:
        self._inbox, self._replies, self._activity = inbox, replies, activity
        self._loader = loader
        self._shared_rows: SharedRows | None = None
        self._stages: dict[int, LoadedStage] = {}
        self._loading: deque[Loading] = deque()
        self._loaded_s = time.monotonic()
        """When a load was got on with last."""

    @property
    def loads(self) -> int:
        """That are under way."""
        return len(self._loading)

    def serve(self) -> None:
        """Never returns: the reading thread ends the process when the node is gone."""
        while True:
            self.serve_one()

    def serve_one(self) -> None:
        """Answer the next request, or get on with a load; waits where there is neither."""
        if self._loading and time.monotonic() - self._loaded_s > LOAD_LEAST_EVERY_S:
            self._load_some()
            return
        try:
            request, body = self._inbox.get(block=not self._loading)
        except queue.Empty:
            self._load_some()
            return
        self._activity.begin(text_of(request))
        try:
            reply, data = self._answer(request, body)
            if reply is not None:
                self._replies.send(reply, data)
        except BackendLost as error:
            print(f"engine worker: nothing can be computed any more: {error}; the worker ends", file=sys.stderr)
            sys.stderr.flush()
            os._exit(EXIT_BACKEND_LOST)  # not sys.exit: what libraries do at the end may wait for the device
        except Exception as error:  # the worker's door: whatever went wrong is the caller's to know
            self._replies.send(refusal(request.number, error))
        self._activity.begin("")

    def _answer(self, request: Request, body: Buffer) -> tuple[Reply | None, Buffer]:
        """The reply, or None where it comes later."""
        match request:
            case Start(number, device, threads, shared, hardware):
                self._loader = Backends(device, threads)
                self._shared_rows = SharedRows.open(shared) if shared else None
                shares = self._shared_rows is not None
                if hardware is None or hardware.device != self._loader.device:  # a card was added, or is gone
                    hardware = self._loader.measure()
                return Ready(number, hardware, self._loader.infos, shares), b""
            case Load(spec=spec):
                self._loading.append(Loading(request, self._opened().load(spec)))
                return None, b""
            case Run():
                return self._run(request, body)
            case Open(number, stage, sequence, start, end, sampling, kv_tokens, prefix):
                opened = self._stage(stage)
                opened.open(sequence, start, end, sampling, kv_tokens)
                held_tokens = 0
                if prefix and isinstance(opened, KeepsPrefixes):
                    held_tokens = opened.take_up(sequence, prefix)
                return Opened(number, held_tokens), b""
            case Rewind(number, stage, sequence, position):
                self._stage(stage).rewind(sequence, position)
            case Close(number, stage, sequence, keep):
                if held := self._stages.get(stage):
                    if keep and isinstance(held, KeepsPrefixes):
                        with suppress(EngineError):  # memory or the library: then nothing is kept
                            held.keep(sequence, keep)
                    held.close(sequence)
            case DropStage(number, stage):
                self._drop(stage)
            case SetThreads(number, threads):
                self._opened().set_threads(threads)
            case Ping():
                raise EngineError("a ping is for the thread that reads")
            case _:
                assert_never(request)
        return Done(request.number), b""

    def _run(self, request: Run, body: Buffer) -> tuple[Reply, Buffer]:
        memory, shared = self._shared_rows, request.shared
        if shared is not None and memory is None:
            raise EngineError("rows in memory that the worker does not have")
        if memory is not None and shared is not None and shared.size_bytes:
            body = memory.request(shared.place, shared.size_bytes)
        result = self._stage(request.stage).run(Batch(request.slots, body, request.dtype))
        ran = Ran(request.number, result.slots, result.compute_ms, result.head_ms, result.free_kv_tokens)
        if memory is None or shared is None or len(result.data) < WORTH_BYTES:
            return ran, result.data
        memory.put_reply(shared.place, result.data)
        return replace(ran, shared_bytes=len(result.data)), b""

    def _opened(self) -> Loader:
        if self._loader is None:
            raise EngineError("the worker was asked for work before it was greeted")
        return self._loader

    def _stage(self, number: int) -> LoadedStage:
        try:
            return self._stages[number]
        except KeyError:
            raise EngineError(f"stage {number} is closed or still loading") from None

    def _drop(self, number: int) -> None:
        for loading in [loading for loading in self._loading if loading.request.stage == number]:
            self._loading.remove(loading)
            loading.progress.close()
            gc.collect()  # modules are full of cycles, and hold their weights
            self._replies.send(refusal(loading.request.number, EngineError("the load was given up")))
        if held := self._stages.pop(number, None):
            held.drop()

    def _load_some(self) -> None:
        """One piece of a load; they take turns, so that a part of what is held is there soon."""
        failed = False
        loading = self._loading[0]
        request = loading.request
        self._activity.begin(text_of(request))
        try:
            if (share := next(loading.progress)) is not None:
                loading.share = share
            self._loading.rotate(-1)
            if (now_s := time.monotonic()) - loading.told_s > TELL_EVERY_S:
                loading.told_s = now_s
                self._replies.send(LoadGoesOn(request.number, loading.share))
        except StopIteration as finished:
            self._loading.popleft()
            held: LoadedStage = finished.value
            self._stages[request.stage] = held
            self._replies.send(Loaded(request.number, held.info))
        except Exception as error:  # the worker's door
            self._loading.popleft()
            self._replies.send(refusal(request.number, error))
            failed = True
        if failed:  # not above: the error holds what was loaded
            gc.collect()
        self._loaded_s = time.monotonic()
        self._activity.begin("")


def refusal(number: int, error: Exception) -> Refused:
    """An error as a message. Those that are not ours are faults: their traceback goes to the log as well."""
    text = str(error)[:TEXT_LIMIT]
    match error:
        case OutOfKV():
            return Refused(number, "kv", text, needed_tokens=error.needed_tokens, free_tokens=error.free_tokens)
        case TooLong():
            return Refused(number, "long", text, needed_tokens=error.tokens, free_tokens=error.most_tokens)
        case LoadFailed():
            return Refused(number, "load", error.reason[:TEXT_LIMIT], layers=error.layers)
        case EngineError():
            return Refused(number, "engine", text)
        case _:
            traceback.print_exception(error)
            return Refused(number, "engine", f"the backend failed: {type(error).__name__}: {text}")


def write_all(out: FileIO, data: Buffer) -> None:
    """Write to an unbuffered pipe, which may take a part at a time."""
    view = memoryview(data)
    while view:
        view = view[out.write(view) :]


def read_exactly(source: BufferedReader[FileIO], count: int) -> bytearray | None:
    """`count` bytes, or None when the pipe ends before."""
    data = bytearray(count)
    view = memoryview(data)
    while view:
        got = source.readinto(view)
        if not got:
            return None
        view = view[got:]
    return data


def read_requests(source: BufferedReader[FileIO], inbox: Inbox, replies: Replies, activity: Activity) -> None:
    """The reading thread. Answers pings by itself, whatever the other thread is at. Ends the process with the pipe:
    with status 0 at its end, otherwise at garbage."""
    status = 0
    try:
        while (prefix := read_exactly(source, PREFIX.size)) is not None:
            header_bytes, body_bytes = unpack_prefix(prefix)
            header, body = read_exactly(source, header_bytes), read_exactly(source, body_bytes)
            if header is None or body is None:
                break
            request = unpack_request(header)
            if isinstance(request, Ping):
                replies.send(Pong(request.number, *activity.told()))
            else:
                inbox.put((request, body))
    except BadWireData as error:
        print(f"engine worker: {error}; the worker ends", file=sys.stderr)
        status = EXIT_BAD_DATA
    except OSError:
        status = 0  # the node is gone, and with it the pipe that the answer was for
    finally:
        sys.stderr.flush()
        os._exit(status)  # not sys.exit: the main thread may be deep in a load or a product


def take_pipes() -> tuple[BufferedReader[FileIO], FileIO]:
    """Our pipes' own descriptors; 0 reads nothing and 1 leads to 2 from now on, whatever a library prints."""
    source, out = BufferedReader(FileIO(os.dup(0), "r"), READ_AHEAD_BYTES), FileIO(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return source, out


def ignore_signals() -> None:
    """Those that a terminal or a service manager sends to all of us: the node says goodbye first, then ends us."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def main() -> None:
    """Entry of the child process."""
    ignore_signals()
    source, out = take_pipes()
    # Bounded by the node: two batches, and one small request from each caller, who waits for the reply.
    inbox: Inbox = queue.SimpleQueue()
    replies, activity = Replies(out), Activity()
    threading.Thread(
        target=read_requests, args=(source, inbox, replies, activity), name="requests", daemon=True
    ).start()
    Worker(inbox, replies, activity).serve()
