"""What this machine is to its nodes: an identity that they share."""

from __future__ import annotations

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
