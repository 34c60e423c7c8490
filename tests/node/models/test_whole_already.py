"""A model that lies here whole is found without a child process; one that does not is left to the child."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from node.models import DEFAULT_REF, child, identify, identify_in_child, prepare, prepare_in_child
from node.models.progress import ignore_progress
from node.models.whole_already import whole_already


@pytest.fixture
def no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object) -> None:
        raise AssertionError("a child process was started")

    monkeypatch.setattr(child, "_run", never)


@pytest.mark.usefixtures("no_child")
@pytest.mark.parametrize("layers", [None, (0, 2)])
def test_what_is_whole_starts_no_child(tiny_gguf: Path, tmp_path: Path, layers: tuple[int, int] | None) -> None:
    ref = identify(str(tiny_gguf), tmp_path)
    folder = prepare(ref, tmp_path, None, ignore_progress)
    assert trio.run(prepare_in_child, ref, tmp_path, layers, ignore_progress) == folder


@pytest.mark.usefixtures("no_child")
def test_nothing_has_to_be_looked_up_for_the_default_model(tmp_path: Path) -> None:
    assert trio.run(identify_in_child, None, tmp_path) == DEFAULT_REF
    assert trio.run(identify_in_child, "default", tmp_path) == DEFAULT_REF


def test_what_is_absent_cut_or_changed_is_left_to_the_child(tiny_gguf: Path, tmp_path: Path) -> None:
    ref = identify(str(tiny_gguf), tmp_path)
    assert whole_already(ref, tmp_path, None, ignore_progress) is None
    folder = prepare(ref, tmp_path, None, ignore_progress)
    assert whole_already(ref, tmp_path, (0, 2), ignore_progress) == folder
    config = (folder / "config.json").read_bytes()
    (folder / "config.json").write_bytes(config.replace(b"{", b"[", 1))
    assert whole_already(ref, tmp_path, None, ignore_progress) is None
    (folder / "config.json").write_bytes(config[:-1])
    assert whole_already(ref, tmp_path, None, ignore_progress) is None
    (folder / "config.json").write_bytes(config)
    weights = next(path for path in folder.iterdir() if path.suffix in (".safetensors", ".gguf"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.unlink()
    weights.write_bytes(data)
    assert whole_already(ref, tmp_path, None, ignore_progress) == folder, "no weights were asked for"
    assert whole_already(ref, tmp_path, (0, 2), ignore_progress) is None
