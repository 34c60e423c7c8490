"""A model is its bytes: what differs in them is another model, and what is called imported is what was given."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from safetensors.numpy import load_file, save_file

from node.errors import DamagedModel, ModelNotFound
from node.models import DEFAULT_REF, identify, import_file, installed, prepare
from node.models.cached_model import MANIFEST, CachedModel, Manifest, read_manifest
from node.models.hash_cache import cached_hashes, known_hashes, stamp_of
from node.models.installed import choosable_name
from node.models.progress import ignore_progress
from node.models.tensor_hashes import hash_tensors, read_hashes
from node.weights.places import tensor_places
from node.wire.models import ModelRef

MakeFolder = Callable[..., Path]
WEIGHTS = "model.safetensors"


def train_further(folder: Path) -> None:
    """Other numbers under the same header."""
    tensors = load_file(folder / WEIGHTS)
    save_file({name: values + 1 for name, values in tensors.items()}, folder / WEIGHTS, metadata={"format": "pt"})


def shard(folder: Path) -> None:
    """The same tensors in two files."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    weight_map = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(weight_map.values()):
        held = {name: tensors[name] for name, place in weight_map.items() if place == file}
        save_file(held, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_two_fine_tunes_with_equal_headers_are_two_models(make_folder: MakeFolder, tmp_path: Path) -> None:
    models = tmp_path / "models"
    base, tuned = make_folder("base"), tmp_path / "tuned"
    shutil.copytree(base, tuned)
    train_further(tuned)
    refs = [identify(str(folder), models) for folder in (base, tuned)]
    assert refs[0].digest != refs[1].digest
    assert [prepare(ref, models, (0, 2), ignore_progress) for ref in refs] == [base, tuned]


def test_the_same_tensors_in_other_files_are_the_same_model(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder, copy = make_folder("one"), tmp_path / "two"
    shutil.copytree(folder, copy)
    shard(copy)
    models = tmp_path / "models"
    assert identify(str(folder), models).digest == identify(str(copy), models).digest


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer.json", "config.json", "generation_config.json"])
def test_other_files_that_we_use_are_part_of_a_model(make_folder: MakeFolder, tmp_path: Path, name: str) -> None:
    models = tmp_path / "models"
    folder = make_folder()
    before = import_file(folder, models, ignore_progress)
    (folder / name).write_text((folder / name).read_text() + "\n")
    after = import_file(folder, models, ignore_progress)
    assert before.digest != after.digest
    copy = prepare(after, models, None, ignore_progress)
    assert (copy / name).read_bytes() == (folder / name).read_bytes()


def test_a_folder_that_was_trained_further_and_imported_again_has_its_new_weights(
    make_folder: MakeFolder, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    folder = make_folder("my-model")
    old = import_file(folder, models, ignore_progress)
    train_further(folder)
    new = import_file(folder, models, ignore_progress)
    copies = {ref: prepare(ref, models, (0, 2), ignore_progress) for ref in (old, new)}
    assert (copies[new] / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    assert (copies[old] / WEIGHTS).read_bytes() != (folder / WEIGHTS).read_bytes()


def test_a_folder_that_changed_since_it_was_chosen_is_refused_and_listed_so(
    make_folder: MakeFolder, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    folder = make_folder("mine")
    old = identify(str(folder), models)
    assert [model.state for model in installed(models)] == ["whole"]
    train_further(folder)
    assert [model.state for model in installed(models)] == ["changed"]
    with pytest.raises(DamagedModel, match="has changed since it was chosen; choose it again"):
        prepare(old, models, (0, 2), ignore_progress)
    new = identify("mine", models)  # by its name: as it is now
    assert new.digest != old.digest
    assert prepare(new, models, (0, 2), ignore_progress) == folder
    assert [(model.state, model.ref) for model in installed(models)] == [("whole", new)]  # the old one is no more


def test_a_folder_is_read_once_while_it_stays_as_it_is(make_folder: MakeFolder, tmp_path: Path) -> None:
    models, path = tmp_path / "models", make_folder() / WEIGHTS
    read: list[int] = []

    def hashes(after_s: float) -> Any:
        return cached_hashes(models, path, read.append, now_ns=lambda: time.time_ns() + int(after_s * 1e9))

    first = hashes(0.0)
    assert known_hashes(models, path) is None  # it was written just now, and may be again without a sign
    once = len(read)
    assert hashes(10.0) == first
    assert len(read) == 2 * once
    assert hashes(20.0) == first
    assert len(read) == 2 * once
    path.write_bytes(path.read_bytes())
    assert known_hashes(models, path) is None


def test_names_that_are_listed_can_be_chosen(make_folder: MakeFolder, tmp_path: Path, tiny_gguf: Path) -> None:
    models = tmp_path / "models"
    folder = make_folder("my-model")
    import_file(folder, models, ignore_progress)
    train_further(folder)
    import_file(folder, models, ignore_progress)
    import_file(tiny_gguf, models, ignore_progress)
    identify(str(make_folder("in-place", layers=3)), models)
    among = installed(models)
    names = [choosable_name(model, among) for model in among]
    assert len(set(names)) == len(among) == 4
    assert {"tiny-test", "in-place"} < set(names)
    for name, model in zip(names, among, strict=True):
        assert identify(name, models).digest == model.ref.digest


def test_a_model_called_like_the_default_is_chosen_by_its_longer_name(
    make_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    models = tmp_path / "models"
    ref = import_file(make_gguf(name="SmolLM2 135M Instruct"), models, ignore_progress)
    assert ref.name == DEFAULT_REF.name
    (model,) = installed(models)
    assert identify(choosable_name(model, [model]), models) == ref
    assert identify(ref.name, models) == DEFAULT_REF


def test_a_bare_name_that_means_a_folder_and_another_model_is_refused(
    make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "models"
    folder = make_folder("my-model")
    ref = import_file(folder, models, ignore_progress)
    monkeypatch.chdir(tmp_path)
    assert identify("my-model", models).digest == ref.digest  # the same bytes
    train_further(folder)
    with pytest.raises(ModelNotFound, match=r"choose \./my-model or one of my-model-"):
        identify("my-model", models)
    assert identify("./my-model", models).digest != ref.digest


def flip(path: Path, tensor: str) -> None:
    """Other bytes in the middle of a tensor, and no other sign of it. What the file is linked to stays as it is."""
    place, before = tensor_places(path)[tensor], path.stat()
    data = bytearray(path.read_bytes())
    middle = (place.start + place.end) // 2
    data[middle : middle + 64] = bytes(byte ^ 0xFF for byte in data[middle : middle + 64])
    replace_file(path, bytes(data))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_file(path: Path, data: bytes) -> None:
    """Put these bytes there without changing the file that is linked to it."""
    path.with_suffix(".new").write_bytes(data)
    os.replace(path.with_suffix(".new"), path)


FIRST, SECOND = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"
GGUF, GGUF_FIRST, GGUF_SECOND = "model.gguf", "blk.0.ffn_up.weight", "blk.1.ffn_up.weight"


def test_flipped_bytes_are_found_when_their_layers_are_loaded_and_made_again_from_the_source(
    tiny_gguf: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    ref = import_file(tiny_gguf, models, ignore_progress)
    folder = prepare(ref, models, (0, 2), ignore_progress)
    whole = (folder / GGUF).read_bytes()
    flip(folder / GGUF, GGUF_SECOND)
    prepare(ref, models, (0, 1), ignore_progress)
    assert (folder / GGUF).read_bytes() != whole  # those layers are not hurt by it, nor is the other one read
    told: list[str] = []
    prepare(ref, models, (1, 2), lambda phase, done, total, text: told.append(text) if phase == "repair" else None)
    assert (folder / GGUF).read_bytes() == whole
    assert len(told) == 1
    assert GGUF in told[0]
    assert GGUF_SECOND in told[0]
    assert "made again" in told[0]


def test_what_has_just_been_found_whole_is_not_read_again(tiny_gguf: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    ref = import_file(tiny_gguf, models, ignore_progress)
    said: list[str] = []
    prepare(ref, models, (0, 2), lambda *report: said.append(report[0]), check=False)
    assert said == []
    prepare(ref, models, (0, 2), lambda *report: said.append(report[0]))
    assert set(said) == {"load"}


def test_flipped_bytes_without_a_source_are_refused_by_name(tiny_gguf: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    ref = import_file(tiny_gguf, models, ignore_progress)
    folder = prepare(ref, models, (0, 2), ignore_progress)
    tiny_gguf.unlink()
    flip(folder / GGUF, GGUF_FIRST)
    with pytest.raises(DamagedModel, match=rf"{GGUF} has other bytes .*{GGUF_FIRST}.*import the GGUF file again"):
        prepare(ref, models, (0, 1), ignore_progress)


def test_a_flipped_header_or_tokenizer_is_found_too(tiny_gguf: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    ref = import_file(tiny_gguf, models, ignore_progress)
    folder = prepare(ref, models, (0, 2), ignore_progress)
    for name in (GGUF, "tokenizer.json", "chat_template.jinja"):
        whole = (folder / name).read_bytes()
        replace_file(folder / name, whole[:20] + bytes([whole[20] ^ 1]) + whole[21:])
        prepare(ref, models, (0, 2), ignore_progress)
        assert (folder / name).read_bytes() == whole


def test_a_flipped_copy_of_a_folder_is_copied_again_while_the_folder_is_the_same(
    make_folder: MakeFolder, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    folder = make_folder()
    ref = import_file(folder, models, ignore_progress)
    copy = prepare(ref, models, (0, 2), ignore_progress)
    flip(copy / WEIGHTS, FIRST)
    assert prepare(ref, models, (0, 2), ignore_progress) == copy
    assert (copy / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    flip(copy / WEIGHTS, FIRST)
    train_further(folder)
    with pytest.raises(DamagedModel, match="has changed since it was chosen"):
        prepare(ref, models, (0, 2), ignore_progress)


def test_importing_again_mends_a_damaged_copy(make_folder: MakeFolder, tmp_path: Path) -> None:
    models = tmp_path / "models"
    folder = make_folder()
    ref = import_file(folder, models, ignore_progress)
    copy = CachedModel(models, ref).folder
    flip(copy / WEIGHTS, FIRST)
    assert import_file(folder, models, ignore_progress) == ref
    assert (copy / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


def test_flipped_bytes_of_a_folder_that_is_used_where_it_is_are_found(make_folder: MakeFolder, tmp_path: Path) -> None:
    models = tmp_path / "models"
    folder = make_folder()
    ref = identify(str(folder), models)
    flip(folder / WEIGHTS, FIRST)
    with pytest.raises(DamagedModel, match=r"has changed since it was chosen|has other bytes"):
        prepare(ref, models, (0, 2), ignore_progress)


def test_bytes_that_change_without_a_sign_are_found_in_a_folder_that_was_read_once(
    make_folder: MakeFolder, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    path = make_folder() / WEIGHTS
    hashes = cached_hashes(models, path, now_ns=lambda: time.time_ns() + 10**10)
    ref = identify(str(path.parent), models)
    flip(path, SECOND)
    (entry,) = (models / ".hashes").iterdir()
    fields = json.loads(entry.read_bytes())
    entry.write_bytes(msgspec.json.encode({**fields, "stamp": stamp_of(path)}))  # as if nobody had written
    assert known_hashes(models, path) == hashes
    assert prepare(ref, models, (0, 1), ignore_progress) == path.parent
    with pytest.raises(DamagedModel, match=rf"{WEIGHTS} has other bytes than it came with \(in the tensor {SECOND}\)"):
        prepare(ref, models, (1, 2), ignore_progress)


def make_older(models: Path, ref: ModelRef, digest: str | None = None) -> ModelRef:
    """Turn a model of the cache into one of the version that kept no hashes."""
    cell = CachedModel(models, ref)
    manifest = read_manifest(cell.folder)
    assert manifest is not None
    for path in cell.folder.glob("*.hashes.json"):
        path.unlink()
    older = replace(ref, digest=digest or ref.digest)
    fields = msgspec.to_builtins(Manifest(manifest.format, older, manifest.files, manifest.weights))
    del fields["sha256"]
    (cell.folder / MANIFEST).write_text(json.dumps(fields))
    if older != ref:
        cell.folder.rename(CachedModel(models, older).folder)
    return older


def make_converted(models: Path, ref: ModelRef, weights: Path) -> Path:
    """Turn a GGUF model of the cache into one of the version that converted them and kept no hashes."""
    make_older(models, ref)
    cell = CachedModel(models, ref)
    manifest = read_manifest(cell.folder)
    assert manifest is not None
    (cell.folder / GGUF).unlink()
    shutil.copy(weights, cell.folder / WEIGHTS)
    files = {name: size for name, size in manifest.files.items() if name != GGUF}
    cell.list(replace(manifest, files={**files, WEIGHTS: weights.stat().st_size}, weights=(WEIGHTS,)))
    return cell.folder


def test_a_converted_model_of_an_older_version_gets_hashes_and_a_line_about_it(
    tiny_gguf: Path, make_folder: MakeFolder, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    ref = import_file(tiny_gguf, models, ignore_progress)
    made = make_converted(models, ref, make_folder() / WEIGHTS)
    tiny_gguf.unlink()
    said: list[str] = []
    folder = prepare(ref, models, (0, 2), lambda phase, done, total, text: said.append(text))
    assert folder == made
    assert sum("older version" in line for line in said) == 1
    assert read_hashes(folder, WEIGHTS) == hash_tensors(folder / WEIGHTS)
    said.clear()
    prepare(ref, models, (0, 2), lambda phase, done, total, text: said.append(text))
    assert not any("older version" in line for line in said)
    assert [model.complete for model in installed(models)] == [True]


def test_a_converted_model_gives_way_to_its_file_where_that_is_at_hand(
    tiny_gguf: Path, make_folder: MakeFolder, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    ref = import_file(tiny_gguf, models, ignore_progress)
    make_converted(models, ref, make_folder() / WEIGHTS)
    folder = prepare(identify(str(tiny_gguf), models), models, (0, 2), ignore_progress)
    assert (folder / GGUF).read_bytes() == tiny_gguf.read_bytes()
    assert not (folder / WEIGHTS).exists()


def test_a_copied_folder_of_an_older_version_is_called_by_its_bytes_from_then_on(
    make_folder: MakeFolder, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    ref = import_file(make_folder("mine"), models, ignore_progress)
    older = make_older(models, ref, "0" * 64)
    shutil.rmtree(models / ".sources")
    said: list[str] = []
    with pytest.raises(ModelNotFound, match="choose it anew with `--model mine`"):
        prepare(older, models, (0, 2), lambda phase, done, total, text: said.append(text))
    assert any("mine was imported by an older version" in line for line in said)
    assert [model.ref for model in installed(models)] == [ref]
    assert identify("mine", models) == ref
    assert prepare(ref, models, (0, 2), ignore_progress).parent == models


def test_a_file_that_is_being_written_is_not_taken(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder()

    def write_more(count: int) -> None:
        with (folder / WEIGHTS).open("ab") as file:
            file.write(b"more")

    with pytest.raises(DamagedModel, match="was changed while it was read"):
        cached_hashes(tmp_path / "models", folder / WEIGHTS, write_more)
