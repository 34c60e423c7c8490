"""Sequences in an MLX stage: alone, side by side, joining and leaving, going back, short of room."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.engine.base import BLOCK_TOKENS as PREFIX_TOKENS
from node.engine.base import Batch, Slot
from node.errors import EngineError, LoadFailed, OutOfKV
from node.wire.frames import Sampling
from tests.node.engine.driving import batch_of, pack_ids, rows_of, save_tiny, tiny_llama
from tests.node.engine.test_stage_families import FAMILIES

mx = pytest.importorskip("mlx.core", reason="MLX is not installed: pip install 'parallax-tui[mlx]'")

from node.engine.batches import SUSPECT_FAILURES
from node.engine.mlx.backend import MlxBackend
from node.engine.mlx.caches import BLOCK_TOKENS, rung
from node.engine.mlx.stage import MlxStage
from tests.node.engine.mlx.mlx_driving import generate_mlx, load_mlx, open_mlx, run_mlx

PROMPTS = {"a": [3, 4, 5, 6, 7, 8, 9], "b": [11, 12, 13], "c": [21, 22, 23, 24, 25], "d": [31]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save_tiny(tiny_llama(), folder)
    return folder


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def batching(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("batching")
    save_tiny(tiny_llama() if request.param == "llama" else FAMILIES["gemma3 tied"](), folder)
    return folder


def side_by_side(stages: list[MlxStage], count: int) -> dict[str, list[int]]:
    """All prompts, then decode steps of those that are there: b leaves early, d comes late, c pauses for two steps."""
    answers: dict[str, list[int]] = {name: [] for name in PROMPTS}

    def begin(name: str) -> None:
        open_mlx(stages, name, len(PROMPTS[name]) + count)
        answers[name] += run_mlx(stages, (name, 0, PROMPTS[name], "token"))[0]

    for name in "abc":
        begin(name)
    for step in range(2 * count):
        if step == 3:
            begin("d")
        names = [name for name in PROMPTS if 0 < len(answers[name]) < count]
        names = [name for name in names if not (name == "c" and step in (2, 5))]
        if not names:
            break
        places = [(name, len(PROMPTS[name]) + len(answers[name]) - 1) for name in names]
        tokens = run_mlx(stages, *((name, place, [answers[name][-1]], "token") for name, place in places))
        for name, got in zip(names, tokens, strict=True):
            answers[name] += got
            if len(answers[name]) == count:
                for stage in stages:
                    stage.close(name)
    return answers


@pytest.mark.parametrize("cuts", [[0, 6], [0, 1, 4, 6]])
def test_sequences_side_by_side_get_the_tokens_that_they_get_alone(batching: Path, cuts: list[int]) -> None:
    """Past a window of 8 too, and with neighbours that come, pause and go."""
    alone = [load_mlx(batching, start, end) for start, end in pairwise(cuts)]
    stages = [load_mlx(batching, start, end, batched=True) for start, end in pairwise(cuts)]
    assert all(stage.batched for stage in stages)
    assert side_by_side(stages, 12) == {name: generate_mlx(alone, name, ids, 12) for name, ids in PROMPTS.items()}


def test_one_that_stays_with_its_neighbours_is_not_copied_again(folder: Path) -> None:
    stage = load_mlx(folder, 0, 6, batched=True)
    open_mlx([stage], "a", 20)
    open_mlx([stage], "b", 20)
    for name in "ab":
        run_mlx([stage], (name, 0, PROMPTS[name], "token"))
    groups = set()
    for step in range(4):
        run_mlx([stage], *((name, len(PROMPTS[name]) + step, [5], "token") for name in "ab"))
        groups.add(stage.sequences.get("a").cache.group)
    assert len(groups) == 1
    assert None not in groups


def test_unlike_lengths_do_not_share_a_cache(folder: Path) -> None:
    """The short one would be padded to the long one's length."""
    stage = load_mlx(folder, 0, 6, batched=True)
    for name, length in (("long", BLOCK_TOKENS + 40), ("short", 5)):
        open_mlx([stage], name, length + 4)
        run_mlx([stage], (name, 0, [7] * length, "token"))
    run_mlx([stage], ("long", BLOCK_TOKENS + 40, [5], "token"), ("short", 5, [5], "token"))
    assert [stage.sequences.get(name).cache.group for name in ("long", "short")] == [None, None]


