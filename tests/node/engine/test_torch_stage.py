"""One stage: what a batch may say, what comes out, and that sequences never mix."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch

from node.engine.backend import BackendLost
from node.engine.base import Batch, Slot
from node.engine.batches import EACH_MOST_ROWS, SUSPECT_FAILURES
from node.engine.torch.loading import SharedTensors
from node.engine.torch.stage import TorchStage
from node.errors import EngineError, OutOfKV
from node.wire.frames import Sampling
from tests.node.engine.driving import (
    KV_BYTES,
    TINY,
    batch_of,
    generate_here,
    load_here,
    open_here,
    pack_ids,
    rows_of,
    run_here,
    step_here,
)

PROMPTS = {"a": [3, 4, 5, 6], "b": [9, 8, 7], "c": [100, 4, 50, 2, 33]}
CUTS = [((0, 6),), ((0, 3), (3, 6)), ((0, 1), (1, 5), (5, 6))]
Chains = dict[tuple[tuple[int, int], ...], list[TorchStage]]
SAMPLINGS = [Sampling(), Sampling(temperature=1.5, top_p=0.95, top_k=50, seed=1)]


@pytest.fixture(scope="module")
def chains(tiny_folder: Path) -> Chains:
    """The model cut in each of the ways, in float32. Close what you open."""
    return {cuts: [load_here(tiny_folder, start, end) for start, end in cuts] for cuts in CUTS}


@pytest.fixture
def first(tiny_folder: Path) -> TorchStage:
    stage = load_here(tiny_folder, 0, 2)
    open_here([stage], "s", 100)
    return stage


@pytest.fixture
def last(tiny_folder: Path) -> TorchStage:
    stage = load_here(tiny_folder, 2, 6)
    open_here([stage], "s", 100)
    return stage


@pytest.fixture(params=["float32", "bfloat16"])
def chain(tiny_folder: Path, request: pytest.FixtureRequest) -> list[TorchStage]:
    return [load_here(tiny_folder, start, end, dtype=request.param) for start, end in [(0, 2), (2, 5), (5, 6)]]


def states(count: int, dtype: torch.dtype = torch.float32) -> bytes:
    return bytes(torch.randn(count, 64).to(dtype).view(torch.uint8).numpy().tobytes())


def problems(stage: TorchStage, batch: Batch) -> list[str]:
    return [slot.problem for slot in stage.run(batch).slots]


# --- what a stage is, gives and takes ---------------------------------------------------------------------------------


def test_info_says_what_the_stage_is(first: TorchStage, last: TorchStage) -> None:
    layer = (4 * 64 * 64 * 3 // 4 + 3 * 64 * 96 + 2 * 64) * 4  # q and o whole, k and v half
    assert first.info.weight_bytes == 2 * layer + TINY["vocab_size"] * 64 * 4
    assert last.info.weight_bytes == 4 * layer + TINY["vocab_size"] * 64 * 4 + 64 * 4
    assert first.info.kv_bytes_per_token == 2 * (2 * 2 * 16) * 4  # layers, keys and values, heads, width
    assert last.info.kv_bytes_per_token == 2 * first.info.kv_bytes_per_token
    assert first.info.kv_tokens == KV_BYTES // first.info.kv_bytes_per_token
    assert (first.info.hidden_size, first.info.dtype) == (64, "float32")
    assert (first.info.can_rewind, first.info.can_narrow) == (True, True)


def test_hidden_states_leave_the_first_stage_and_tokens_the_last(first: TorchStage, last: TorchStage) -> None:
    middle = first.run(batch_of(("s", 0, [1, 2, 3, 4], "nothing")))
    assert len(middle.data) == 4 * 64 * 4
    assert middle.slots[0].tokens == ()
    assert middle.compute_ms > 0
    end = last.run(rows_of("s", 0, middle.data, 4, "token"))
    assert len(end.data) == 0
    (token,) = end.slots[0].tokens
    assert 0 <= token < TINY["vocab_size"]


def test_layers_and_head_are_timed_apart(first: TorchStage, last: TorchStage) -> None:
    for stage in (first, last):
        assert stage.info.layer_ms is not None
        assert stage.info.layer_ms > 0
    assert first.info.head_ms is None
    assert last.info.head_ms is not None
    assert last.info.head_ms > 0
    assert first.run(batch_of(("s", 0, [1], "nothing"))).head_ms == 0
    assert last.run(rows_of("s", 0, states(1), 1)).head_ms == 0, "no token was asked for"
    sampled = last.run(rows_of("s", 1, states(1), 1, "token"))
    assert 0 < sampled.head_ms < sampled.compute_ms


def test_a_prompt_chunk_that_wants_nothing_leaves_nothing_at_the_last_stage(last: TorchStage) -> None:
    result = last.run(rows_of("s", 0, states(2), 2))
    assert (len(result.data), result.slots[0].tokens) == (0, ())


@pytest.mark.parametrize(
    ("batch", "match"),
    [
        (Batch((), b"", None), "a batch of 0 slots"),
        (Batch((Slot("s", 0, 2),), pack_ids([1]), None), "4 bytes for 2 rows, 8 expected"),
        (Batch((Slot("s", 0, 0),), b"", None), "0 rows at position 0"),
        (Batch((Slot("s", -1, 1),), pack_ids([1]), None), "1 rows at position -1"),
        (Batch((Slot("s", 0, 9000),), pack_ids([1] * 9000), None), "a batch of 9000 rows, at most 8192"),
        (Batch((Slot("s", 0, 1), Slot("s", 1, 1)), pack_ids([1, 1]), None), "one sequence in two slots"),
        (rows_of("s", 0, states(1), 1), "hidden states for layers that do begin the model"),
    ],
)
def test_a_batch_that_cannot_be_one_is_refused_whole_and_harms_nothing(
    first: TorchStage, batch: Batch, match: str
) -> None:
    with pytest.raises(EngineError, match=match):
        first.run(batch)
    assert len(first.run(batch_of(("s", 0, [1], "nothing"))).data) == 64 * 4


@pytest.mark.parametrize(
    ("batch", "match"),
    [
        (batch_of(("s", 1, [1], "nothing")), "holds 0 tokens"),
        (batch_of(("unknown", 0, [1], "nothing")), "open it first"),
        (batch_of(("s", 0, [128], "nothing")), "vocabulary has 128"),
        (batch_of(("s", 0, [-1], "nothing")), "vocabulary has 128"),
        (batch_of(("s", 0, [1], "token")), "does not reach the model's last layer"),
    ],
)
def test_a_slot_that_contradicts_its_sequence_is_a_problem_of_its_own(
    first: TorchStage, batch: Batch, match: str
) -> None:
    open_here([first], "neighbour", 100)
    alone = first.run(batch_of(("neighbour", 0, [7, 8], "nothing")))
    first.rewind("neighbour", 0)
    (bad,) = batch.slots
    mixed = Batch((bad, Slot("neighbour", 0, 2)), bytes(batch.data) + pack_ids([7, 8]), None)
    result = first.run(mixed)
    assert match in result.slots[0].problem
    assert result.slots[1].problem == ""
    assert bytes(result.data)[-len(alone.data) :] == bytes(alone.data)
    assert not any(bytes(result.data)[: -len(alone.data)]), "a failed slot's rows are zeros"
    assert problems(first, batch_of(("s", 0, [1], "nothing"))) == [""], "nothing had moved"


def test_a_stage_that_does_not_begin_the_model_takes_no_token_ids_and_no_half_rows(last: TorchStage) -> None:
    with pytest.raises(EngineError, match="token ids for layers that do not begin"):
        last.run(batch_of(("s", 0, [1], "nothing")))
    with pytest.raises(EngineError, match="256 expected"):
        last.run(rows_of("s", 0, states(1)[:-4], 1))


def test_a_repeated_position_is_a_problem_and_the_sequence_goes_on(first: TorchStage) -> None:
    first.run(batch_of(("s", 0, [1, 2, 3], "nothing")))
    assert "position 0, but the KV cache holds 3 tokens" in problems(first, batch_of(("s", 0, [1, 2, 3], "nothing")))[0]
    assert problems(first, batch_of(("s", 3, [4], "nothing"))) == [""]


def test_logits_of_nan_break_the_sequence_alone_until_it_goes_back(last: TorchStage) -> None:
    open_here([last], "other", 10)
    nan, good = torch.full((1, 64), float("nan")).numpy().tobytes(), states(1)
    both = Batch((Slot("s", 0, 1, "token"), Slot("other", 0, 1, "token")), nan + good, "float32")
    bad, other = last.run(both).slots
    assert "logits" in bad.problem
    assert len(other.tokens) == 1
    assert "cannot go on" in problems(last, rows_of("s", 0, good, 1, "token"))[0]
    last.rewind("s", 0)
    assert last.run(rows_of("s", 0, good, 1, "token")).slots[0].tokens == other.tokens


def test_a_library_that_fails_on_one_sequence_is_kept_and_one_that_fails_on_all_is_not(
    first: TorchStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = first.whole
    forward = whole.forward

    def fails_on_seven(rows: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        if 7 in rows:
            raise RuntimeError("no kernel for sevens")
        return forward(rows, *rest, **options)

    monkeypatch.setattr(whole, "forward", fails_on_seven)
    for _ in range(3 * SUSPECT_FAILURES):
        assert "sevens" in problems(first, batch_of(("s", 0, [7], "nothing")))[0]
        first.rewind("s", 0)
    assert problems(first, batch_of(("s", 0, [1], "nothing"))) == [""]
    first.rewind("s", 0)

    def fails(*arguments: Any, **options: Any) -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr(whole, "forward", fails)
    for _ in range(SUSPECT_FAILURES - 1):
        assert "illegal memory access" in problems(first, batch_of(("s", 0, [1], "nothing")))[0]
        first.rewind("s", 0)
    with pytest.raises(BackendLost, match="illegal memory access"):
        first.run(batch_of(("s", 0, [1], "nothing")))


def test_a_token_of_a_sequence_without_a_sampling_is_refused(last: TorchStage) -> None:
    last.open("mute", 2, 6, None, 10)
    assert "opened without a sampling" in problems(last, rows_of("mute", 0, states(1), 1, "token"))[0]
    assert problems(last, rows_of("mute", 0, states(1), 1)) == [""]


def test_hidden_states_of_another_dtype_are_cast(last: TorchStage) -> None:
    wide = torch.randn(2, 64).to(torch.bfloat16)
    open_here([last], "bf16", 10)
    slot = (Slot("bf16", 0, 2, "token"),)
    narrow = last.run(Batch(slot, wide.view(torch.uint8).numpy().tobytes(), "bfloat16"))
    same = last.run(rows_of("s", 0, wide.float().numpy().tobytes(), 2, "token"))
    assert narrow.slots == same.slots


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_dtypes_leave_as_two_bytes_per_number(tiny_folder: Path, dtype: str) -> None:
    stage = load_here(tiny_folder, 0, 2, dtype=dtype)  # type: ignore[arg-type]
    wide = load_here(tiny_folder, 0, 2)
    open_here([stage, wide], "s", 10)
    batch = batch_of(("s", 0, [1, 2, 3], "nothing"))
    narrow = torch.frombuffer(bytearray(stage.run(batch).data), dtype=getattr(torch, dtype)).float()
    exact = torch.frombuffer(bytearray(wide.run(batch).data), dtype=torch.float32)
    assert narrow.shape == exact.shape
    assert torch.allclose(narrow, exact, rtol=0.1, atol=0.1)


# --- room -------------------------------------------------------------------------------------------------------------


def test_room_is_counted_and_told_with_each_batch(tiny_folder: Path) -> None:
    stage = load_here(tiny_folder, 0, 6)
    total = stage.info.kv_tokens
    open_here([stage], "a", total - 5)
    assert stage.run(batch_of(("a", 0, [1], "nothing"))).free_kv_tokens == 5
    with pytest.raises(OutOfKV) as full:
        open_here([stage], "b", 6)
    assert (full.value.needed_tokens, full.value.free_tokens) == (6, 5)
    stage.close("a")
    open_here([stage], "b", total)
    assert stage.run(batch_of(("b", 0, [1], "nothing"))).free_kv_tokens == 0


def test_a_part_that_is_loaded_beside_shares_the_room_of_the_range_that_it_is_a_part_of(tiny_folder: Path) -> None:
    shared = SharedTensors()
    whole = load_here(tiny_folder, 0, 6, shared=shared)
    part = load_here(tiny_folder, 0, 3, shared=shared)
    open_here([whole], "a", whole.info.kv_tokens - 10)
    with pytest.raises(OutOfKV) as full:
        open_here([part], "b", 100)
    assert full.value.free_tokens == 20, "half as many layers, twice as many tokens"
    whole.close("a")
    open_here([part], "b", 100)
    part.drop()
    open_here([whole], "a", whole.info.kv_tokens)


def test_a_sequence_takes_room_as_it_grows_and_a_slot_that_finds_none_leaves_everything_as_it_was(
    tiny_folder: Path,
) -> None:
    stage = load_here(tiny_folder, 0, 6)
    total = stage.info.kv_tokens
    open_here([stage], "a", 2)
    open_here([stage], "b", total - 6)
    assert stage.run(batch_of(("a", 0, [1, 2, 3, 4], "nothing"))).free_kv_tokens == 2
    result = stage.run(batch_of(("a", 4, [5, 6, 7], "token"), ("b", 0, [1], "nothing")))
    assert [(slot.out_of_kv, slot.problem, slot.tokens) for slot in result.slots] == [(True, "", ()), (False, "", ())]
    assert result.free_kv_tokens == 2
    stage.close("b")
    (slot,) = stage.run(batch_of(("a", 4, [5, 6, 7], "token"))).slots
    stage.close("a")
    open_here([stage], "alone", 7)
    assert stage.run(batch_of(("alone", 0, [1, 2, 3, 4], "nothing"))).slots[0].problem == ""
    assert stage.run(batch_of(("alone", 4, [5, 6, 7], "token"))).slots[0] == slot


def test_rows_that_are_replayed_give_the_bits_that_they_gave_as_steps(tiny_folder: Path) -> None:
    stage = load_here(tiny_folder, 0, 4)
    ids = [5, 9, 2, 77, 31]
    for name in ("steps", "replayed"):
        open_here([stage], name, 10)
        stage.run(batch_of((name, 0, [3, 4], "nothing")))
    stepped = b"".join(
        bytes(stage.run(batch_of(("steps", 2 + at, [id_], "nothing"))).data) for at, id_ in enumerate(ids)
    )
    replayed = stage.run(Batch((Slot("replayed", 2, len(ids), "nothing", True),), pack_ids(ids), None))
    assert bytes(replayed.data) == stepped
    following = [stage.run(batch_of((name, 7, [8], "nothing"))).data for name in ("steps", "replayed")]
    assert bytes(following[0]) == bytes(following[1])


def test_the_last_row_of_a_replay_gives_the_token_that_its_step_gave(tiny_folder: Path) -> None:
    stage = load_here(tiny_folder, 0, 6)
    answer = generate_here([stage], [3, 4, 5], 6)
    open_here([stage], "again", 9)
    stage.run(batch_of(("again", 0, [3, 4, 5], "nothing")))
    (slot,) = stage.run(Batch((Slot("again", 3, 5, "token", True),), pack_ids(answer[:5]), None)).slots
    assert slot.tokens == (answer[5],)


def test_a_sequence_that_begins_like_one_that_was_kept_goes_on_from_there_with_equal_bits(tiny_folder: Path) -> None:
    stage = load_here(tiny_folder, 0, 6)
    assert stage.info.keeps_prefixes
    ids = [(7 * at) % 100 for at in range(140)]
    names = (b"1" * 16, b"2" * 16)
    open_here([stage], "first", 150)
    assert stage.run(batch_of(("first", 0, ids[:128], "nothing"))).slots[0].problem == ""
    whole = stage.run(batch_of(("first", 128, ids[128:], "token"))).slots
    stage.keep("first", names)
    stage.close("first")
    open_here([stage], "next", 150)
    assert stage.take_up("next", names) == 128
    assert stage.run(batch_of(("next", 128, ids[128:], "token"))).slots == whole
    open_here([stage], "other", 150)
    assert stage.take_up("other", (b"3" * 16,)) == 0
    assert stage.run(batch_of(("other", 0, ids[:2], "nothing"))).slots[0].problem == ""


# --- sequences --------------------------------------------------------------------------------------------------------


def test_interleaved_sequences_never_mix(chain: list[TorchStage]) -> None:
    alone = {name: generate_here(chain, prompt, 6) for name, prompt in PROMPTS.items()}
    for name in PROMPTS:
        open_here(chain, name, 20)
    answers: dict[str, list[int]] = {name: [] for name in PROMPTS}
    for _ in range(6):
        for name, prompt in PROMPTS.items():
            waiting = answers[name][-1:] or prompt
            position = len(prompt) + len(answers[name]) - 1 if answers[name] else 0
            answers[name] += step_here(chain, name, position, waiting)
    assert answers == alone


def rows_and_tokens(
    stages: list[TorchStage], order: tuple[str, ...], sampling: Sampling, count: int = 5
) -> dict[str, tuple[bytes, list[int]]]:
    """All prompts in one batch, then all decode steps together, slots in this order: of each sequence the hidden rows
    that entered the last stage, and its tokens."""
    for name in order:
        open_here(stages, name, 20, sampling)
    seen = {name: (b"", list[int]()) for name in order}
    waiting = {name: PROMPTS[name] for name in order}
    position = dict.fromkeys(order, 0)
    for _ in range(count):
        batch = batch_of(*((name, position[name], waiting[name], "token") for name in order))
        if stages[:-1]:
            rows = run_here(
                stages[:-1], Batch(tuple(Slot(s.sequence, s.position, s.count) for s in batch.slots), batch.data, None)
            )
            entering = Batch(batch.slots, rows.data, "float32")
        else:
            entering = batch
        result = run_here(stages[-1:], entering)
        data, width = bytes(entering.data), len(memoryview(entering.data).cast("B")) // batch.rows
        for slot, given in zip(batch.slots, result.slots, strict=True):
            mine, data = data[: slot.count * width], data[slot.count * width :]
            before, tokens = seen[slot.sequence]
            seen[slot.sequence] = (before + mine, tokens + list(given.tokens))
            position[slot.sequence] += slot.count
            waiting[slot.sequence] = list(given.tokens)
    for name in order:
        for stage in stages:
            stage.close(name)
    return seen


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("cuts", CUTS)
def test_rows_and_tokens_are_the_same_bit_for_bit_alone_and_with_neighbours_in_any_order(
    chains: Chains, cuts: tuple[tuple[int, int], ...], sampling: Sampling
) -> None:
    stages = chains[cuts]
    alone = {name: rows_and_tokens(stages, (name,), sampling)[name] for name in PROMPTS}
    for order in permutations(PROMPTS):
        assert rows_and_tokens(stages, order, sampling) == alone


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_tokens_are_the_same_however_the_model_is_split_and_the_prompt_is_cut(
    chains: Chains, sampling: Sampling
) -> None:
    prompt = PROMPTS["c"] + PROMPTS["a"]
    answers = []
    for cuts in CUTS:
        stages = chains[cuts]
        answers.append(generate_here(stages, prompt, 6, sampling=sampling))
        for chunk in (1, 2, 4):
            open_here(stages, "chunked", 30, sampling)
            open_here(stages, "neighbour", 30, sampling)
            for position in range(0, len(prompt), chunk):
                part = prompt[position : position + chunk]
                want = "token" if position + len(part) == len(prompt) else "nothing"
                result = run_here(
                    stages,
                    batch_of(("neighbour", position, [5] * len(part), "nothing"), ("chunked", position, part, want)),
                )
            answer = list(result.slots[1].tokens)
            while len(answer) < 6:
                answer += step_here(stages, "chunked", len(prompt) + len(answer) - 1, answer[-1:])
            answers.append(answer)
            for stage in stages:
                stage.close("chunked")
                stage.close("neighbour")
    assert len({tuple(answer) for answer in answers}) == 1


def test_rows_of_a_prompt_in_chunks_are_those_of_the_whole_prompt_but_for_rounding(tiny_folder: Path) -> None:
    """Products of other shapes end in other last bits: that is why slots do not share them."""
    stage = load_here(tiny_folder, 0, 5)
    prompt = [int(token) for token in torch.randint(3, 128, (40,), generator=torch.Generator().manual_seed(2))]
    open_here([stage], "whole", 40)
    whole = torch.frombuffer(bytearray(stage.run(batch_of(("whole", 0, prompt, "nothing"))).data), dtype=torch.float32)
    for chunk in (1, 7, 16):
        open_here([stage], "cut", 40)
        data = b"".join(
            bytes(stage.run(batch_of(("cut", begin, prompt[begin : begin + chunk], "nothing"))).data)
            for begin in range(0, 40, chunk)
        )
        stage.close("cut")
        assert torch.allclose(torch.frombuffer(bytearray(data), dtype=torch.float32), whole, rtol=0, atol=1e-4)


def test_a_closed_sequence_starts_anew(chain: list[TorchStage]) -> None:
    once = generate_here(chain, PROMPTS["a"], 5)
    generate_here(chain, PROMPTS["b"], 5)
    assert generate_here(chain, PROMPTS["a"], 5) == once


def test_sampled_tokens_depend_on_the_seed(tiny_folder: Path) -> None:
    stage = load_here(tiny_folder, 0, 6)
    first, other = (
        generate_here([stage], PROMPTS["c"], 12, sampling=Sampling(temperature=1.5, seed=seed)) for seed in (1, 2)
    )
    assert first != other


# --- a token per row, and back ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("cuts", CUTS)
def test_a_draft_is_verified_by_a_token_for_each_of_its_rows(
    chains: Chains, cuts: tuple[tuple[int, int], ...], sampling: Sampling
) -> None:
    stages = chains[cuts]
    prompt = PROMPTS["c"]
    right = generate_here(stages, prompt, 8, sampling=sampling)
    open_here(stages, "s", 30, sampling)
    (first,) = step_here(stages, "s", 0, prompt)
    assert first == right[0]
    position = len(prompt)
    assert list(step_here(stages, "s", position, right[:4], "each")) == right[1:5]
    # of the next draft the second token is wrong: what follows from it is forgotten again
    wrong = (right[5] + 1) % TINY["vocab_size"]
    verified = step_here(stages, "s", position + 4, [right[4], wrong, 9], "each")
    assert verified[0] == right[5]
    for stage in stages:
        stage.rewind("s", position + 5)
    assert list(step_here(stages, "s", position + 5, right[5:7], "each")) == right[6:8]
    for stage in stages:
        stage.close("s")


def test_a_token_for_each_row_of_a_whole_prompt_is_too_much_at_once(tiny_folder: Path) -> None:
    stage = load_here(tiny_folder, 0, 6)
    open_here([stage], "s", 200)
    many = [1] * (EACH_MOST_ROWS + 1)
    assert f"at most {EACH_MOST_ROWS} at a time" in problems(stage, batch_of(("s", 0, many, "each")))[0]
    assert len(step_here([stage], "s", 0, many[1:], "each")) == EACH_MOST_ROWS


def test_a_rewound_sequence_goes_on_as_if_nothing_had_been_after_that_position(first: TorchStage) -> None:
    def tail() -> bytes:
        return bytes(first.run(batch_of(("s", 3, [50, 60], "nothing"))).data)

    first.run(batch_of(("s", 0, [1, 2, 3], "nothing")))
    right = tail()
    for position in (5, 4, 3):
        first.rewind("s", position)
        if position == 3:
            break
        assert "KV cache holds" in problems(first, batch_of(("s", 3, [50, 60], "nothing")))[0]
    first.run(batch_of(("s", 3, [99, 98, 97], "nothing")))
    first.rewind("s", 3)
    assert tail() == right
    first.rewind("s", 0)
    first.run(batch_of(("s", 0, [1, 2, 3], "nothing")))
    assert tail() == right


@pytest.mark.parametrize("position", [-1, 4])
def test_a_sequence_cannot_go_back_to_where_it_never_was(first: TorchStage, position: int) -> None:
    first.run(batch_of(("s", 0, [1, 2, 3], "nothing")))
    with pytest.raises(EngineError, match=f"back to {position}, but the KV cache holds 3 tokens"):
        first.rewind("s", position)
    with pytest.raises(EngineError, match="open it first"):
        first.rewind("unknown", 0)


# --- some of the layers -----------------------------------------------------------------------------------------------


def test_sequences_run_through_some_of_a_stages_layers_and_give_what_a_stage_of_those_gives(
    tiny_folder: Path, chains: Chains
) -> None:
    shared = SharedTensors()
    stage = load_here(tiny_folder, 0, 6, shared=shared)
    read = shared.read_count
    prompt = PROMPTS["c"]
    for cuts in CUTS[1:]:
        data, dtype = pack_ids(prompt), None
        for (start, end), alone in zip(cuts, chains[cuts], strict=True):
            open_here([alone], "s", 20)
            stage.open("s", start, end, Sampling(), 20)
            batch = Batch((Slot("s", 0, len(prompt), "token" if end == 6 else "nothing"),), data, dtype)
            expected, given = alone.run(batch), stage.run(batch)
            stage.close("s")
            alone.close("s")
            assert given.slots == expected.slots
            assert bytes(given.data) == bytes(expected.data)
            data, dtype = bytes(given.data), "float32"
    assert shared.read_count == read, "nothing is loaded a second time"
    with pytest.raises(EngineError, match=r"layers 4–6, but the stage holds 0–5"):
        stage.open("s", 4, 7, None, 20)


def test_one_batch_has_one_range_of_layers(tiny_folder: Path) -> None:
    stage = load_here(tiny_folder, 0, 6)
    stage.open("whole", 0, 6, Sampling(), 20)
    stage.open("begin", 0, 2, None, 20)
    both = batch_of(("whole", 0, [1], "token"), ("begin", 0, [1], "nothing"))
    with pytest.raises(EngineError, match="several ranges of layers"):
        stage.run(both)
    assert len(stage.run(batch_of(("begin", 0, [1], "nothing"))).data) == 64 * 4
    assert stage.run(batch_of(("whole", 0, [1], "token"))).slots[0].problem == ""


def test_many_ranges_of_a_stage_one_after_another_keep_no_more_than_some(tiny_folder: Path) -> None:
    stage = load_here(tiny_folder, 0, 6)
    stage.open("stays", 1, 2, None, 10)
    ranges = [(start, end) for start in range(6) for end in range(start + 1, 7)]
    for start, end in ranges * 2:
        stage.open("s", start, end, None, 10)
        stage.close("s")
    assert problems(stage, rows_of("stays", 0, states(1), 1)) == [""]
    assert stage.info.kv_tokens > 0
    assert stage.slices < len(ranges) / 2


def test_a_dropped_stage_holds_no_weights(tiny_folder: Path) -> None:
    shared = SharedTensors()
    stage = load_here(tiny_folder, 0, 6, shared=shared)
    stage.open("s", 2, 4, None, 10)
    stage.drop()
    stage.drop()
    assert len(shared) == 0
