"""Importing the library tells nobody anything, and starts no thread that a fork would lack."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import node
from node.worker_start import environment

ROOM = Path(node.__file__).parent


def test_no_module_imports_the_library_but_the_one_that_switches_its_telemetry_off() -> None:
    importing = []
    for file in ROOM.rglob("*.py"):
        for found in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in found.names] if isinstance(found, ast.Import) else []
            names += [found.module or ""] if isinstance(found, ast.ImportFrom) else []
            if any(name.split(".")[0] == "onnxruntime" for name in names):
                importing.append(file.name)
    assert importing == ["library.py"]


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_the_import_starts_no_thread_and_needs_no_torch() -> None:
    """With no variable set but numpy's: the module itself sets the one that matters."""
    bare = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    ran = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, sys, node.engine.ort.backend; "
            "print(len(os.listdir('/proc/self/task')), 'torch' in sys.modules)",
        ],
        env={**bare, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOM.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.split() == ["1", "False"]


def test_a_worker_is_started_with_the_telemetry_off() -> None:
    assert environment()["ORT_DISABLE_TELEMETRY"] == "1"
