"""Has a large file in a second place too, without a second set of bytes where the system can do that."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from node.models.disk import CHUNK_BYTES, FreeBytes, free_bytes, require_room

FICLONE = 0x40049409
"""Linux's request for a file that shares another one's blocks until either is written to."""


def take_file(source: Path, target: Path, on_bytes: Callable[[int], None], free: FreeBytes = free_bytes) -> None:
    """Put the file `source` at `target` as well: as a clone, else as a link, else as a copy.

    A link is the same file: who overwrites the original in place changes both, and a model's hashes tell.

    Args:
        on_bytes: hears after each MiB of a copy how many bytes are through.

    Raises:
        DiskFull: it must be copied, and there is no room; told before anything is written.
        OSError: it cannot be read or written.
    """
    if _cloned(source, target):
        return
    try:
        os.link(source, target)
        return
    except OSError:  # another disk, a system without links, or a file of somebody else's
        target.unlink(missing_ok=True)
    require_room(target.parent, source.stat().st_size, free)
    done_bytes = 0
    with source.open("rb") as reading, target.open("wb") as writing:
        while chunk := reading.read(CHUNK_BYTES):
            writing.write(chunk)
            done_bytes += len(chunk)
            on_bytes(done_bytes)


def _cloned(source: Path, target: Path) -> bool:
    if sys.platform != "linux":
        return False
    import fcntl

    try:
        with source.open("rb") as reading, target.open("wb") as writing:
            fcntl.ioctl(writing.fileno(), FICLONE, reading.fileno())
        return True
    except OSError:  # most file systems cannot
        target.unlink(missing_ok=True)
        return False
