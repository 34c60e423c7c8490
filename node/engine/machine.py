"""What the operating system says about this machine. No tensor library."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def core_count() -> int:
    """Processor cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """Physical memory, or the container's limit where that is lower."""
    import psutil

    total = int(psutil.virtual_memory().total)
    limit = cgroup_limit_bytes(CGROUP_ROOT, OWN_CGROUPS)
    return total if limit is None else min(total, limit)


def cgroup_limit_bytes(root: Path, own: Path) -> int | None:
    """The lowest memory limit of the control groups that we are in, or None.

    Each line of `own` is `number:controllers:path`; version 2 has no controllers, version 1 names `memory`. A limit
    binds a group's descendants too, so every folder up to the root counts.
    """
    limits: list[int] = []
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return None  # not Linux
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, name = root, "memory.max"
        elif "memory" in controllers.split(","):
            top, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        folder = top / path.lstrip("/")
        for group in (folder, *folder.parents):
            if not group.is_relative_to(top):
                break
            try:
                limits.append(int((group / name).read_text()))
            except (OSError, ValueError):
                continue  # no such file here, or "max"
    return min(limits, default=None)


def processor_name() -> str:
    """For people: `AMD EPYC 9654`."""
    name = ""
    if sys.platform == "linux":
        try:
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            name = next((line.split(":", 1)[1] for line in lines if line.startswith("model name")), "")
        except OSError:
            pass
    elif sys.platform == "darwin":
        asked = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        name = asked.stdout
    name = " ".join(name.split()) or platform.processor() or platform.machine() or "processor"
    return name[:128]
