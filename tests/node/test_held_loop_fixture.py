"""A test that holds the event loop fails, unless it says why it may."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

TESTS = """
import time

import pytest
import trio

from tests.conftest import nothing_holds_the_loop

async def computes():
    begun_s = time.thread_time()
    while time.thread_time() - begun_s < 0.5:
        pass

def test_holds():
    trio.run(computes)

@pytest.mark.holds_the_loop("on purpose")
def test_says_why():
    trio.run(computes)

def test_waits():
    trio.run(trio.sleep, 0.1)
"""


def test_what_holds_the_loop_fails_and_what_says_why_does_not(tmp_path: Path) -> None:
    (tmp_path / "test_loops.py").write_text(TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n0", "-q", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path),
         str(tmp_path / "test_loops.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PARALLAX_HELD_LOOPS": ""},
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "3 passed, 1 error" in done.stdout, done.stdout + done.stderr
    assert "ERROR test_loops.py::test_holds" in done.stdout
    assert "the event loop was held for more than 50 ms" in done.stdout
    assert "computes" in done.stdout
