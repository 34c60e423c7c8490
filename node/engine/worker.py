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
import traceback
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from io import FileIO

from node.engine.backend import Backend, LoadedStage, open_backend
from node.engine.base import Buffer, Step
from node.engine.messages import (
    PREFIX,
    TEXT_LIMIT,
    CloseStage,
    Done,
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
    unpack_request,
)
from node.errors import BadWireData, EngineError, LoadFailed, OutOfKV

EXIT_BAD_DATA = 3
"""The process's status after bytes on its pipe that are no request."""


@dataclass(slots=True)
class Loading:
    """A load that is under way."""

    request: Load
    progress: Generator[None, None, LoadedStage]


class Worker:
    """Serves requests until the process ends."""

    def __init__(self, inbox: queue.SimpleQueue[tuple[Request, Buffer]], out: FileIO) -> None:
        self._inbox = inbox
        self._out = out
        self._backend: Backend | None = None
        self._stages: dict[int, LoadedStage] = {}
        self._loading: deque[Loading] = deque()

    def serve(self) -> None:
        """Never returns: the reading thread ends the process when the node is gone."""
        while True:
            try:
                request, body = self._inbox.get(block=not self._loading)
            except queue.Empty:
                self._load_some()
                continue
            try:
                reply, data = self._answer(request, body)
                if reply is not None:
                    self._send(reply, data)
            except Exception as error:  # the worker's door: whatever went wrong is the caller's to know
                self._send(refusal(request.number, error))

    def _answer(self, request: Request, body: Buffer) -> tuple[Reply | None, Buffer]:
        """The reply, or None where it comes later."""
        match request:
            case Start(number, device, threads):
                self._backend = open_backend(device)
                self._backend.set_threads(threads)
                return Ready(number, self._backend.measure()), b""
            case Load(spec=spec):
                self._loading.append(Loading(request, self._opened().load(spec)))
                return None, b""
            case Run(number, stage, session, position, count, dtype, sampling):
                result = self._stage(stage).run(Step(session, position, count, body, dtype, sampling))
                return Ran(number, result.token, result.compute_ms, result.head_ms), result.data
            case Reserve(number, stage, session, tokens):
                self._stage(stage).reserve(session, tokens)
            case Free(number, stage, session):
                if held := self._stages.get(stage):
                    held.free(session)
            case CloseStage(number, stage):
                self._close(stage)
            case SetThreads(number, threads):
                self._opened().set_threads(threads)
        return Done(request.number), b""

    def _opened(self) -> Backend:
        if self._backend is None:
            raise EngineError("the worker was asked for work before it was greeted")
        return self._backend

    def _stage(self, number: int) -> LoadedStage:
        try:
            return self._stages[number]
        except KeyError:
            raise EngineError(f"stage {number} is closed or still loading") from None

    def _close(self, number: int) -> None:
        for loading in [loading for loading in self._loading if loading.request.stage == number]:
            self._loading.remove(loading)
            loading.progress.close()
            gc.collect()  # modules are full of cycles, and hold their weights
            self._send(refusal(loading.request.number, EngineError("the load was given up")))
        if held := self._stages.pop(number, None):
            held.close()

    def _load_some(self) -> None:
        """One tensor's worth of a load; they take turns, so that a part of what is held is there soon."""
        failed = False
        request, progress = self._loading[0].request, self._loading[0].progress
        try:
            next(progress)
            self._loading.rotate(-1)
        except StopIteration as finished:
            self._loading.popleft()
            held: LoadedStage = finished.value
            self._stages[request.stage] = held
            self._send(Loaded(request.number, held.info))
        except Exception as error:  # the worker's door
            self._loading.popleft()
            self._send(refusal(request.number, error))
            failed = True
        if failed:  # not above: the error holds what was loaded
            gc.collect()

    def _send(self, reply: Reply, data: Buffer = b"") -> None:
        write_all(self._out, pack_head(reply, len(data)))
        if len(data):
            write_all(self._out, data)


def refusal(number: int, error: Exception) -> Refused:
    """An error as a message. Those that are not ours are faults: their traceback goes to the log as well."""
    text = str(error)[:TEXT_LIMIT]
    match error:
        case OutOfKV():
            return Refused(number, "kv", text, needed_tokens=error.needed_tokens, free_tokens=error.free_tokens)
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


def read_exactly(source: FileIO, count: int) -> bytearray | None:
    """`count` bytes, or None when the pipe ends before."""
    data = bytearray(count)
    view = memoryview(data)
    while view:
        got = source.readinto(view)
        if not got:
            return None
        view = view[got:]
    return data


def read_requests(source: FileIO, inbox: queue.SimpleQueue[tuple[Request, Buffer]]) -> None:
    """The reading thread. Ends the process with the pipe: with status 0 at its end, otherwise at garbage."""
    status = 0
    try:
        while (prefix := read_exactly(source, PREFIX.size)) is not None:
            header_bytes, body_bytes = unpack_prefix(prefix)
            header, body = read_exactly(source, header_bytes), read_exactly(source, body_bytes)
            if header is None or body is None:
                break
            inbox.put((unpack_request(header), body))
    except BadWireData as error:
        print(f"engine worker: {error}; the worker ends", file=sys.stderr)
        status = EXIT_BAD_DATA
    finally:
        sys.stderr.flush()
        os._exit(status)  # not sys.exit: the main thread may be deep in a load or a product


def take_pipes() -> tuple[FileIO, FileIO]:
    """Our pipes' own descriptors; 0 reads nothing and 1 leads to 2 from now on, whatever a library prints."""
    source, out = FileIO(os.dup(0), "r"), FileIO(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return source, out


def main() -> None:
    """Entry of the child process."""
    # Signals that a terminal or a service manager sends to all of us: the node says goodbye first, then ends us.
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    source, out = take_pipes()
    inbox: queue.SimpleQueue[tuple[Request, Buffer]] = queue.SimpleQueue()  # bounded by the node: one reply per request
    threading.Thread(target=read_requests, args=(source, inbox), name="requests", daemon=True).start()
    Worker(inbox, out).serve()