@given(st.integers(1, 1 << 20))
def test_a_rung_has_room_and_is_half_as_much_again_at_most(tokens: int) -> None:
    assert tokens <= rung(tokens) <= max(2 * BLOCK_TOKENS, tokens * 3 // 2 + 1)
    assert rung(tokens) % BLOCK_TOKENS == 0


def test_a_prompt_in_chunks_gives_the_tokens_of_one_piece(folder: Path) -> None:
    stage = load_mlx(folder, 0, 6)
    whole = generate_mlx([stage], "s", PROMPTS["a"], 6)
    open_mlx([stage], "t", 20)
    run_mlx([stage], ("t", 0, PROMPTS["a"][:3], "nothing"))
    assert run_mlx([stage], ("t", 3, PROMPTS["a"][3:], "token")) == [(whole[0],)]


def test_a_draft_gets_a_token_for_each_row_and_what_was_refused_is_taken_back(folder: Path) -> None:
    stage = load_mlx(folder, 0, 6, batched=True)
    answer = generate_mlx([stage], "s", PROMPTS["a"], 6)
    open_mlx([stage], "t", 20)
    run_mlx([stage], ("t", 0, PROMPTS["a"], "token"))
    length = len(PROMPTS["a"])
    wrong = [answer[0], answer[1], (answer[2] + 1) % 128]
    ((first, second, _),) = run_mlx([stage], ("t", length, wrong, "each"))
    assert [first, second] == answer[1:3]
    stage.rewind("t", length + 2)
    assert run_mlx([stage], ("t", length + 2, [answer[2]], "token")) == [(answer[3],)]


def test_a_member_of_a_group_goes_back_alone(folder: Path) -> None:
    stage = load_mlx(folder, 0, 6, batched=True)
    alone = generate_mlx([stage], "s", PROMPTS["a"], 4)
    for name in "ab":
        open_mlx([stage], name, 20)
        run_mlx([stage], (name, 0, PROMPTS[name], "token"))
    run_mlx([stage], ("a", 7, [alone[0]], "token"), ("b", 3, [5], "token"))
    run_mlx([stage], ("a", 8, [99], "token"), ("b", 4, [5], "token"))
    stage.rewind("a", 8)
    assert run_mlx([stage], ("a", 8, [alone[1]], "token"), ("b", 5, [5], "token"))[0] == (alone[2],)


def test_rows_to_replay_leave_the_bits_of_the_steps_that_they_were(folder: Path) -> None:
    stage = load_mlx(folder, 0, 6)
    answer = generate_mlx([stage], "s", PROMPTS["a"], 5)

    def caches(name: str) -> list[np.ndarray]:
        return [np.array(layer.keys[..., :11, :]) for layer in stage.sequences.get(name).cache.alone()]

    for name in ("stepped", "replayed"):
        open_mlx([stage], name, 20)
        run_mlx([stage], (name, 0, PROMPTS["a"], "nothing"))
    for step, token in enumerate(answer[:4]):
        run_mlx([stage], ("stepped", 7 + step, [token], "nothing"))
    run_mlx([stage], ("replayed", 7, answer[:4], "nothing"), replay=True)
    assert all(np.array_equal(*pair) for pair in zip(caches("stepped"), caches("replayed"), strict=True))


def test_a_sequence_may_run_through_some_of_the_layers(folder: Path) -> None:
    wide, narrow = load_mlx(folder, 1, 5), load_mlx(folder, 2, 4)
    rows = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32).tobytes()
    wide.open("s", 2, 4, None, 8)
    narrow.open("s", 2, 4, None, 8)
    assert bytes(wide.run(rows_of("s", 0, rows, 3)).data) == bytes(narrow.run(rows_of("s", 0, rows, 3)).data)


def test_layers_that_another_stage_holds_are_not_read_again(folder: Path) -> None:
    backend = MlxBackend("cpu")
    first, second = load_mlx(folder, 0, 4, backend=backend), load_mlx(folder, 2, 6, backend=backend)
    assert first.info.weight_bytes + second.info.weight_bytes > backend.shared.memory._weight_bytes()
    assert len(backend.shared.held) == 4 + 1 + 2 + 2
    del first
    second.drop()
    del second
    assert len(backend.shared.held) == 0


def test_a_sequence_without_room_is_told_so_and_may_go_on_later(folder: Path) -> None:
    per_token = load_mlx(folder, 0, 6).info.kv_bytes_per_token
    stage = load_mlx(folder, 0, 6, kv_bytes=per_token * 2 * BLOCK_TOKENS)
    stage.open("s", 0, 6, Sampling(), 5)
    stage.open("t", 0, 6, Sampling(), 5)
    with pytest.raises(OutOfKV):
        stage.open("u", 0, 6, Sampling(), 5)
    run_mlx([stage], ("s", 0, [7] * BLOCK_TOKENS, "nothing"))
    result = stage.run(batch_of(("s", BLOCK_TOKENS, [7], "token"), ("t", 0, [7], "token")))
    assert [(slot.out_of_kv, len(slot.tokens)) for slot in result.slots] == [(True, 0), (False, 1)]
    stage.close("t")
    assert run_mlx([stage], ("s", BLOCK_TOKENS, [7], "token")) != [()]


