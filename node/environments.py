"""Environments of their own for backends that cannot share ours: what they pin, where they are, how one is made.

Light to import: Python's own library alone. Used by `parallax engine add` and by a node that starts.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from node.errors import EngineError, UsageError

FOLDER = "engines"
READY = "ready.json"
"""Written last, with what was installed: an environment without it, or with another list, is not used."""
GB = 1_000_000_000

Run = Callable[[Sequence[str]], int]
"""Runs a command with our output as its own; gives its exit status."""
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Environment:
    """One backend's environment."""

    name: str
    requirements: tuple[str, ...]
    """Exactly pinned: our adapter is written against these."""
    module: str
    """That can be imported once it is made."""
    fetched_gb: int
    disk_gb: int
    """Roughly: what is fetched depends on the platform."""


ENVIRONMENTS = {
    # the worker itself needs msgspec, numpy and psutil
    "sglang": Environment("sglang", ("sglang==0.5.23", "msgspec>=0.19", "numpy>=2", "psutil>=6"), "sglang", 5, 12),
}


def why_not(environment: Environment) -> str:
    """Why this machine cannot have it, for people; empty where it can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"{environment.name} has packages for Linux on x86-64 alone, and this is {sys.platform}"
    if not os.path.exists("/dev/nvidiactl"):
        return f"{environment.name} computes on NVIDIA's chips, and their driver shows none here (/dev/nvidiactl)"
    return ""


def python_in(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def ready_pythons(home: Path) -> dict[str, str]:
    """The interpreters of the environments that are whole, by backend. `home`: the folder of a node's own things."""
    found = {}
    for name, environment in ENVIRONMENTS.items():
        folder = home / FOLDER / name
        if _recorded(folder) == environment.requirements and python_in(folder).exists():
            found[name] = str(python_in(folder))
    return found


def add(home: Path, name: str, say: Say, run: Run | None = None, free_bytes: int | None = None) -> None:
    """Make an environment, or finish one that was begun. Tells its size before anything is fetched.

    Raises:
        UsageError: there is no such environment.
        EngineError: this machine cannot have it, the disk is too small, or installing it failed.
    """
    environment = ENVIRONMENTS.get(name)
    if environment is None:
        raise UsageError(f"engine {name[:40]!r} needs no environment; there are {', '.join(ENVIRONMENTS)}")
    if reason := why_not(environment):
        raise EngineError(reason)
    folder = home / FOLDER / name
    if name in ready_pythons(home):
        say(f"{name} is there already: {folder}")
        return
    home.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(home).free if free_bytes is None else free_bytes
    sizes = f"about {environment.fetched_gb} GB are fetched, about {environment.disk_gb} GB are taken in {folder}"
    if free < environment.disk_gb * GB:
        raise EngineError(f"{name}: {sizes}, and {free / GB:.1f} GB are free there")
    say(f"{name}: {sizes}. It can be interrupted: the same command goes on where it ended.")
    _make(environment, folder, run or _run)
    say(f"{name} is ready; a node that starts from now on runs models on it")


def _make(environment: Environment, folder: Path, run: Run) -> None:
    (folder / READY).unlink(missing_ok=True)
    if not python_in(folder).exists():
        try:
            venv.create(folder, with_pip=True, clear=folder.exists())
        except (OSError, subprocess.CalledProcessError) as error:
            raise EngineError(f"{folder}: no environment could be made there ({error})") from error
    python = str(python_in(folder))
    if run([python, "-m", "pip", "install", "--disable-pip-version-check", *environment.requirements]):
        raise EngineError(f"{environment.name} could not be installed; pip says why above. The same command goes on")
    if run([python, "-c", f"import {environment.module}"]):
        raise EngineError(f"{environment.name} is installed in {folder} but cannot be imported; see above")
    beside = folder / f"{READY}.new"
    beside.write_text(json.dumps(environment.requirements))
    os.replace(beside, folder / READY)


def _run(command: Sequence[str]) -> int:
    return subprocess.run(command, check=False).returncode


def _recorded(folder: Path) -> tuple[str, ...]:
    try:
        recorded = json.loads((folder / READY).read_text())
    except (OSError, ValueError):
        return ()
    return tuple(map(str, recorded)) if isinstance(recorded, list) else ()
