"""Hub models: only the files that hold the assigned layers, checked, resumed, and usable without a network."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio
from safetensors.numpy import load_file, save_file

import node.models as models_room
from node.errors import (
    BadLayers,
    DamagedModel,
    FetchFailed,
    ModelNotFound,
    ParallaxError,
    UnsupportedModel,
    WrongHash,
)
from node.models import ChatModel, identify, identify_in_child, installed, prepare_in_child, read_facts
from node.models.hub_files import files_for_layers
from node.wire.models import ModelRef


def _fakes() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fake_hub", Path(__file__).parents[2] / "fakes" / "hub.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fakes = _fakes()
COMMIT: str = fakes.COMMIT

SHARDS = {
    "model-00001-of-00004.safetensors": ("embed_tokens", "layers.0."),
    "model-00002-of-00004.safetensors": ("layers.1.", "layers.2."),
    "model-00003-of-00004.safetensors": ("layers.3.",),
    "model-00004-of-00004.safetensors": ("model.norm", "lm_head"),
}
EMBEDDING, MIDDLE, LATE, HEAD = SHARDS


def shard(folder: Path) -> dict[str, bytes]:
    """The model's files with its weights spread over four."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for name, marks in SHARDS.items():
        held = {key: value for key, value in tensors.items() if any(mark in key for mark in marks)}
        if held:
            save_file(held, folder / name, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(held, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub(make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    files = shard(make_folder("remote", layers=4, tied=False, kind="F32"))
    files |= {"pytorch_model.bin": b"pickle", "modeling_x.py": b"raise SystemExit", "README.md": b"words"}
    with fakes.running(fakes.FakeHub(files)) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "2")
        yield running


def prepare(ref: ModelRef, models: Path, layers: tuple[int, int] | None, seen: list[Any] | None = None) -> Path:
    return models_room.prepare(ref, models, layers, lambda *said: None if seen is None else seen.append(said))


def weights(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.safetensors")}


def test_only_the_files_of_the_assigned_layers_are_fetched(hub: Any, tmp_path: Path) -> None:
    models = tmp_path / "models"
    ref = identify("org/tiny", models)
    assert ref == ModelRef("org/tiny", f"hub:org/tiny@{COMMIT}", COMMIT)

    folder = prepare(ref, models, None)
    assert weights(folder) == set()
    assert read_facts(folder, "float32").layers == 4
    assert ChatModel.load(folder).render([{"role": "user", "content": "the"}])[0] == 1
    described = list(hub.asked)
    assert set(described) == {
        *("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"),
        *("chat_template.jinja", "model.safetensors.index.json"),
    }

    hub.asked.clear()
    seen: list[Any] = []
    assert prepare(ref, models, (1, 3), seen) == folder
    assert hub.asked == [MIDDLE]
    assert weights(folder) == {MIDDLE}
    assert seen[-1][:3] == ("fetch", len(hub.files[MIDDLE]), len(hub.files[MIDDLE]))
    assert [model.complete for model in installed(models)] == [False]

    hub.asked.clear()
    prepare(ref, models, (0, 2))
    assert hub.asked == [EMBEDDING]
    prepare(ref, models, (3, 4))
    assert hub.asked == [EMBEDDING, LATE, HEAD]
    assert [model.complete for model in installed(models)] == [True]

    hub.asked.clear()
    hub.status = 500  # nothing more is needed from there
    assert prepare(ref, models, (0, 4)) == folder
    assert identify("org/tiny", models) == ref
    assert not list((models / ".partial").rglob("*.safetensors"))


def test_a_child_process_fetches_from_the_hub_too(hub: Any, tmp_path: Path) -> None:
    async def main() -> None:
        ref = await identify_in_child("org/tiny", tmp_path / "models")
        seen: list[Any] = []
        folder = await prepare_in_child(ref, tmp_path / "models", (1, 3), lambda *said: seen.append(said))
        assert weights(folder) == {MIDDLE}
        assert seen[-1][:3] == ("fetch", len(hub.files[MIDDLE]), len(hub.files[MIDDLE]))

    trio.run(main)


def test_the_last_stage_of_a_tied_model_gets_the_embedding() -> None:
    index = {
        "model.embed_tokens.weight": "a",
        "model.layers.0.mlp.up_proj.weight": "b",
        "model.layers.1.mlp.up_proj.weight": "c",
        "model.layers.2.mlp.up_proj.weight": "mtp",  # beyond the model's layers: DeepSeek's extra predictor
        "model.visual.blocks.layers.0.weight": "eye",
        "model.norm.weight": "d",
    }
    assert files_for_layers(index, (0, 1), 2) == {"a", "b"}
    assert files_for_layers(index, (1, 2), 2) == {"a", "c", "d"}
    assert files_for_layers({**index, "lm_head.weight": "e"}, (1, 2), 2) == {"c", "d", "e"}


def test_a_single_file_is_fetched_whole(hub: Any, make_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_folder("single")
    hub.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    ref = identify("org/tiny", tmp_path / "models")
    assert weights(prepare(ref, tmp_path / "models", (0, 1))) == {"model.safetensors"}


def test_a_revision_may_be_chosen(hub: Any, tmp_path: Path) -> None:
    assert identify("org/tiny@v1", tmp_path / "models").digest == COMMIT
    with pytest.raises(ModelNotFound, match="the hub does not have it"):
        identify("org/tiny@v2", tmp_path / "models")
    with pytest.raises(ModelNotFound, match="the hub does not have it"):
        identify("org/other", tmp_path / "models")


def test_a_download_that_breaks_off_goes_on_later(hub: Any, tmp_path: Path) -> None:
    models = tmp_path / "models"
    ref = identify("org/tiny", models)
    folder = prepare(ref, models, None)
    hub.cut_after = {MIDDLE: 1000}
    try:
        prepare(ref, models, (1, 3))
    except FetchFailed:
        assert weights(folder) == set()
        prepare(ref, models, (1, 3))
    assert (folder / MIDDLE).read_bytes() == hub.files[MIDDLE]


def test_other_bytes_than_promised_are_removed(hub: Any, tmp_path: Path) -> None:
    models = tmp_path / "models"
    ref = identify("org/tiny", models)
    hub.promised_sha256 = {MIDDLE: "0" * 64}
    with pytest.raises(WrongHash, match=MIDDLE):
        prepare(ref, models, (1, 2))
    assert not list(models.rglob(MIDDLE))


def test_a_truncated_shard_is_damaged(hub: Any, tmp_path: Path) -> None:
    models = tmp_path / "models"
    hub.files[MIDDLE] = hub.files[MIDDLE][:-8]
    ref = identify("org/tiny", models)
    with pytest.raises(DamagedModel, match=r"bytes long, its header says"):
        prepare(ref, models, (1, 2))
    assert not list(models.rglob(MIDDLE))


def test_a_shard_that_was_truncated_in_the_cache_is_fetched_again(hub: Any, tmp_path: Path) -> None:
    models = tmp_path / "models"
    ref = identify("org/tiny", models)
    folder = prepare(ref, models, (0, 4))
    (folder / LATE).write_bytes(b"short")
    hub.asked.clear()
    prepare(ref, models, (0, 1))
    assert hub.asked == []  # not needed for these layers
    prepare(ref, models, (3, 4))
    assert hub.asked == [LATE]
    (folder / LATE).write_bytes(b"short")
    hub.status = 503
    with pytest.raises(DamagedModel, match="could not be fetched again"):
        prepare(ref, models, (3, 4))


def test_a_shard_whose_bytes_have_flipped_is_fetched_again(hub: Any, tmp_path: Path) -> None:
    models = tmp_path / "models"
    ref = identify("org/tiny", models)
    folder = prepare(ref, models, (0, 4))
    data = bytearray(hub.files[LATE])
    data[-9] ^= 1
    (folder / LATE).write_bytes(data)
    hub.asked.clear()
    prepare(ref, models, (0, 1))
    assert hub.asked == []  # not needed for these layers
    seen: list[tuple[Any, ...]] = []
    prepare(ref, models, (3, 4), seen)
    assert hub.asked == [LATE]
    told = [text for phase, _, _, text in seen if phase == "repair"]
    assert len(told) == 1
    assert LATE in told[0]
    assert (folder / LATE).read_bytes() == hub.files[LATE]
    (folder / LATE).write_bytes(data)
    hub.status = 503
    with pytest.raises(DamagedModel, match=rf"{LATE} .*could not be fetched again"):
        prepare(ref, models, (3, 4))


def test_checkpoints_quantised_in_a_way_that_cannot_be_read_are_refused_before_their_weights_are_fetched(
    hub: Any, tmp_path: Path
) -> None:
    config = json.loads(hub.files["config.json"])
    hub.files["config.json"] = json.dumps({**config, "quantization_config": {"quant_method": "aqlm"}}).encode()
    ref = identify("org/tiny", tmp_path / "models")
    with pytest.raises(UnsupportedModel, match=r"quantised weights \(aqlm\)"):
        prepare(ref, tmp_path / "models", (0, 4))
    assert not any(name.endswith(".safetensors") for name in hub.asked)


def test_layers_beyond_the_model_are_refused(hub: Any, tmp_path: Path) -> None:
    ref = identify("org/tiny", tmp_path / "models")
    with pytest.raises(BadLayers, match="2–4: the model has 4 layers"):
        prepare(ref, tmp_path / "models", (2, 5))


@pytest.mark.parametrize(
    ("status", "code", "kind", "words"),
    [
        (500, None, FetchFailed, "answered with 500"),
        (401, "GatedRepo", FetchFailed, "consent.*HF_TOKEN"),
        (404, "RepoNotFound", ModelNotFound, "check the name"),
    ],
)
def test_the_hubs_refusals_have_names(
    hub: Any, tmp_path: Path, status: int, code: str | None, kind: type[ParallaxError], words: str
) -> None:
    hub.status, hub.error_code = status, code
    with pytest.raises(kind, match=words):
        identify("org/tiny", tmp_path / "models")


def test_a_hub_that_cannot_be_reached_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FetchFailed, match=r"the hub cannot be reached.*parallax models import"):
        identify("org/tiny", tmp_path / "models")


def test_a_repository_without_safetensors_is_refused(hub: Any, tmp_path: Path) -> None:
    hub.files = {name: data for name, data in hub.files.items() if "safetensors" not in name}
    ref = identify("org/tiny", tmp_path / "models")
    with pytest.raises(UnsupportedModel, match="safetensors"):
        prepare(ref, tmp_path / "models", None)
    assert "pytorch_model.bin" not in hub.asked
    assert "modeling_x.py" not in hub.asked


def test_an_index_cannot_name_a_file_elsewhere(hub: Any, tmp_path: Path) -> None:
    hub.files["model.safetensors.index.json"] = json.dumps({"weight_map": {"x": "../../evil.safetensors"}}).encode()
    ref = identify("org/tiny", tmp_path / "models")
    with pytest.raises(UnsupportedModel, match=r"evil\.safetensors"):
        prepare(ref, tmp_path / "models", None)
