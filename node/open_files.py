"""How many files this process may have open: connections, sockets and weights are files, and macOS begins with 256."""

from __future__ import annotations

import logging
import sys

log = logging.getLogger(__name__)

WANTED = 65_536
FEWEST = 512
"""400 HTTP connections, 128 strangers at the door, some neighbours."""


def raise_open_files() -> None:
    """Take what the system lets us have; say so where it is little."""
    if sys.platform == "win32":  # knows no such limit for sockets
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    for wanted in (most, min(most, 10_240)):  # macOS names no limit and takes no more than that
        if soft >= wanted:
            break
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (ValueError, OSError):
            continue
        soft = wanted
        break
    if soft < FEWEST:
        log.warning("this process may open %d files only; raise the limit (ulimit -n), 4096 are plenty", soft)


def open_files_limit() -> int:
    """How many files and sockets this process may have open."""
    if sys.platform == "win32":
        return WANTED
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return WANTED if soft == resource.RLIM_INFINITY else soft
