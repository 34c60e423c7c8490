"""An environment of its own for a backend: told its size first, made once, gone on with after an interruption."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from node import environments
from node.environments import ENVIRONMENTS, GB, READY, add, python_in, ready_pythons
from node.errors import EngineError, UsageError


@pytest.fixture(autouse=True)
def able_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that could have it, and an environment that is made in no time."""

    def create(folder: Path, *, with_pip: bool, clear: bool) -> None:
        assert with_pip
        python_in(folder).parent.mkdir(parents=True, exist_ok=not clear)
        python_in(folder).touch()

    monkeypatch.setattr(environments, "why_not", lambda _: "")
    monkeypatch.setattr(environments.venv, "create", create)


class Pip:
    """Runs nothing, and fails as it is told."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.commands: list[list[str]] = []

    def __call__(self, command: Sequence[str]) -> int:
        self.commands.append(list(command))
        return self.statuses.pop(0) if self.statuses else 0


def test_its_size_is_told_before_anything_is_fetched(tmp_path: Path) -> None:
    said: list[str] = []
    pip = Pip()

    def run(command: Sequence[str]) -> int:
        assert "about 5 GB are fetched" in said[0]
        return pip(command)

    add(tmp_path, "sglang", said.append, run, free_bytes=100 * GB)
    assert pip.commands[0][1:4] == ["-m", "pip", "install"]
    assert "sglang==0.5.23" in pip.commands[0]
    assert ready_pythons(tmp_path) == {"sglang": str(python_in(tmp_path / "engines" / "sglang"))}


def test_what_was_interrupted_is_not_used_and_is_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="could not be installed"):
        add(tmp_path, "sglang", print, Pip(1), free_bytes=100 * GB)
    assert ready_pythons(tmp_path) == {}
    made = python_in(tmp_path / "engines" / "sglang").stat().st_ino
    add(tmp_path, "sglang", print, Pip(), free_bytes=100 * GB)
    assert python_in(tmp_path / "engines" / "sglang").stat().st_ino == made
    assert "sglang" in ready_pythons(tmp_path)


def test_what_cannot_be_imported_is_not_used(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot be imported"):
        add(tmp_path, "sglang", print, Pip(0, 1), free_bytes=100 * GB)
    assert ready_pythons(tmp_path) == {}


def test_one_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    add(tmp_path, "sglang", print, Pip(), free_bytes=100 * GB)
    said: list[str] = []
    pip = Pip()
    add(tmp_path, "sglang", said.append, pip, free_bytes=100 * GB)
    assert not pip.commands
    assert "is there already" in said[0]


def test_one_of_other_pins_is_not_used(tmp_path: Path) -> None:
    add(tmp_path, "sglang", print, Pip(), free_bytes=100 * GB)
    (tmp_path / "engines" / "sglang" / READY).write_text('["sglang==0.4.0"]')
    assert ready_pythons(tmp_path) == {}
    for damaged in ("", "{", '{"a": 1}', "3"):
        (tmp_path / "engines" / "sglang" / READY).write_text(damaged)
        assert ready_pythons(tmp_path) == {}


def test_a_disk_without_room_is_told_before_anything_is_fetched(tmp_path: Path) -> None:
    pip = Pip()
    with pytest.raises(EngineError, match=r"about 12 GB are taken .*, and 3\.0 GB are free there"):
        add(tmp_path, "sglang", print, pip, free_bytes=3 * GB)
    assert not pip.commands


def test_a_backend_that_needs_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs no environment; there are sglang"):
        add(tmp_path, "torch", print)


def test_a_machine_that_cannot_have_it_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "Linux on x86-64 alone, and this is darwin" in environments.why_not(ENVIRONMENTS["sglang"])
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("os.path.exists", lambda path: False)
    assert "their driver shows none here" in environments.why_not(ENVIRONMENTS["sglang"])
