"""How a node is started: its invitations, its folders, its name, its log."""

from __future__ import annotations

import argparse
import io
import logging
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node import logs
from node.command_line import add_node_options, settings_from
from node.errors import AlreadyRunning, NoNode, UsageError, WorkerDied
from node.given_invitations import invitations
from node.home import Control, Home, own_folder

needs_root = pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="gives a folder to another user")


class Stdin(io.TextIOWrapper):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))


def settings_of(home: Home, *arguments: str) -> object:
    parser = argparse.ArgumentParser()
    add_node_options(parser)
    return settings_from(parser.parse_args(list(arguments)), home)


@pytest.fixture
def set_up_log() -> Iterator[Callable[[str], None]]:
    """The node's log on stderr at a level; afterwards the loggers are as they were."""
    names = ["", "node", "trio.serve_listeners", *logs.NOISY]
    loggers = [logging.getLogger(name) for name in names]
    before = [(log.level, log.handlers[:], log.filters[:]) for log in loggers]
    yield lambda level: logs.set_up("text", level)
    for log, (level, handlers, filters) in zip(loggers, before, strict=True):
        log.setLevel(level)
        log.handlers[:], log.filters[:] = handlers, filters


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path, tmp_path / "run", tmp_path / "models")


def test_an_invitation_comes_from_stdin_the_environment_or_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(b"  plx1abc \nmore"))
    assert invitations(("-",), {}) == ("plx1abc",)
    (tmp_path / "token").write_text("plx1def\n")
    environment = {"PARALLAX_JOIN_FILE": str(tmp_path / "token"), "OTHER": "x"}
    assert invitations((), environment) == ("plx1def",)
    environment = {"PARALLAX_JOIN": "plx1ghi\n"}
    assert invitations((), environment) == ("plx1ghi",)
    assert environment == {}, "children of the node do not need it"
    assert invitations(("plx1jkl",), {"PARALLAX_JOIN": "plx1ghi"}) == ("plx1jkl",)
    assert invitations((), {}) == ()


def test_an_invitation_that_is_not_there_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(b"\n"))
    with pytest.raises(UsageError, match="--join -"):
        invitations(("-",), {})
    with pytest.raises(UsageError, match=r"PARALLAX_JOIN_FILE.*absent"):
        invitations((), {"PARALLAX_JOIN_FILE": str(tmp_path / "absent")})


def test_a_name_that_was_given_is_kept_and_gives_way_to_a_newer_one(home: Home) -> None:
    home.name_file.write_text("attic")
    assert settings_of(home).name == "attic"  # type: ignore[attr-defined]
    assert settings_of(home, "--name", "cellar").name == "cellar"  # type: ignore[attr-defined]
    home.config.write_text('name = "loft"')
    assert settings_of(home).name == "loft"  # type: ignore[attr-defined]
    home.config.unlink()
    home.name_file.write_bytes(b"\xff\x1b[2J")
    assert settings_of(home).name not in ("", "attic")  # type: ignore[attr-defined]


def test_the_level_of_the_log_can_be_chosen(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARALLAX_LOG_LEVEL", "warning")
    assert settings_of(home).log_level == "warning"  # type: ignore[attr-defined]
    assert settings_of(home, "--log-level", "debug").log_level == "debug"  # type: ignore[attr-defined]
    monkeypatch.setenv("PARALLAX_LOG_LEVEL", "loud")
    with pytest.raises(UsageError, match="PARALLAX_LOG_LEVEL 'loud'"):
        settings_of(home)


def test_a_socket_folder_that_others_can_enter_is_not_taken(tmp_path: Path) -> None:
    folder = tmp_path / "parallax-0-abc"
    assert own_folder(folder).stat().st_mode & 0o777 == 0o700
    own_folder(folder)
    folder.chmod(0o777)
    with pytest.raises(UsageError, match="entered by others"):
        own_folder(folder)
    (tmp_path / "link").symlink_to(own_folder(tmp_path / "elsewhere"))
    with pytest.raises(UsageError, match="is not a folder"):
        own_folder(tmp_path / "link")


def test_a_runtime_folder_outside_the_home_must_be_ours_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PARALLAX_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "shared"))
    (tmp_path / "shared" / "parallax").mkdir(parents=True)
    (tmp_path / "shared" / "parallax").chmod(0o777)
    home = Home.from_environment()
    assert home.runtime == tmp_path / "shared" / "parallax"
    with pytest.raises(UsageError, match="entered by others"):
        home.make_folders()
    home.control_file.write_text('{"socket_path": null, "port": 5, "token": "x"}')
    with pytest.raises(NoNode):
        home.read_control()
    home.runtime.chmod(0o700)
    home.make_folders()
    assert home.read_control().port == 5


