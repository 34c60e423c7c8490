"""What `--model` means, and what it says when it means nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from node.errors import DamagedModel, ModelNotFound, UnsupportedModel
from node.models import DEFAULT_REF, identify, import_file, installed, prepare, remove
from node.models.progress import ignore_progress


@pytest.mark.parametrize("choice", [None, "", "default", "smollm2-135m-instruct"])
def test_the_default_needs_no_look_at_the_disk(tmp_path: Path, choice: str | None) -> None:
    assert identify(choice, tmp_path) == DEFAULT_REF
    assert list(tmp_path.iterdir()) == []


def test_a_gguf_file_is_hashed_once(tiny_gguf: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    ref = identify(str(tiny_gguf), models)
    assert identify(str(tiny_gguf), models) == ref
    assert [path.name for path in (models / ".sources").iterdir()] == [f"{ref.digest}.json"]


def test_equal_files_of_other_names_are_one_model(tiny_gguf: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    copy = tmp_path / "other.gguf"
    copy.write_bytes(tiny_gguf.read_bytes())
    folders = {prepare(identify(str(path), models), models, None, ignore_progress) for path in (tiny_gguf, copy)}
    assert len(folders) == 1


def test_a_file_that_is_no_gguf_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"hello, I am a text that is long enough")
    with pytest.raises(DamagedModel, match="not a GGUF file"):
        identify(str(path), tmp_path / "models")


def test_an_unsupported_architecture_is_refused_at_once(make_gguf: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="rwkv6"):
        identify(str(make_gguf("rwkv6")), tmp_path / "models")


def test_installed_models_are_found_by_name(tiny_gguf: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    ref = import_file(tiny_gguf, models, ignore_progress)
    assert identify("tiny-test", models) == ref
    assert identify(Path(installed(models)[0].path).name, models) == ref


def test_two_models_of_one_name_must_be_told_apart(make_gguf: Callable[..., Path], tmp_path: Path) -> None:
    models = tmp_path / "models"
    refs = [import_file(make_gguf(arch), models, ignore_progress) for arch in ("llama", "qwen2")]
    with pytest.raises(ModelNotFound, match="choose one of tiny-test-"):
        identify("tiny-test", models)
    folders = {Path(model.path).name: model.ref for model in installed(models)}
    assert {identify(name, models).digest for name in folders} == {ref.digest for ref in refs}


def test_nothing_of_that_name_says_what_was_tried(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no such \.gguf file.*installed.*hub id"):
        identify("nonsense", tmp_path)
    with pytest.raises(ModelNotFound, match="folder without config"):
        identify(str(tmp_path), tmp_path / "models")
    (tmp_path / "weights.bin").write_text("x")
    with pytest.raises(ModelNotFound, match=r"no \.gguf file"):
        identify(str(tmp_path / "weights.bin"), tmp_path / "models")
    with pytest.raises(ModelNotFound, match=r"no such \.gguf file"):
        identify("gone/away.gguf", tmp_path / "models")


def test_removing_a_model_leaves_nothing_of_it(tiny_gguf: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    import_file(tiny_gguf, models, ignore_progress)
    assert remove("tiny-test", models).name == "tiny-test"
    assert installed(models) == []
    assert [path for path in models.rglob("*") if path.is_file() and path.suffix != ".lock"] == []
    with pytest.raises(ModelNotFound, match="not installed"):
        remove("tiny-test", models)
    assert tiny_gguf.exists()


def test_removing_a_folder_that_is_used_in_place_leaves_the_folder(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    models = tmp_path / "models"
    folder = make_folder("mine")
    identify(str(folder), models)
    assert [(model.name, model.complete) for model in installed(models)] == [("mine", True)]
    remove("mine", models)
    assert installed(models) == []
    assert (folder / "model.safetensors").exists()