def test_foreign_ids_end_their_own_sequence_alone(folder: Path) -> None:
    stage = load_mlx(folder, 0, 6, batched=True)
    for name in "ab":
        open_mlx([stage], name, 9)
    result = stage.run(batch_of(("a", 0, [128], "token"), ("b", 0, [5], "token")))
    assert [bool(slot.problem) for slot in result.slots] == [True, False]
    assert "the vocabulary has 128" in result.slots[0].problem


def test_a_token_without_a_sampling_is_a_problem(folder: Path) -> None:
    stage = load_mlx(folder, 0, 6)
    stage.open("s", 0, 6, None, 9)
    assert "without a sampling" in stage.run(batch_of(("s", 0, [5], "token"))).slots[0].problem


def test_hidden_states_go_in_and_out_in_the_stages_dtype(folder: Path) -> None:
    """bfloat16 too, which numpy does not know."""
    first, second = (load_mlx(folder, *cut, dtype="bfloat16") for cut in ((0, 3), (3, 6)))
    open_mlx([first, second], "s", 9)
    rows = first.run(Batch((Slot("s", 0, 3),), pack_ids([3, 4, 5]), None))
    assert memoryview(rows.data).nbytes == 3 * 64 * 2
    (slot,) = second.run(Batch((Slot("s", 0, 3, "token"),), rows.data, "bfloat16")).slots
    assert len(slot.tokens) == 1


def test_a_library_that_fails_ends_the_sequences_of_that_step(folder: Path) -> None:
    stage = load_mlx(folder, 0, 6)
    for name in "ab":
        open_mlx([stage], name, 9)
    real = stage.whole.states
    calls = iter([True, False])
    stage.whole.states = lambda *given: 1 / 0 if next(calls) else real(*given)  # type: ignore[method-assign]
    result = stage.run(batch_of(("a", 0, [4], "token"), ("b", 0, [5], "token")))
    assert result.slots[0].problem == "the backend failed: ZeroDivisionError: division by zero"
    assert len(result.slots[1].tokens) == 1
    assert SUSPECT_FAILURES > 1


def test_damaged_files_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    data = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[:-100])
    with pytest.raises(LoadFailed, match="bytes long, its header says"):
        load_mlx(tmp_path, 0, 3)
    with pytest.raises(LoadFailed, match="the model has 6 layers"):
        load_mlx(folder, 3, 7)


def test_it_does_not_compute_on_a_chip_that_is_not_there() -> None:
    with pytest.raises(EngineError, match="MLX does not compute on cuda here"):
        MlxBackend("cuda")


def test_a_chip_is_measured_by_reading_and_by_multiplying() -> None:
    from node.engine.mlx.measuring import times_s

    few, many = times_s(1 << 12, 32), times_s(1 << 22, 256)
    assert 0 < few[0] < many[0]
    assert 0 < few[1] < many[1]


def test_a_text_that_begins_as_a_former_one_goes_on_from_what_was_kept_of_it(folder: Path) -> None:
    stage = load_mlx(folder, 0, 6, batched=True)
    ids = [5 + place % 90 for place in range(2 * PREFIX_TOKENS + 3)]
    expected = generate_mlx([stage], "whole", ids, 3)
    names = (b"first", b"second")
    for name in "ab":  # side by side, so that what is kept comes out of a group
        open_mlx([stage], name, len(ids) + 2)
        run_mlx([stage], (name, 0, ids, "token"))
    run_mlx([stage], *((name, len(ids), [expected[0]], "token") for name in "ab"))
    stage.keep("a", names)
    open_mlx([stage], "c", len(ids) + 2)
    assert stage.take_up("c", names) == 2 * PREFIX_TOKENS
    assert run_mlx([stage], ("c", 2 * PREFIX_TOKENS, ids[2 * PREFIX_TOKENS :], "token")) == [(expected[0],)]
    assert run_mlx([stage], ("c", len(ids), [expected[0]], "token"), ("b", len(ids) + 1, [expected[1]], "token")) == [
        (expected[1],),
        (expected[2],),
    ]
    open_mlx([stage], "d", len(ids))
    assert stage.take_up("d", (b"other", b"second")) == 0
