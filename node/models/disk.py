"""Room on the disk, bytes that stay after a power cut, and the hash of a file. Knows nothing of models."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from node.errors import DiskFull

CHUNK_BYTES = 1024 * 1024
MARGIN_BYTES = 16 * 1024 * 1024
"""Left over for the small files beside the weights and for whatever else writes to this disk."""

FreeBytes = Callable[[Path], int]


def free_bytes(folder: Path) -> int:
    """Free room where `folder` lies or will lie."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def require_room(folder: Path, needed_bytes: int, free: FreeBytes = free_bytes) -> None:
    """Check that `needed_bytes` fit on the disk of `folder`.

    Raises:
        DiskFull: they do not.
    """
    needed_bytes += MARGIN_BYTES
    available = free(folder)
    if available < needed_bytes:
        raise DiskFull(str(folder), needed_bytes, available)


def sync_file(path: Path) -> None:
    """Have the file's bytes on the disk, not only in the system's memory."""
    try:
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    except PermissionError:  # a link to what somebody else has written
        return


def sync_folder(path: Path) -> None:
    """Have the folder's names on the disk."""
    if sys.platform == "win32":  # a folder cannot be opened there; NTFS journals its names
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """The file's SHA-256 in hex; `on_bytes` hears after each MiB how many bytes are through."""
    digest = hashlib.sha256()
    done = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            if on_bytes:
                on_bytes(done)
    return digest.hexdigest()
