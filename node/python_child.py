"""Runs a module of ours in a Python of its own, wherever the package lies and whatever the current folder holds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import node

PACKAGE_ROOT = Path(node.__file__).resolve().parent.parent


def module_command(module: str, *arguments: str) -> list[str]:
    """The command line; -P keeps files of the current folder from posing as modules."""
    return [sys.executable, "-P", "-m", module, *arguments]


def module_environment(**changes: str) -> dict[str, str]:
    """Our environment, in which the child finds this package even when it was not installed."""
    paths = [str(PACKAGE_ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONIOENCODING": "utf-8", **changes}


def own_session() -> dict[str, Any]:
    """For opening a process: keeps a terminal's Ctrl-C and hang-up from it; we say goodbye first, then end it."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}
