"""Memory that node and worker both see, for the rows of large batches: a pipe carries them in pieces of 64 KiB, each of
which wakes both processes.

One place for each batch that may be in flight, with room for what goes to the worker and for what comes back. A place
belongs to a batch from its request to its reply. Linux only, where memory has a descriptor without a file system that
could be full; elsewhere rows go through the pipe.
"""

from __future__ import annotations

import mmap
import os
from contextlib import suppress

from node.engine.base import BATCHES_IN_FLIGHT
from node.wire.frames import BODY_LIMIT_BYTES, Buffer

WORTH_BYTES = 32 * 1024
"""Less goes through the pipe together with its header, in one system call."""

PLACES = BATCHES_IN_FLIGHT
_TO_WORKER, _TO_NODE = 0, 1


class SharedRows:
    """The mapped memory. Pages that were never used take none."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory

    @classmethod
    def create(cls) -> tuple[SharedRows, int] | None:
        """New memory and its descriptor, which the caller closes once the worker has it; None where there is none."""
        if not hasattr(os, "memfd_create"):
            return None
        try:
            descriptor = os.memfd_create("parallax-rows", os.MFD_CLOEXEC)
        except OSError:
            return None
        try:
            os.ftruncate(descriptor, 2 * PLACES * BODY_LIMIT_BYTES)
            return cls(mmap.mmap(descriptor, 0)), descriptor
        except OSError:
            os.close(descriptor)
            return None

    @classmethod
    def open(cls, path: str) -> SharedRows | None:
        """The memory behind a path that `path_of` gave; None where it is not to be had or of another size."""
        with suppress(OSError, ValueError), open(path, "r+b", buffering=0) as file:
            if os.fstat(file.fileno()).st_size == 2 * PLACES * BODY_LIMIT_BYTES:
                return cls(mmap.mmap(file.fileno(), 0))
        return None

    def put_request(self, place: int, rows: Buffer) -> None:
        """By the node."""
        self._put(place, _TO_WORKER, rows)

    def request(self, place: int, size_bytes: int) -> memoryview:
        """By the worker: the rows where they lie, writable, as long as the batch is not answered."""
        return self._view(place, _TO_WORKER, size_bytes)

    def put_reply(self, place: int, rows: Buffer) -> None:
        """By the worker."""
        self._put(place, _TO_NODE, rows)

    def reply(self, place: int, size_bytes: int) -> bytes:
        """By the node: a copy, for the place is another batch's from now on."""
        return bytes(self._view(place, _TO_NODE, size_bytes))

    def _put(self, place: int, way: int, rows: Buffer) -> None:
        view = memoryview(rows).cast("B")
        self._view(place, way, view.nbytes)[:] = view

    def _view(self, place: int, way: int, size_bytes: int) -> memoryview:
        if not 0 <= place < PLACES or not 0 <= size_bytes <= BODY_LIMIT_BYTES:
            raise ValueError(f"{size_bytes} bytes at place {place} of {PLACES}")
        begin = (2 * place + way) * BODY_LIMIT_BYTES
        return memoryview(self._memory)[begin : begin + size_bytes]


def path_of(descriptor: int) -> str:
    """By which another process of the same user opens it."""
    return f"/proc/{os.getpid()}/fd/{descriptor}"
