"""Model work for trio: the same functions in a child process, so that neither hashing nor converting blocks the loop.

A child can be ended at any moment, which a thread cannot, and its memory goes when it ends.

Resource handling: cancelling any of these closes the child's stdin, upon which it cleans up and ends, together with the
pip that it may have started; what has not ended after five seconds is killed.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec

import node.errors
from node.errors import FetchFailed, ParallaxError
from node.models.default_model import DEFAULT_REF
from node.models.fetching import (
    ErrorLine,
    IdentifyTask,
    ImportTask,
    Line,
    PrepareTask,
    ProgressLine,
    ResultLine,
    Task,
)
from node.models.identify import DEFAULT_NAMES
from node.models.progress import Phase, ignore_progress
from node.models.whole_already import whole_already
from node.python_child import module_command, module_environment, own_session
from node.wire.models import ModelRef

if TYPE_CHECKING:
    import trio

GOODBYE_S = 5.0
REPORT_EVERY_S = 0.1
LAST_WORDS_LINES = 5
LAST_WORDS_BYTES = 8192

OnProgress = Callable[[Phase, int, int, str], None]

_line_decoder: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)


async def identify_in_child(choice: str | None, models: Path, on_progress: OnProgress = ignore_progress) -> ModelRef:
    """`identify` in a child process, where it is not plain; `on_progress` is called from this task.

    Raises:
        ParallaxError: as `identify` does.
        FetchFailed: the child died without a word.
    """
    if choice is None or choice in DEFAULT_NAMES:
        return DEFAULT_REF
    result = await _run(IdentifyTask(str(models), choice), choice or "the default model", on_progress)
    assert result.ref is not None
    return result.ref


async def prepare_in_child(
    ref: ModelRef, models: Path, layers: tuple[int, int] | None, on_progress: OnProgress, *, check: bool = True
) -> Path:
    """`prepare` in a child process, where not all is there; `on_progress` is called from this task.

    Raises:
        ParallaxError: as `prepare` does.
        FetchFailed: the child died without a word.
    """
    if (folder := await _whole_already(ref, models, layers if check else None, on_progress)) is not None:
        return folder
    result = await _run(PrepareTask(str(models), ref, layers, check), ref.name, on_progress)
    assert result.folder is not None
    return Path(result.folder)


async def _whole_already(
    ref: ModelRef, models: Path, layers: tuple[int, int] | None, on_progress: OnProgress
) -> Path | None:
    import trio

    last_s = -1.0

    def report(phase: Phase, done_bytes: int, total_bytes: int, text: str) -> None:
        nonlocal last_s
        if (now_s := time.monotonic()) >= last_s + REPORT_EVERY_S:
            last_s = now_s
            # raises in the thread, too, once the caller is cancelled
            trio.from_thread.run_sync(on_progress, phase, done_bytes, total_bytes, text)

    return await trio.to_thread.run_sync(whole_already, ref, models, layers, report)


async def import_in_child(path: Path, models: Path, on_progress: OnProgress) -> ModelRef:
    """`import_file` in a child process.

    Raises:
        ParallaxError: as `import_file` does.
        FetchFailed: the child died without a word.
    """
    result = await _run(ImportTask(str(models), str(path)), str(path), on_progress)
    assert result.ref is not None
    return result.ref


async def _run(task: Task, name: str, on_progress: OnProgress) -> ResultLine:
    import trio  # the child itself imports this package and never needs it

    end: ResultLine | ErrorLine | None = None
    with tempfile.TemporaryFile() as errors:  # not a pipe, which would need a second task to empty it
        process = await trio.lowlevel.open_process(
            module_command("node.models.fetching"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=module_environment(),
            **own_session(),
        )
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            await process.stdin.send_all(msgspec.json.encode(task) + b"\n")
            end = await _follow(process.stdout, on_progress)
        except trio.BrokenResourceError:  # it ended before it read its task
            pass
        finally:
            with trio.CancelScope(shield=True):
                await _say_goodbye(process)
        if isinstance(end, ResultLine):
            return end
        if end is not None:
            raise _as_error(end)
        reason = (
            f"the process that prepares it ended with status {process.returncode} ({_last_words(errors)}); try again"
        )
        raise FetchFailed(name, reason)


async def _follow(stdout: trio.abc.ReceiveStream, on_progress: OnProgress) -> ResultLine | ErrorLine | None:
    """Hand progress on until the last line, which is returned; None where the child ended without one."""
    buffered = b""
    async for data in stdout:
        *lines, buffered = (buffered + data).split(b"\n")
        for text in lines:
            line = _line_decoder.decode(text)
            if not isinstance(line, ProgressLine):
                return line
            on_progress(line.phase, line.done_bytes, line.total_bytes, line.text)
    return None


def _last_words(errors: IO[bytes]) -> str:
    """The last lines that the child wrote for people."""
    errors.seek(max(errors.seek(0, os.SEEK_END) - LAST_WORDS_BYTES, 0))
    lines = [line.strip() for line in errors.read().decode(errors="replace").splitlines()]
    return " / ".join([line for line in lines if line][-LAST_WORDS_LINES:]) or "no last words"


async def _say_goodbye(process: trio.Process) -> None:
    """Let the child end by itself, then make it. Bounded: the caller shields this."""
    import trio

    assert process.stdin is not None
    await process.stdin.aclose()
    with trio.move_on_after(GOODBYE_S):
        await process.wait()
    if process.returncode is None:
        process.kill()
        await process.wait()
    assert process.stdout is not None
    await process.stdout.aclose()


def _as_error(line: ErrorLine) -> ParallaxError:
    """The child's error as if it had been raised here: same class, message and data."""
    kind = getattr(node.errors, line.kind, None)
    if not (isinstance(kind, type) and issubclass(kind, ParallaxError)):
        kind = ParallaxError
    error = kind.__new__(kind, line.message)
    vars(error).update(line.fields)
    return error
