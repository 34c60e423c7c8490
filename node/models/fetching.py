"""The child process that identifies, prepares and imports models: `python -m node.models.fetching`.

It reads one JSON line, the task, from stdin, and writes JSON lines to stdout: progress, then one result or one error.
When stdin ends, so does it, after cleaning up (see `tether`).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import BinaryIO, NoReturn

import msgspec

from node.errors import ParallaxError
from node.models.identify import identify
from node.models.preparing import import_file, prepare
from node.models.progress import Phase
from node.models.tether import end_with_parent
from node.wire.models import ModelRef

REPORTS_PER_S = 10


class IdentifyTask(msgspec.Struct, frozen=True, tag="identify"):
    """Say which model `choice` is."""

    models: str
    choice: str | None


class PrepareTask(msgspec.Struct, frozen=True, tag="prepare"):
    """Have the files of `layers` ready."""

    models: str
    ref: ModelRef
    layers: tuple[int, int] | None
    check: bool = True


class ImportTask(msgspec.Struct, frozen=True, tag="import"):
    """Take the file or folder `path` into the cache."""

    models: str
    path: str


class ProgressLine(msgspec.Struct, frozen=True, tag="progress"):
    """How far it is."""

    phase: Phase
    done_bytes: int
    total_bytes: int
    text: str


class ResultLine(msgspec.Struct, frozen=True, tag="result"):
    """The end: what the task asked for."""

    ref: ModelRef | None = None
    folder: str | None = None


class ErrorLine(msgspec.Struct, frozen=True, tag="error"):
    """The end: one of our errors, to be raised again by the parent."""

    kind: str
    message: str
    fields: dict[str, str | int | float | bool | None]


Task = IdentifyTask | PrepareTask | ImportTask
Line = ProgressLine | ResultLine | ErrorLine


class _Reports:
    """Writes progress at most ten times a second, and always where something new begins or ends."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._last_s = 0.0
        self._last: tuple[str, bool] | None = None

    def __call__(self, phase: Phase, done_bytes: int, total_bytes: int, text: str) -> None:
        now_s = time.monotonic()
        state = (phase, 0 < total_bytes <= done_bytes)
        if state == self._last and now_s - self._last_s < 1 / REPORTS_PER_S:
            return
        self._last, self._last_s = state, now_s
        write(self._out, ProgressLine(phase, done_bytes, total_bytes, text))


def write(out: BinaryIO, line: Line) -> None:
    """One line of JSON."""
    out.write(msgspec.json.encode(line) + b"\n")
    out.flush()


def run(task: Task, out: BinaryIO) -> ResultLine:
    """Do the task.

    Raises:
        ParallaxError: whatever the task's function raises.
    """
    models = Path(task.models)
    match task:
        case IdentifyTask():
            return ResultLine(ref=identify(task.choice, models, _Reports(out)))
        case PrepareTask():
            return ResultLine(folder=str(prepare(task.ref, models, task.layers, _Reports(out), check=task.check)))
        case ImportTask():
            return ResultLine(ref=import_file(Path(task.path), models, _Reports(out)))


def error_line(error: ParallaxError) -> ErrorLine:
    """The error with its data, as far as that is plain."""
    fields = {name: value for name, value in vars(error).items() if isinstance(value, str | int | float | None)}
    return ErrorLine(type(error).__name__, str(error), fields)


def main() -> int:
    """Returns 0 when a result or one of our errors was written."""
    signal.signal(signal.SIGTERM, _end)
    task = msgspec.json.decode(_first_line(), type=Task)
    end_with_parent(politely=True)
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints belongs to stderr
    line: Line
    try:
        line = run(task, out)
    except ParallaxError as error:
        line = error_line(error)
    write(out, line)
    return 0


def _first_line() -> bytes:
    """Unbuffered, since the tether reads the rest."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            break
        line += byte
    return line


def _end(number: int, frame: object) -> NoReturn:
    """Unwinds, so that every `finally` cleans up."""
    raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(main())
