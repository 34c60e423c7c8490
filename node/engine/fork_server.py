"""A process that has imported everything a worker needs and forks one whenever it is asked. Linux only.

Importing what computes takes long, with torch seconds, every time. This process does it once, before anything is
needed or as soon as a model has needed it, and then does nothing but fork: its pages are shared with its children, and
it never computes, opens a device or starts a thread, none of which would survive a fork.

Its one socket is the node's: packets of `ForkMessage`. A packet that asks for a worker carries three descriptors, the
child's ends of its pipes. The answer carries one, by which the node can end the worker and see its end without knowing
it by a number that another process may have got since. The socket's end means that the node is gone, and ends us.
"""

from __future__ import annotations

import array
import gc
import os
import select
import socket
import sys
from typing import TYPE_CHECKING, NoReturn, cast

import msgspec
from msgspec import Struct

from node.engine.backend import BACKENDS
from node.engine.worker import ignore_signals
from node.engine.worker import main as run_worker

if TYPE_CHECKING:
    from node.engine.base import BackendName

PACKET_BYTES = 256
PIPES = 3

EXIT_THREADS = 4
"""The process's status where imports have started threads: a child would lack them."""


class Import(Struct, frozen=True, tag="import"):
    """To us: import what this backend computes with, too."""

    backend: str


class Imported(Struct, frozen=True, tag="imported"):
    """From us, once at the start and once for each `Import`: workers can be asked for."""


class Fork(Struct, frozen=True, tag="fork"):
    """To us, with the child's ends of its pipes."""


class Forked(Struct, frozen=True, tag="forked"):
    """The answer, with a descriptor of the process."""

    pid: int


class Ended(Struct, frozen=True, tag="ended"):
    """A worker has ended, with this status, or by the signal whose number it is the negative of."""

    pid: int
    code: int


ForkMessage = Import | Imported | Fork | Forked | Ended
encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(ForkMessage).decode


def main(control_descriptor: int, backends: str) -> None:
    """Entry of the process; `backends` are names with commas between them."""
    ignore_signals()
    control = socket.socket(fileno=control_descriptor)
    for name in backends.split(",") if backends else ():
        prepare(name)
    gc.collect()
    gc.freeze()  # a collection in a child would write to every object's page, and share none of them any more
    control.send(encode(Imported()))
    serve(control)


def prepare(name: str) -> None:
    """Import what a backend computes with; one that this version does not know or that is not installed is left out,
    for whoever loads with it says so better."""
    row = BACKENDS.get(cast("BackendName", name))
    if row is None or not row.is_installed:
        return
    row.prepare()
    if (threads := len(os.listdir("/proc/self/task"))) != 1:
        print(f"imports of the backend {name} started {threads - 1} threads; it cannot be forked", file=sys.stderr)
        sys.stderr.flush()
        os._exit(EXIT_THREADS)


def serve(control: socket.socket) -> NoReturn:
    """Fork workers and tell of their ends until the socket ends."""
    poll = select.poll()
    poll.register(control, select.POLLIN)
    workers: dict[int, int] = {}
    """Process descriptor to process id."""
    while True:
        for descriptor, _ in poll.poll():
            if descriptor != control.fileno():
                poll.unregister(descriptor)
                os.close(descriptor)
                pid, status = os.waitpid(workers.pop(descriptor), 0)
                control.send(encode(Ended(pid, os.waitstatus_to_exitcode(status))))
                continue
            packet, pipes, *_ = socket.recv_fds(control, PACKET_BYTES, PIPES)
            match decode(packet) if packet else None:
                case Import(backend):
                    prepare(backend)
                    control.send(encode(Imported()))
                case Fork() if len(pipes) == PIPES:
                    fork(control, pipes, poll, workers)
                case _:
                    os._exit(0)


def fork(control: socket.socket, pipes: list[int], poll: select.poll, workers: dict[int, int]) -> None:
    """Fork a worker with these pipes, and tell of it."""
    if (pid := os.fork()) == 0:
        become_worker(pipes, [control.fileno(), *workers])
    for pipe in pipes:
        os.close(pipe)
    process = os.pidfd_open(pid)  # before anybody waits for it: the number is surely still its own
    workers[process] = pid
    poll.register(process, select.POLLIN)
    socket.send_fds(control, [encode(Forked(pid))], [process])


def become_worker(pipes: list[int], foreign: list[int]) -> NoReturn:
    """In the child: its own pipes and session, and nothing of what belongs to others."""
    try:
        for descriptor in foreign:
            os.close(descriptor)
        for target, pipe in enumerate(pipes):
            os.dup2(pipe, target)
            os.close(pipe)
        os.setsid()
        run_worker()
    finally:
        os._exit(1)  # never back into the loop above


def descriptors_of(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """Those that a packet carried."""
    found = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)
