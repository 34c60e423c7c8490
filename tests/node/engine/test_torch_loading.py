"""A range is loaded whole or not at all, from exactly the files that it needs, and shared with live stages."""

from __future__ import annotations

import gc
import json
import queue
import shutil
from collections.abc import Generator
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from node.engine.base import StageSpec
from node.engine.messages import (
    PREFIX,
    Done,
    DropStage,
    Load,
    LoadGoesOn,
    Refused,
    Reply,
    unpack_prefix,
    unpack_reply,
)
from node.engine.torch.backend import TorchBackend
from node.engine.torch.loading import SharedTensors, load_stage
from node.engine.torch.stage import TorchStage
from node.engine.worker import Activity, Inbox, Replies, Worker
from node.errors import LoadFailed
from node.wire.layer_range import layer_range
from tests.node.engine.driving import CPU, generate_here, load_here, save_tiny, tiny_llama

LAYER_TENSORS = 9
PROMPT = [5, 6, 7]


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(tiny_folder, tmp_path / "model")
    return tmp_path / "model"


def edit_tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace tensors, or with None remove them; `__` in a name stands for a dot."""
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if tensor is not None:
            tensors[name.replace("__", ".")] = tensor
    save_file(tensors, folder / "model.safetensors")


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def fails(folder: Path, match: str, start: int = 2, end: int = 4) -> None:
    with pytest.raises(LoadFailed, match=match) as failure:
        load_here(folder, start, end)
    assert failure.value.layers == layer_range(start, end)


def test_a_missing_tensor_of_the_range_fails_and_one_outside_does_not_matter(folder: Path) -> None:
    edit_tensors(folder, model__layers__3__mlp__up_proj__weight=None)
    fails(folder, r"missing: model\.layers\.3\.mlp\.up_proj\.weight")
    assert load_here(folder, 0, 3).whole.layers == 3


def test_a_tensor_without_use_in_the_range_fails(folder: Path) -> None:
    edit_tensors(folder, model__layers__2__self_attn__q_proj__bias=torch.zeros(64))
    fails(folder, r"without use: model\.layers\.2\.self_attn\.q_proj\.bias")
    assert load_here(folder, 3, 6).whole.layers == 3


def test_rotary_tables_that_old_checkpoints_store_are_passed_over(folder: Path, tiny_folder: Path) -> None:
    edit_tensors(folder, model__layers__2__self_attn__rotary_emb__inv_freq=torch.zeros(8))
    old, new = load_here(folder, 0, 6), load_here(tiny_folder, 0, 6)
    assert old.info.weight_bytes == new.info.weight_bytes
    assert generate_here([old], PROMPT, 5) == generate_here([new], PROMPT, 5)


def test_a_wrong_shape_fails(folder: Path) -> None:
    edit_tensors(folder, model__layers__2__mlp__up_proj__weight=torch.zeros(96, 63))
    fails(folder, r"up_proj\.weight has the shape \[96, 63\], \[96, 64\] expected")


@pytest.mark.parametrize("keep", [0, 5, 1000, -1])
def test_a_truncated_file_fails(folder: Path, keep: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    fails(folder, r"model\.safetensors: (no safetensors header, or a truncated one|\d+ bytes long, its header says)")


def test_missing_files_fail(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    fails(folder, r"neither model\.safetensors nor model\.safetensors\.index\.json")
    (folder / "config.json").unlink()
    fails(folder, r"no config\.json")
    fails(tmp_path / "absent", r"no config\.json")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model_type": "unheard_of"}, "unheard_of"),
        ({"quantization_config": {"quant_method": "aqlm"}}, r"quantised weights \(aqlm\)"),
        ({"num_hidden_layers": 3}, "the model has 3 layers"),
        ({"intermediate_size": 100}, "expected"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
    ],
)
def test_a_config_that_does_not_fit_fails(folder: Path, changes: dict[str, Any], match: str) -> None:
    edit_config(folder, **changes)
    fails(folder, match)


def test_a_config_that_is_no_json_fails(folder: Path) -> None:
    (folder / "config.json").write_text("{ no")
    fails(folder, r"config\.json")


def test_an_architecture_of_another_layout_fails(tmp_path: Path) -> None:
    from transformers import GPT2Config

    GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=64).save_pretrained(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    fails(tmp_path, "GPT2LMHeadModel is not laid out as", 0, 1)


@pytest.mark.parametrize(("start", "end"), [(0, 7), (3, 3), (4, 2), (-1, 2)])
def test_a_range_outside_the_model_fails(tiny_folder: Path, start: int, end: int) -> None:
    fails(tiny_folder, "the model has 6 layers", start, end)


def test_experts_stored_one_by_one_in_a_family_that_is_not_known_fail_with_a_clear_sentence(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, MixtralConfig

    from tests.node.engine.driving import TINY

    config = MixtralConfig(**TINY, head_dim=16, num_local_experts=4, num_experts_per_tok=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)  # as on the hub
    fails(tmp_path, "experts are stored one by one")


def test_of_a_sharded_checkpoint_only_the_needed_files_must_be_there(tmp_path: Path, tiny_folder: Path) -> None:
    save_tiny(tiny_llama(), tmp_path, shards=6)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {file for name, file in index.items() if ".layers.2." in name or ".layers.3." in name}
    for file in set(index.values()) - needed:
        (tmp_path / file).unlink()
    load_here(tmp_path, 2, 4)
    fails(tmp_path, "cannot be read", 0, 2)


def test_a_sharded_checkpoint_gives_the_same_tokens(tmp_path: Path, tiny_folder: Path) -> None:
    save_tiny(tiny_llama(), tmp_path, shards=3)
    sharded, single = load_here(tmp_path, 0, 6), load_here(tiny_folder, 0, 6)
    assert generate_here([sharded], PROMPT, 5) == generate_here([single], PROMPT, 5)


@pytest.mark.parametrize("index", ["", "[]", '{"weight_map": 3}', '{"weight_map": {"a": "../b.safetensors"}}'])
def test_an_index_that_cannot_be_trusted_fails(folder: Path, index: str) -> None:
    (folder / "model.safetensors.index.json").write_text(index)
    fails(folder, r"index\.json")


def test_an_index_that_promises_too_much_fails(folder: Path) -> None:
    names = load_file(folder / "model.safetensors").keys()
    edit_tensors(folder, model__layers__2__mlp__up_proj__weight=None)
    weight_map = dict.fromkeys(names, "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    fails(folder, r"tensor model\.layers\.2\.mlp\.up_proj\.weight")


def test_a_growing_range_reads_only_what_is_missing(tiny_folder: Path) -> None:
    shared = SharedTensors()
    half = load_here(tiny_folder, 0, 3, shared=shared)
    assert shared.read_count == 3 * LAYER_TENSORS + 1
    whole = load_here(tiny_folder, 0, 6, shared=shared)
    assert shared.read_count == 6 * LAYER_TENSORS + 3
    before, after = (stage.whole.model.model.layers[1].mlp.up_proj.weight.data_ptr() for stage in (half, whole))
    assert before == after
    answer = generate_here([whole], PROMPT, 5)
    half.drop()
    load_here(tiny_folder, 2, 6, shared=shared)  # shrinking reads nothing
    assert shared.read_count == 6 * LAYER_TENSORS + 3
    assert generate_here([whole], PROMPT, 5) == answer == generate_here([load_here(tiny_folder, 0, 6)], PROMPT, 5)


def test_tensors_that_no_stage_holds_are_dropped(tiny_folder: Path) -> None:
    shared = SharedTensors()
    stage = load_here(tiny_folder, 0, 3, shared=shared)
    other = load_here(tiny_folder, 1, 4, shared=shared)
    stage.drop()
    assert len(shared) == 3 * LAYER_TENSORS
    other.drop()
    assert len(shared) == 0


def test_another_dtype_or_a_replaced_file_is_not_shared(folder: Path) -> None:
    shared = SharedTensors()
    stages = [load_here(folder, 0, 2, shared=shared)]
    stages.append(load_here(folder, 0, 2, dtype="bfloat16", shared=shared))
    assert shared.read_count == 2 * (2 * LAYER_TENSORS + 1)
    save_tiny(tiny_llama(), folder, seed=2)
    stages.append(load_here(folder, 0, 2, shared=shared))
    assert shared.read_count == 3 * (2 * LAYER_TENSORS + 1)


def test_weights_that_are_being_read_are_counted_once_all_the_time(tiny_folder: Path) -> None:
    shared = SharedTensors()
    held = load_here(tiny_folder, 0, 3, shared=shared)
    alone = shared.memory.free_bytes
    progress = load_stage(StageSpec(str(tiny_folder), 3, 6, "float32", 1 << 20), CPU, shared)
    next(progress)
    beside = shared.memory.free_bytes
    assert beside < alone
    free = []
    while True:
        try:
            next(progress)
        except StopIteration as finished:
            other = finished.value
            break
        if len(free) == 5:  # a part of the first range is made meanwhile
            load_here(tiny_folder, 0, 1, shared=shared).drop()
        free.append(shared.memory.free_bytes)
    assert set(free) == {beside} == {shared.memory.free_bytes}
    other.drop()
    assert shared.memory.free_bytes == alone
    held.drop()


class LoadingWorker:
    """A worker without a process: requests in, replies out, one turn at a time."""

    def __init__(self, out: FileIO, folder: Path, backend: TorchBackend | None = None) -> None:
        self.backend = backend or TorchBackend("cpu")
        self.inbox: Inbox = queue.SimpleQueue()
        self.worker = Worker(self.inbox, Replies(out), Activity(), self.backend)
        self.inbox.put((Load(1, 7, StageSpec(str(folder), 0, 6, "float32", 1 << 20)), b""))

    def load_until_its_first_steps(self) -> None:
        self.worker.serve_one()
        assert self.worker.loads == 1
        while not len(self.backend.shared) or self.backend.shared.memory.coming_bytes:
            self.worker.serve_one()


def replies_in(file: Path) -> list[Reply]:
    """Those that tell something new: that a load goes on is none."""
    data, replies = file.read_bytes(), []
    while data:
        header_bytes, body_bytes = unpack_prefix(data[: PREFIX.size])
        replies.append(unpack_reply(data[PREFIX.size : PREFIX.size + header_bytes]))
        data = data[PREFIX.size + header_bytes + body_bytes :]
    return [reply for reply in replies if not isinstance(reply, LoadGoesOn)]


def test_a_load_that_is_given_up_in_its_first_steps_leaves_no_weights_in_the_worker(
    folder: Path, tmp_path: Path
) -> None:
    with FileIO(tmp_path / "out", "w") as out:
        loading = LoadingWorker(out, folder)
        loading.load_until_its_first_steps()
        gc.disable()
        try:
            loading.worker.serve_one()
            assert len(loading.backend.shared)
            loading.inbox.put((DropStage(2, 7), b""))
            while loading.worker.loads:
                loading.worker.serve_one()
            assert len(loading.backend.shared) == 0
        finally:
            gc.enable()
    given_up, done = replies_in(tmp_path / "out")
    assert isinstance(given_up, Refused)
    assert (given_up.number, given_up.text) == (1, "the load was given up")
    assert done == Done(2)


class FailsInItsFirstSteps(TorchBackend):
    """Reads all tensors, and then the library raises in the middle of a step."""

    def load(self, spec: StageSpec) -> Generator[None, None, TorchStage]:
        progress, all_read = super().load(spec), False
        for _ in progress:
            if all_read:
                progress.throw(RuntimeError("no kernel"))
            all_read = bool(len(self.shared)) and not self.shared.memory.coming_bytes
            yield
        raise AssertionError("it shall not get this far")


def test_a_load_that_fails_in_its_first_steps_leaves_no_weights_in_the_worker(folder: Path, tmp_path: Path) -> None:
    with FileIO(tmp_path / "out", "w") as out:
        loading = LoadingWorker(out, folder, FailsInItsFirstSteps("cpu"))
        gc.disable()
        try:
            loading.worker.serve_one()
            while loading.worker.loads:
                loading.worker.serve_one()
            assert len(loading.backend.shared) == 0
        finally:
            gc.enable()
    (failed,) = replies_in(tmp_path / "out")
    assert isinstance(failed, Refused)
    assert (failed.kind, failed.text) == ("load", "its first step failed: RuntimeError: no kernel")


def test_a_load_that_is_given_up_keeps_nothing(tiny_folder: Path) -> None:
    shared = SharedTensors()
    progress = load_stage(StageSpec(str(tiny_folder), 0, 6, "float32", 1 << 20), CPU, shared)
    for _ in range(10):
        next(progress)
    assert shared.read_count == 10
    progress.close()
    del progress
    gc.collect()
    assert len(shared) == 0


def test_a_tied_model_with_a_head_of_its_own_in_the_file_uses_it(tmp_path: Path) -> None:
    """As transformers 5 does: the file knows better than its config."""
    save_tiny(tiny_llama(tie_word_embeddings=True), tmp_path)
    tied = generate_here([load_here(tmp_path, 0, 6)], PROMPT, 5)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(
        {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, tmp_path / "model.safetensors"
    )
    assert generate_here([load_here(tmp_path, 0, 6)], PROMPT, 5) == tied
    save_file({**tensors, "lm_head.weight": torch.randn(128, 64)}, tmp_path / "model.safetensors")
    assert generate_here([load_here(tmp_path, 0, 6)], PROMPT, 5) != tied


def test_weights_survive_their_file(folder: Path) -> None:
    stage = load_here(folder, 0, 6)
    answer = generate_here([stage], PROMPT, 5)
    weights = folder / "model.safetensors"
    weights.write_bytes(b"\0" * weights.stat().st_size)  # in place: a mapped file would change under us
    assert generate_here([stage], PROMPT, 5) == answer


def test_too_little_memory_is_said_as_such(tmp_path: Path) -> None:
    save_tiny(tiny_llama(), tmp_path)
    edit_config(tmp_path, vocab_size=128)

    class Full(SharedTensors):
        def load(self, *_: Any) -> Any:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate ...")

    with pytest.raises(LoadFailed, match="too little memory on cpu"):
        load_here(tmp_path, 0, 6, shared=Full())