@needs_root
def test_a_socket_folder_of_another_user_is_not_taken_and_not_asked(tmp_path: Path) -> None:
    folder = own_folder(tmp_path / "parallax-0-abc")
    home = Home(tmp_path / "home", tmp_path / "home" / "run", tmp_path)
    home.write_control(Control(str(folder / "control.sock")))
    assert home.read_control().socket_path == str(folder / "control.sock")
    os.chown(folder, 12345, 12345)
    with pytest.raises(UsageError, match="another user"):
        own_folder(folder)
    with pytest.raises(NoNode):
        home.read_control()


@pytest.mark.parametrize("name", ["file", "file/below", "long" * 70])
def test_a_home_that_cannot_be_is_a_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    root = tmp_path / name
    with pytest.raises(UsageError, match="PARALLAX_HOME") as refused:
        Home(root, root / "run", root).make_folders()
    assert len(str(refused.value)) < 400
    with pytest.raises(NoNode):
        Home(root, root / "run", root).read_control()


def test_folders_are_the_owners_alone(home: Home) -> None:
    home.make_folders()
    assert stat.S_IMODE(home.runtime.stat().st_mode) == 0o700
    assert list(home.runtime.iterdir()) == []


def test_nothing_in_the_log_steers_a_terminal(
    set_up_log: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    set_up_log("info")
    log = logging.getLogger("node.test")
    log.info("%s is gone", "\x1b[2J\x1b]0;owned\x07ev\r\n22:00:00 warning main: forged")
    try:
        raise ValueError("\x1b[31m")
    except ValueError:
        log.exception("failed")
    log.debug("not this")
    written = capsys.readouterr().err
    assert "\x1b" not in written
    assert "\x07" not in written
    assert written.count("\n") == 1 + len(written.splitlines()[1:])
    assert not [line for line in written.splitlines() if line.startswith("22:00:00")]
    assert "not this" not in written
    set_up_log("debug")
    log.debug("now this")
    assert "now this" in capsys.readouterr().err


def test_an_accept_loop_without_files_writes_one_sentence_a_minute(
    set_up_log: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    set_up_log("info")
    accepting = logging.getLogger("trio.serve_listeners")
    for _ in range(50):
        try:
            raise OSError(24, "Too many open files")
        except OSError:
            accepting.error("accept returned EMFILE; retrying", exc_info=True)
    written = capsys.readouterr().err
    assert written.count("Too many open files") == 1
    assert "Traceback" not in written


def test_the_end_of_a_worker_names_the_signal_and_what_it_may_mean() -> None:
    assert "memory" in str(WorkerDied(-9))
    assert "SIGKILL" in str(WorkerDied(-9))
    assert "SIGSEGV" in str(WorkerDied(-11))
    assert re.fullmatch(r"the engine worker ended with status 1\b.*no module", str(WorkerDied(1, "no module")))
    assert "started again" not in str(WorkerDied(-9)), "who starts it again says so"


def test_a_home_is_locked_by_one_file_that_stays(home: Home) -> None:
    from node.main import _locked

    with _locked(home):
        first = home.lock.stat()
        with pytest.raises(AlreadyRunning), _locked(home):
            pass
    with _locked(home), home.lock.open() as waiting:
        assert home.lock.stat().st_ino == first.st_ino
        assert os.fstat(waiting.fileno()).st_ino == first.st_ino, "who has opened it waits for the same file"
    assert first.st_mode & 0o077 == 0
