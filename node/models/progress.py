"""How work on a model's files tells how far it is. Knows neither terminals nor events."""

from __future__ import annotations

import fnmatch
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

Phase = Literal["fetch", "convert", "load", "repair"]
"""`load`: what is on the disk is checked before it is loaded. `repair`: it is not what it was, and is had again; told
once, with the file, before that begins."""

Report = Callable[[Phase, int, int, str], None]
"""Called with (phase, done_bytes, total_bytes, text); a total of 0 means that it is not known."""

POLL_S = 0.2


def ignore_progress(phase: Phase, done_bytes: int, total_bytes: int, text: str) -> None:
    """The report of a caller who does not care."""


def bytes_under(folder: Path, pattern: str) -> int:
    """Size of all files below `folder` that match `pattern`; those that vanish meanwhile count nothing."""
    return sum(sizes_under(folder, pattern))


def sizes_under(folder: Path, pattern: str) -> list[int]:
    """Sizes of the files below `folder` that match `pattern`, as far as they can be seen while others work there.

    `os.walk` passes over a folder that vanishes under it, which `Path.rglob` does not.
    """
    sizes: list[int] = []
    for parent, _, names in os.walk(folder):
        for name in fnmatch.filter(names, pattern):
            with suppress(OSError):
                sizes.append(os.stat(os.path.join(parent, name)).st_size)
    return sizes


@contextmanager
def growth_reported(
    size: Callable[[], int], total_bytes: int, text: str, report: Report, *, before_bytes: int = 0
) -> Iterator[None]:
    """Report the growth of what `size` measures while the block runs, from a thread of its own.

    The thread ends with the block. `before_bytes` is what was done before the block began.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(POLL_S):
            report("fetch", min(before_bytes + size(), total_bytes), total_bytes, text)

    thread = threading.Thread(target=watch, name="download progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
