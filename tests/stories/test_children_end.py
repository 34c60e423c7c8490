"""However `parallax` ends, its nodes end with it, and what they wrote is gone."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.stories.conftest import ROOT, START_S, processes_of, said_beside_waiting, until

ENDINGS = [(signal.SIGTERM, 143), (signal.SIGHUP, 129)]
COMMAND = [sys.executable, "-m", "parallax_tui.cli"]


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Where local nodes make their homes; a short path, for their sockets."""
    with tempfile.TemporaryDirectory(prefix="plx") as folder:
        yield Path(folder)


@pytest.fixture
def environment(temporary: Path, models_folder: Path, default_model_folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PARALLAX_HOME": str(temporary / "home"),
        "PARALLAX_MODELS": str(models_folder),
        "TMPDIR": str(temporary),
        "PYTHONPATH": str(ROOT),
        "TERM": "xterm-256color",
    }


def left(temporary: Path) -> list[Path]:
    """Sockets, and folders of local nodes."""
    return [path for path in temporary.rglob("*") if path.is_socket() or path.name.startswith("parallax-local")]


@pytest.fixture
def question(environment: dict[str, str]) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts `parallax -p` with an answer that takes long; ended with the test."""
    with ExitStack() as stack:

        def ask(*options: str) -> subprocess.Popen[bytes]:
            asking = stack.enter_context(
                subprocess.Popen(
                    [*COMMAND, "-p", "Count to a million.", "--max-tokens", "1000", *options],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
            )
            stack.callback(asking.kill)
            return asking

        yield ask


@pytest.mark.parametrize(("number", "code"), ENDINGS)
def test_a_signal_at_a_question_leaves_nothing(
    question: Callable[..., subprocess.Popen[bytes]], temporary: Path, number: signal.Signals, code: int
) -> None:
    asking = question("--local-nodes", "2")
    assert asking.stdout is not None
    asking.stdout.read(1)
    commands = processes_of(temporary)
    (config,) = temporary.glob("parallax-local-*/local-2/config.toml")
    assert config.read_text().startswith("join = [")
    assert config.stat().st_mode & 0o777 == 0o600
    asking.send_signal(number)
    asking.send_signal(number)  # as shells do when a terminal closes
    _, stderr = asking.communicate(timeout=30)
    assert (asking.returncode, said_beside_waiting(stderr)) == (code, "")
    assert not processes_of(temporary)
    assert not left(temporary)
    assert len([command for command in commands if "--name local-" in command]) == 2, commands
    assert not [command for command in commands if "--join" in command], "every user can read a command line"


def test_a_local_node_that_dies_at_its_start_is_named(
    question: Callable[..., subprocess.Popen[bytes]], temporary: Path
) -> None:
    asking = question("--local-nodes", "3")

    def second() -> int:
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = entry.read_bytes().split(b"\0")
                if b"local-2" in words and f"={temporary}/".encode() in (entry.parent / "environ").read_bytes():
                    return int(entry.parent.name)
            except OSError:
                continue
        return 0

    os.kill(until("the second node", second, START_S, every_s=0.01), signal.SIGKILL)
    stdout, stderr = asking.communicate(timeout=60)
    assert (asking.returncode, stdout) == (1, b"")
    assert b"local-2 ended" in stderr
    assert not left(temporary)


@pytest.mark.parametrize(("number", "code"), ENDINGS)
@pytest.mark.parametrize("hang_up", [False, True], ids=["terminal stays", "terminal goes"])
def test_a_signal_to_the_app_restores_the_terminal_and_leaves_nothing(
    environment: dict[str, str], temporary: Path, number: signal.Signals, code: int, hang_up: bool
) -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    with (
        subprocess.Popen(
            [*COMMAND, "--local-nodes", "2"], env=environment, stdin=theirs, stdout=theirs, stderr=theirs
        ) as app,
        ExitStack() as stack,
    ):
        stack.callback(app.kill)
        seen = read_until(ours, b"\x1b[?1049h", START_S)
        until("the nodes run", lambda: "local-2" in " ".join(processes_of(temporary)), START_S)
        until("the terminal is the app's", lambda: termios.tcgetattr(theirs)[3] != before[3], 10)
        if hang_up:
            os.close(ours)
            os.close(theirs)
        app.send_signal(number)
        if not hang_up:
            seen += read_until(ours, b"\x1b[?1049l", 30)
        assert app.wait(30) == code
    if not hang_up:
        assert termios.tcgetattr(theirs)[3] == before[3]
        assert b"Traceback" not in seen
        os.close(ours)
        os.close(theirs)
    until("the nodes are gone", lambda: not processes_of(temporary), 5)
    assert not left(temporary)


def read_until(terminal: int, mark: bytes, within_s: float) -> bytes:
    """What the program writes, up to and with the mark."""
    seen = b""
    deadline = time.monotonic() + within_s
    while mark not in seen:
        assert time.monotonic() < deadline, seen[-2000:]
        if select.select([terminal], [], [], 0.1)[0]:
            seen += os.read(terminal, 65536)
    return seen


def test_files_of_the_current_folder_do_not_pose_as_modules(environment: dict[str, str], temporary: Path) -> None:
    folder = temporary / "downloads"
    folder.mkdir()
    for name in ("trio", "torch", "msgspec", "node"):
        (folder / f"{name}.py").write_text(f"import pathlib\npathlib.Path({str(folder / 'posed')!r}).touch()\n")
    # as the installed command starts: its own folder is on the path, the current one is not
    installed = "import sys; from parallax_tui.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-P", "-c", installed, "-p", "What is the capital of France?"],
        env=environment, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert not (folder / "posed").exists()
    assert (done.returncode, said_beside_waiting(done.stderr)) == (0, "")
    assert "Paris" in done.stdout
