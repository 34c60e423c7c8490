"""What this machine is to its nodes: an identity that they share, and cores that they divide."""

from __future__ import annotations

import os
import uuid
from hashlib import sha256
from pathlib import Path

import psutil


def machine_id() -> str:
    """The same for every node on this machine until it restarts, and for no other machine (clones included)."""
    try:
        mark = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        mark = f"{uuid.getnode():012x} {int(psutil.boot_time())}".encode()
    return sha256(b"parallax machine " + mark).hexdigest()[:32]


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
