"""Signals that come while a command is still being imported end it quietly, with the code that it promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

WHILE_IMPORTING = """
import os, signal, sys

class Signals:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.{number})
            raise SystemExit("the signal did nothing")

sys.meta_path.insert(0, Signals())
sys.argv[1:] = {arguments!r}
import runpy
runpy.run_module({package!r}, run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("package", "arguments", "module", "number", "code"),
    [
        ("node", ["--help"], "node.command_line", "SIGTERM", 0),
        ("node", ["--help"], "node.command_line", "SIGINT", 0),
        ("parallax_tui", ["node", "--help"], "node.command_line", "SIGTERM", 0),
        ("parallax_tui", ["node", "--help"], "node.command_line", "SIGHUP", 0),
        ("parallax_tui", ["node", "--help"], "node.command_line", "SIGINT", 0),
        ("parallax_tui", ["status"], "parallax_tui.cli", "SIGINT", 130),
        ("parallax_tui", ["status"], "node.command_line", "SIGINT", 130),
    ],
)
def test_a_signal_during_the_imports_ends_quietly(
    package: str, arguments: list[str], module: str, number: str, code: int, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WHILE_IMPORTING.format(**locals())],
        env={"PYTHONPATH": str(ROOT), "PARALLAX_HOME": str(tmp_path)},
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr, done.stdout) == (code, "", "")
