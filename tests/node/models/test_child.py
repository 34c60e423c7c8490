"""The child process: its errors arrive as if raised here, and it ends when it is not wanted any more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from node.errors import DamagedModel, FetchFailed, ModelNotFound
from node.models import DEFAULT_REF, identify_in_child, import_in_child, prepare_in_child
from node.models.progress import ignore_progress

SLOW_INDEX = """
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
held = []
while True:
    held.append(listener.accept())
"""


def test_a_model_is_identified_and_prepared(tiny_gguf: Path, tmp_path: Path) -> None:
    async def main() -> None:
        models = tmp_path / "models"
        ref = await identify_in_child(str(tiny_gguf), models)
        seen: list[Any] = []
        folder = await prepare_in_child(ref, models, (0, 2), lambda *said: seen.append(said))
        assert (folder / "model.gguf").exists()
        phase, done, total, _ = seen[-1]
        assert phase == "convert"
        assert done == total > 0
        assert await import_in_child(tiny_gguf, models, ignore_progress) == ref

    trio.run(main)


def test_errors_keep_class_message_and_data(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF")

    async def main() -> None:
        with pytest.raises(DamagedModel) as damaged:
            await identify_in_child(str(path), tmp_path)
        assert damaged.value.where == str(path)
        assert str(damaged.value).startswith(f"{path}: truncated")
        assert damaged.value.exit_code == 5
        with pytest.raises(ModelNotFound) as missing:
            await identify_in_child("nonsense", tmp_path)
        assert missing.value.model == "nonsense"

    trio.run(main)


def test_a_child_that_dies_without_a_word_shows_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "sitecustomize.py"
    broken.write_text("import os, sys\nsys.stderr.write('out of everything\\n')\nsys.stderr.flush()\nos._exit(9)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    async def main() -> None:
        with pytest.raises(FetchFailed, match=r"smollm2.*status 9 \(.*out of everything"):
            await prepare_in_child(DEFAULT_REF, tmp_path, None, ignore_progress)

    trio.run(main)


@pytest.fixture
def slow_index(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An index that takes connections and never answers, so that pip is busy until it is ended."""
    process = subprocess.Popen([sys.executable, "-c", SLOW_INDEX], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{process.stdout.readline().strip()}/simple")
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "300")
    yield
    process.kill()
    process.wait()
    process.stdout.close()


def descendants(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children(recursive=True) if "node.models" in " ".join(child.cmdline())]


def test_cancelling_ends_the_child_and_its_pip_and_leaves_no_file(slow_index: None, tmp_path: Path) -> None:
    models = tmp_path / "models"
    started: list[psutil.Process] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:

            def on_progress(*said: object) -> None:
                started[:] = descendants(psutil.Process())
                if len(started) == 2:  # a process that is just starting may have no command line yet
                    nursery.cancel_scope.cancel()

            nursery.start_soon(prepare_in_child, DEFAULT_REF, models, None, on_progress)

    trio.run(main)
    assert len(started) == 2
    _gone, alive = psutil.wait_procs(started, timeout=10)
    assert alive == []
    assert [path for path in (models / ".partial").rglob("*")] == []


def test_killing_the_parent_ends_the_child_and_its_pip(slow_index: None, tmp_path: Path) -> None:
    script = (
        "import sys, trio; from pathlib import Path\n"
        "from node.models import DEFAULT_REF, prepare_in_child\n"
        "trio.run(prepare_in_child, DEFAULT_REF, Path(sys.argv[1]), None, lambda *said: print('going', flush=True))"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "models"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert parent.stdout is not None
    started: list[psutil.Process] = []
    while len(started) < 2:
        assert parent.stdout.readline() == "going\n"
        started = descendants(psutil.Process(parent.pid))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    _gone, alive = psutil.wait_procs(started, timeout=10)
    assert alive == []
    assert [path for path in (tmp_path / "models" / ".partial").rglob("*")] == []


def test_standard_output_of_libraries_does_not_disturb(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_gguf: Callable[..., Path]
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import atexit\natexit.register(print, 'noise')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ref = trio.run(identify_in_child, str(tiny_gguf), tmp_path / "models")
    assert json.dumps(ref.name) == '"tiny-test"'
