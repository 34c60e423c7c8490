"""Runs `prepare` and stops at every report until a line comes on stdin: lets a test stop it, or kill it, anywhere.

    python stepping.py TASK_JSON [replace]

With `replace` it stops before each `os.replace` instead, which is where files become part of a model.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import msgspec

from node.models import prepare
from node.wire.models import ModelRef


def step(*said: object) -> None:
    print(json.dumps(said), flush=True)
    if not sys.stdin.readline():
        os._exit(3)


def main() -> None:
    task = json.loads(sys.argv[1])
    ref = msgspec.convert(task["ref"], ModelRef)
    if "replace" in sys.argv:
        replace = os.replace

        def stepping_replace(source: str | Path, target: str | Path) -> None:
            step("replace", Path(target).name)
            replace(source, target)

        os.replace = stepping_replace  # type: ignore[assignment]
    report = (lambda *_: None) if "replace" in sys.argv else step
    folder = prepare(ref, Path(task["models"]), None, report)
    print(json.dumps(["done", str(folder)]), flush=True)


main()
