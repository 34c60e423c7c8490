"""Runs a module of ours in a Python of its own, wherever the package lies and whatever the current folder holds."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import node

PACKAGE_ROOT = Path(node.__file__).resolve().parent.parent


def module_command(module: str, *arguments: str) -> list[str]:
    """The command line; -P keeps files of the current folder from posing as modules."""
    return [sys.executable, "-P", "-m", module, *arguments]


def module_environment(**changes: str) -> dict[str, str]:
    """Our environment, in which the child finds this package even when it was not installed."""
    paths = [str(PACKAGE_ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONIOENCODING": "utf-8", **changes}
