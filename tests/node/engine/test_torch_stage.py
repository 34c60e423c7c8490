"""One stage: what a step may say, what comes out, and that sequences never mix."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from node.engine.base import Step
from node.engine.loading import SharedTensors
from node.engine.torch_stage import TorchStage
from node.errors import EngineError, OutOfKV
from node.wire.frames import Sampling
from tests.node.engine.driving import KV_BYTES, TINY, generate_here, load_here, pack_ids, step_here

PROMPTS = {"a": [3, 4, 5, 6], "b": [9, 8, 7], "c": [100, 4, 50, 2, 33]}


@pytest.fixture
def first(tiny_folder: Path) -> TorchStage:
    stage = load_here(tiny_folder, 0, 2)
    stage.reserve("s", 100)
    return stage


@pytest.fixture
def last(tiny_folder: Path) -> TorchStage:
    stage = load_here(tiny_folder, 2, 6)
    stage.reserve("s", 100)
    return stage


@pytest.fixture(params=["float32", "bfloat16"])
def chain(tiny_folder: Path, request: pytest.FixtureRequest) -> list[TorchStage]:
    return [load_here(tiny_folder, start, end, dtype=request.param) for start, end in [(0, 2), (2, 5), (5, 6)]]


def states(count: int, dtype: torch.dtype = torch.float32) -> bytes:
    return bytes(torch.randn(count, 64).to(dtype).view(torch.uint8).numpy().tobytes())


def test_info_says_what_the_stage_is(first: TorchStage, last: TorchStage) -> None:
    layer = (4 * 64 * 64 * 3 // 4 + 3 * 64 * 96 + 2 * 64) * 4  # q and o whole, k and v half
    assert first.info.weight_bytes == 2 * layer + TINY["vocab_size"] * 64 * 4
    assert last.info.weight_bytes == 4 * layer + TINY["vocab_size"] * 64 * 4 + 64 * 4
    assert first.info.kv_bytes_per_token == 2 * (2 * 2 * 16) * 4  # layers, keys and values, heads, width
    assert last.info.kv_bytes_per_token == 2 * first.info.kv_bytes_per_token
    assert first.info.kv_tokens == KV_BYTES // first.info.kv_bytes_per_token
    assert (first.info.hidden_size, first.info.dtype) == (64, "float32")


def test_hidden_states_leave_the_first_stage_and_tokens_the_last(first: TorchStage, last: TorchStage) -> None:
    middle = first.run(Step("s", 0, 4, pack_ids([1, 2, 3, 4]), None, None))
    assert len(middle.data) == 4 * 64 * 4
    assert middle.token is None
    assert middle.compute_ms > 0
    end = last.run(Step("s", 0, 4, middle.data, "float32", Sampling()))
    assert len(end.data) == 0
    assert end.token is not None
    assert 0 <= end.token < TINY["vocab_size"]


def test_layers_and_head_are_timed_apart(first: TorchStage, last: TorchStage) -> None:
    for stage in (first, last):
        assert stage.info.layer_ms is not None
        assert stage.info.layer_ms > 0
    assert first.info.head_ms is None
    assert last.info.head_ms is not None
    assert last.info.head_ms > 0
    assert first.run(Step("s", 0, 1, pack_ids([1]), None, None)).head_ms == 0
    assert last.run(Step("s", 0, 1, states(1), "float32", None)).head_ms == 0, "no token was asked for"
    sampled = last.run(Step("s", 1, 1, states(1), "float32", Sampling()))
    assert 0 < sampled.head_ms < sampled.compute_ms


def test_a_prompt_chunk_without_sampling_leaves_nothing_at_the_last_stage(last: TorchStage) -> None:
    result = last.run(Step("s", 0, 2, states(2), "float32", None))
    assert (len(result.data), result.token) == (0, None)


@pytest.mark.parametrize(
    ("step", "match"),
    [
        (Step("s", 1, 1, pack_ids([1]), None, None), "holds 0 tokens"),
        (Step("unknown", 0, 1, pack_ids([1]), None, None), "reserve it first"),
        (Step("s", 0, 2, pack_ids([1]), None, None), "4 bytes for 2 positions, 8 expected"),
        (Step("s", 0, 1, pack_ids([128]), None, None), "vocabulary has 128"),
        (Step("s", 0, 1, pack_ids([-1]), None, None), "vocabulary has 128"),
        (Step("s", 0, 1, states(1), "float32", None), "hidden states for a stage that is the first"),
        (Step("s", 0, 1, pack_ids([1]), None, Sampling()), "last layer"),
        (Step("s", 0, 101, pack_ids([1] * 101), None, None), "100 are reserved"),
    ],
)
def test_a_step_that_contradicts_the_stage_is_refused_and_harms_nothing(
    first: TorchStage, step: Step, match: str
) -> None:
    with pytest.raises(EngineError, match=match):
        first.run(step)
    assert len(first.run(Step("s", 0, 1, pack_ids([1]), None, None)).data) == 64 * 4


def test_a_stage_that_is_not_the_first_takes_no_token_ids_and_no_half_rows(last: TorchStage) -> None:
    with pytest.raises(EngineError, match="token ids for a stage that is not the first"):
        last.run(Step("s", 0, 1, pack_ids([1]), None, None))
    with pytest.raises(EngineError, match="256 expected"):
        last.run(Step("s", 0, 1, states(1)[:-4], "float32", None))


def test_a_repeated_position_is_an_error_and_the_sequence_goes_on(first: TorchStage) -> None:
    first.run(Step("s", 0, 3, pack_ids([1, 2, 3]), None, None))
    with pytest.raises(EngineError, match="position 0, but the KV cache holds 3 tokens"):
        first.run(Step("s", 0, 3, pack_ids([1, 2, 3]), None, None))
    first.run(Step("s", 3, 1, pack_ids([4]), None, None))


def test_logits_of_nan_are_an_error_and_break_the_sequence_alone(last: TorchStage) -> None:
    last.reserve("other", 10)
    nan = torch.full((1, 64), float("nan")).numpy().tobytes()
    with pytest.raises(EngineError, match="logits"):
        last.run(Step("s", 0, 1, nan, "float32", Sampling()))
    with pytest.raises(EngineError, match="cannot go on"):
        last.run(Step("s", 0, 1, states(1), "float32", Sampling()))
    assert last.run(Step("other", 0, 1, states(1), "float32", Sampling())).token is not None


def test_room_is_counted(tiny_folder: Path) -> None:
    stage = load_here(tiny_folder, 0, 6)
    total = stage.info.kv_tokens
    stage.reserve("a", total - 5)
    with pytest.raises(OutOfKV) as full:
        stage.reserve("b", 6)
    assert (full.value.needed_tokens, full.value.free_tokens) == (6, 5)
    stage.free("a")
    stage.reserve("b", total)


def test_hidden_states_of_another_dtype_are_cast(last: TorchStage) -> None:
    wide = torch.randn(2, 64).to(torch.bfloat16)
    last.reserve("bf16", 10)
    narrow = last.run(Step("bf16", 0, 2, wide.view(torch.uint8).numpy().tobytes(), "bfloat16", Sampling()))
    same = last.run(Step("s", 0, 2, wide.float().numpy().tobytes(), "float32", Sampling()))
    assert narrow.token == same.token


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_dtypes_leave_as_two_bytes_per_number(tiny_folder: Path, dtype: str) -> None:
    stage = load_here(tiny_folder, 0, 2, dtype=dtype)  # type: ignore[arg-type]
    wide = load_here(tiny_folder, 0, 2)
    for one in (stage, wide):
        one.reserve("s", 10)
    step = Step("s", 0, 3, pack_ids([1, 2, 3]), None, None)
    narrow = torch.frombuffer(bytearray(stage.run(step).data), dtype=getattr(torch, dtype)).float()
    exact = torch.frombuffer(bytearray(wide.run(step).data), dtype=torch.float32)
    assert narrow.shape == exact.shape
    assert torch.allclose(narrow, exact, rtol=0.1, atol=0.1)


def test_interleaved_sequences_never_mix(chain: list[TorchStage]) -> None:
    alone = {name: generate_here(chain, prompt, 6) for name, prompt in PROMPTS.items()}
    for stage in chain:
        for name in PROMPTS:
            stage.reserve(name, 20)
    answers: dict[str, list[int]] = {name: [] for name in PROMPTS}
    for _ in range(6):
        for name, prompt in PROMPTS.items():
            waiting = answers[name][-1:] or prompt
            position = len(prompt) + len(answers[name]) - 1 if answers[name] else 0
            token = step_here(chain, name, position, waiting, Sampling())
            assert token is not None
            answers[name].append(token)
    assert answers == alone


def test_a_freed_sequence_starts_anew(chain: list[TorchStage]) -> None:
    once = generate_here(chain, PROMPTS["a"], 5)
    generate_here(chain, PROMPTS["b"], 5)
    assert generate_here(chain, PROMPTS["a"], 5) == once


def test_sampled_tokens_do_not_depend_on_the_split_and_do_on_the_seed(tiny_folder: Path) -> None:
    def answer(cuts: list[tuple[int, int]], seed: int) -> list[int]:
        stages = [load_here(tiny_folder, start, end) for start, end in cuts]
        sampling = Sampling(temperature=1.5, top_p=0.95, top_k=50, seed=seed)
        return generate_here(stages, PROMPTS["c"], 12, sampling=sampling)

    whole = answer([(0, 6)], 1)
    assert whole == answer([(0, 3), (3, 6)], 1) == answer([(0, 1), (1, 5), (5, 6)], 1)
    assert whole != answer([(0, 6)], 2)


def test_a_prompt_in_chunks_gives_the_same_tokens_as_in_one_piece(tiny_folder: Path) -> None:
    stage = load_here(tiny_folder, 0, 6)
    whole = generate_here([stage], PROMPTS["c"], 4)
    stage.reserve("s", 20)
    prompt = PROMPTS["c"]
    step_here([stage], "s", 0, prompt[:2], None)
    assert step_here([stage], "s", 2, prompt[2:], Sampling()) == whole[0]


def test_a_part_shares_the_room_of_the_range_that_it_is_a_part_of(tiny_folder: Path) -> None:
    shared = SharedTensors()
    whole = load_here(tiny_folder, 0, 6, shared=shared)
    part = load_here(tiny_folder, 0, 3, shared=shared)
    whole.reserve("a", whole.info.kv_tokens - 10)
    with pytest.raises(OutOfKV) as full:
        part.reserve("b", 100)
    assert full.value.free_tokens == 20, "half as many layers, twice as many tokens"
    whole.free("a")
    part.reserve("b", 100)
    part.close()
    whole.reserve("a", whole.info.kv_tokens)
