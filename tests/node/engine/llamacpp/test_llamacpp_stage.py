"""A stage on llama.cpp: splits, neighbours, room, and what it refuses. With the real default model as it came (Q4_1),
and a tiny random one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from node.engine.base import Batch, Slot
from node.errors import EngineError, LoadFailed, OutOfKV
from node.wire.frames import Sampling
from tests.node.engine.llamacpp.chains import Chain, load_here
from tests.node.engine.llamacpp.test_llamacpp_families import CASES
from tests.node.engine.llamacpp.tiny_models import EXPERTS, Value, quantise, save_tiny

PROMPTS = {"a": list(range(5, 24)), "b": [400, 17, 3000, 21, 90], "c": [7] * 33, "d": list(range(900, 880, -1))}


@pytest.fixture(scope="module")
def whole(smollm2: Path) -> Iterator[Chain]:
    chain = Chain(smollm2, [0, 30])
    yield chain
    chain.drop()


@pytest.fixture(scope="module")
def answers(whole: Chain) -> dict[str, list[int]]:
    """Of each prompt, alone."""
    return {name: whole.generate(name, prompt, 6) for name, prompt in PROMPTS.items()}


@pytest.fixture
def tiny(tiny_gguf: Path) -> Iterator[Chain]:
    chain = Chain(tiny_gguf, [0, 2, 6])
    yield chain
    chain.drop()


@pytest.mark.parametrize("cuts", [[0, 12, 30], [0, 7, 19, 30]], ids=str)
def test_two_and_three_parts_of_the_real_model_give_the_logits_of_the_whole(
    smollm2: Path, whole: Chain, cuts: list[int]
) -> None:
    """Sampled at a high temperature from many seeds: tokens differ as soon as a logit does by much less than a bit of
    their probabilities; and hidden rows are compared bit for bit with those of finer cuts."""
    chain = Chain(smollm2, cuts)
    try:
        for seed in range(3):
            sampling = Sampling(temperature=1.5, seed=seed)
            expected = whole.generate("x", PROMPTS["a"], 8, sampling)
            assert chain.generate("x", PROMPTS["a"], 8, sampling) == expected
        middle = load_here(smollm2, cuts[0], cuts[1])
        middle.open("x", cuts[0], cuts[1], None, 19)
        ids = np.array(PROMPTS["a"], np.int32)
        batch = Batch((Slot("x", 0, len(ids)),), ids.tobytes(), None)
        chain.stages[0].open("x", cuts[0], cuts[1], None, 19)
        assert bytes(middle.run(batch).data) == bytes(chain.stages[0].run(batch).data)
        middle.drop()
    finally:
        chain.drop()


def test_sequences_that_share_every_step_say_what_each_says_alone(whole: Chain, answers: dict[str, list[int]]) -> None:
    given: dict[str, list[int]] = {name: [] for name in PROMPTS}
    for name, prompt in PROMPTS.items():
        whole.open(name, len(prompt))
    result = whole.run(*((name, 0, prompt, "token") for name, prompt in PROMPTS.items()))
    for _ in range(5):
        for name, slot in zip(PROMPTS, result.slots, strict=True):
            given[name] += slot.tokens
        result = whole.run(
            *((name, len(PROMPTS[name]) + len(told) - 1, told[-1:], "token") for name, told in given.items())
        )
    for name, slot in zip(PROMPTS, result.slots, strict=True):
        given[name] += slot.tokens
        whole.close(name)
    assert given == answers


def test_sequences_join_and_leave_in_the_middle_of_others(whole: Chain, answers: dict[str, list[int]]) -> None:
    """`a` decodes from start to end; the others come and go beside it, into streams that were another's before."""
    told: list[int] = []
    whole.open("a", len(PROMPTS["a"]))
    for number, name in enumerate(["b", "c", "d", "b", "c"]):
        guest = f"guest {number}"
        whole.open(guest, len(PROMPTS[name]))
        if told:
            position = len(PROMPTS["a"]) + len(told) - 1
            result = whole.run((guest, 0, PROMPTS[name], "token"), ("a", position, told[-1:], "token"))
        else:
            result = whole.run((guest, 0, PROMPTS[name], "token"), ("a", 0, PROMPTS["a"], "token"))
        assert result.slots[0].tokens == (answers[name][0],)
        told += result.slots[1].tokens
        whole.close(guest)
    whole.close("a")
    assert told == answers["a"][:5]


def test_a_prompt_in_chunks_says_what_it_says_at_once(whole: Chain, answers: dict[str, list[int]]) -> None:
    whole.open("x", 33)
    whole.run(("x", 0, PROMPTS["c"][:10], "nothing"))
    whole.run(("x", 10, PROMPTS["c"][10:20], "nothing"))
    assert whole.step("x", 20, PROMPTS["c"][20:]) == answers["c"][0]
    whole.close("x")


def test_a_rebuilt_sequence_goes_on_with_the_same_bits(tiny: Chain) -> None:
    """The prompt as a chunk and the answer as the decode steps that it once was."""
    sampling = Sampling(temperature=2.0, seed=5)
    prompt = [5, 6, 7, 8, 9]
    expected = tiny.generate("x", prompt, 12, sampling)
    tiny.open("x", 5, sampling)
    tiny.run(("x", 0, prompt, "nothing"))
    tiny.run(("x", 5, expected[:6], "nothing"), replay=True)
    told = expected[:7]
    while len(told) < 12:
        told.append(tiny.step("x", 4 + len(told), told[-1:]))
    assert told == expected


def test_a_sequence_goes_back_and_takes_another_way(tiny: Chain) -> None:
    tiny.open("x", 20)
    tiny.run(("x", 0, [3, 4, 5, 6], "nothing"))
    right = tiny.step("x", 4, [7, 8])
    tiny.rewind("x", 4)
    tiny.run(("x", 4, [99, 98], "nothing"))
    tiny.rewind("x", 4)
    assert tiny.step("x", 4, [7, 8]) == right
    with pytest.raises(EngineError, match="holds 6 tokens"):
        tiny.rewind("x", 7)


def test_a_token_for_each_row_of_a_draft(tiny: Chain) -> None:
    tiny.open("one by one", 10)
    tiny.open("draft", 10)
    tiny.run(("one by one", 0, [3, 4, 5], "nothing"), ("draft", 0, [3, 4, 5], "nothing"))
    steps = [tiny.step("one by one", 3 + at, [token]) for at, token in enumerate([6, 7, 8])]
    assert list(tiny.run(("draft", 3, [6, 7, 8], "each")).slots[0].tokens) == steps


TYPES = {"Q2_K": 10, "Q3_K": 12, "Q4_K": 15, "Q5_K": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ3_S": 26, "IQ4_XS": 30}
"""Types of blocks and llama.cpp's numbers of files that are made of them alone."""


@pytest.mark.parametrize("kind", TYPES)
def test_each_type_of_blocks_gives_the_same_bits_in_parts_and_beside_others(
    library: None, tmp_path: Path, kind: str
) -> None:
    """Experts among them, whose choice magnifies the smallest difference."""
    sizes: dict[str, Value] = {"embedding_length": 256, "feed_forward_length": 256, "block_count": 4}
    changes = {key.replace(".", "__"): value for key, value in {**EXPERTS, **sizes}.items()}
    changes["expert_feed_forward_length"] = 256
    save_tiny(tmp_path / "exact", "qwen3moe", **changes)
    folder = quantise(tmp_path / "exact", tmp_path / kind, TYPES[kind])
    whole, parts = Chain(folder, [0, 4]), Chain(folder, [0, 1, 4])
    assert kind in whole.stages[0].info.quantisation
    sampling = Sampling(temperature=1.5, seed=3)
    prompts = {"a": [5, 6, 7], "b": list(range(20, 60))}
    alone = {name: whole.generate(name, prompt, 8, sampling) for name, prompt in prompts.items()}
    told: dict[str, list[int]] = {}
    for name, prompt in prompts.items():
        parts.open(name, len(prompt), sampling)
        told[name] = [parts.step(name, 0, prompt)]
    for at in range(7):
        slots = [(name, len(prompts[name]) + at, answer[-1:], "token") for name, answer in told.items()]
        for name, slot in zip(told, parts.run(*slots).slots, strict=True):  # type: ignore[arg-type]
            told[name] += slot.tokens
    assert told == alone
    whole.drop()
    parts.drop()


# --- some of its layers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3moe", "glm4moe", "qwen2vl"])
@pytest.mark.parametrize("held", [(0, 6), (0, 5), (1, 6), (1, 5)], ids=str)
def test_some_layers_of_a_stage_compute_as_a_stage_of_those_does(
    library: None, tmp_path: Path, family: str, held: tuple[int, int]
) -> None:
    """Beside a sequence over all of them, which goes on as if nothing had happened."""
    architecture, changes = CASES[family]
    folder = save_tiny(tmp_path, architecture, **{key.replace(".", "__"): value for key, value in changes.items()})
    stage = load_here(folder, *held)
    assert stage.info.can_narrow
    whole_range = batches(held, 20)
    stage.open("all", *held, Sampling() if held[1] == 6 else None, 30)
    first = stage.run(whole_range[0])
    for start, end in ((held[0], 3), (2, 4), (3, held[1]), (2, 3)):
        alone = load_here(folder, start, end)
        for each in (stage, alone):
            each.open("s", start, end, Sampling() if end == 6 else None, 20)
        for batch in batches((start, end), 12, name="s"):
            expected, found = alone.run(batch), stage.run(batch)
            assert bytes(found.data) == bytes(expected.data)
            assert found.slots == expected.slots
        stage.close("s")
        alone.drop()
    again = load_here(folder, *held)
    again.open("all", *held, Sampling() if held[1] == 6 else None, 30)
    assert bytes(again.run(whole_range[0]).data) == bytes(first.data)
    assert [again.run(batch).slots for batch in whole_range[1:]] == [
        stage.run(batch).slots for batch in whole_range[1:]
    ]
    again.drop()
    stage.drop()


def batches(layers: tuple[int, int], prompt: int, name: str = "all") -> list[Batch]:
    """A prompt and two steps for these layers."""
    random = np.random.default_rng(prompt)
    found = []
    for position, count in ((0, prompt), (prompt, 1), (prompt + 1, 1)):
        slots = (Slot(name, position, count, "token" if layers[1] == 6 else "nothing"),)
        if layers[0] == 0:
            found.append(Batch(slots, random.integers(3, 128, count).astype(np.int32).tobytes(), None))
        else:
            rows = random.standard_normal((count, 64)).astype(np.float32)
            found.append(Batch(slots, rows.tobytes(), "float32"))
    return found


def test_a_batch_is_over_one_range_of_layers(tiny_gguf: Path) -> None:
    stage = load_here(tiny_gguf, 0, 6)
    stage.open("a", 0, 6, Sampling(), 4)
    stage.open("b", 0, 3, None, 4)
    ids = np.array([3, 4], np.int32).tobytes()
    with pytest.raises(EngineError, match="several ranges of layers"):
        stage.run(Batch((Slot("a", 0, 1), Slot("b", 0, 1)), ids, None))
    stage.drop()


def test_a_family_that_cannot_be_cut_runs_all_its_layers_or_none(library: None, tmp_path: Path) -> None:
    stage = load_here(save_tiny(tmp_path, "gpt2"), 0, 6)
    assert not stage.info.can_narrow
    with pytest.raises(EngineError, match="the stage runs all of 0–5"):
        stage.open("s", 0, 3, None, 4)
    stage.drop()


# --- room -------------------------------------------------------------------------------------------------------------


def test_a_sequence_grows_through_new_shapes_and_says_the_same(tiny_gguf: Path) -> None:
    """Room for 512 tokens in all: four streams cannot grow, one alone takes what the others gave back."""
    stage = load_here(tiny_gguf, 0, 6)
    per_token = stage.info.kv_bytes_per_token
    stage.drop()
    wide, narrow = Chain(tiny_gguf, [0, 6]), Chain(tiny_gguf, [0, 6], kv_bytes=per_token * 520)
    expected = wide.generate("x", [5, 6, 7], 300)
    narrow.open("other", 3)
    narrow.run(("other", 0, [9, 9, 9], "nothing"))
    narrow.open("x", 3)
    told = [narrow.step("x", 0, [5, 6, 7])]
    while len(told) < 254:
        told.append(narrow.step("x", 2 + len(told), told[-1:]))
    result = narrow.run(("x", 256, told[-1:], "token"), ("other", 3, [9], "token"))
    assert result.slots[0].out_of_kv
    assert result.slots[0].problem == ""
    assert len(result.slots[1].tokens) == 1, "its neighbour goes on"
    narrow.close("other")
    while len(told) < 300:
        told.append(narrow.step("x", 2 + len(told), told[-1:]))
    assert told == expected
    wide.drop()
    narrow.drop()


def test_what_is_told_to_be_free_can_be_opened_and_more_cannot(tiny_gguf: Path) -> None:
    stage = load_here(tiny_gguf, 0, 6)
    per_token = stage.info.kv_bytes_per_token
    stage.drop()
    stage = load_here(tiny_gguf, 0, 6, kv_bytes=per_token * 1100)
    assert stage.info.kv_tokens == 1100
    stage.open("a", 0, 6, Sampling(), 300)
    free = stage.run(Batch((Slot("a", 0, 1),), np.int32(3).tobytes(), None)).free_kv_tokens
    assert free == 512
    stage.open("b", 0, 6, Sampling(), free)
    with pytest.raises(OutOfKV):
        stage.open("c", 0, 6, Sampling(), 1)
    stage.close("b")
    with pytest.raises(EngineError, match="of 600 tokens; the model knows 512"):
        stage.open("b", 0, 6, Sampling(), 600)
    stage.drop()


def test_as_many_sequences_as_there_may_be_and_not_one_more(tiny: Chain) -> None:
    for number in range(16):
        tiny.open(str(number), 4)
    with pytest.raises(OutOfKV):
        tiny.open("one more", 4)
    result = tiny.run(*((str(number), 0, [3 + number], "token") for number in range(16)))
    assert len({slot.tokens for slot in result.slots}) > 1
    tiny.close("7")
    tiny.open("one more", 4)


# --- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slot", "ids", "match"),
    [
        (Slot("s", 1, 1), [1], "holds 0 tokens"),
        (Slot("unknown", 0, 1), [1], "open it first"),
        (Slot("s", 0, 1), [128], "vocabulary has 128"),
        (Slot("s", 0, 1), [-5], "vocabulary has 128"),
        (Slot("s", 0, 1, "token"), [1], "does not reach the model's last layer"),
        (Slot("s", 0, 600), [1] * 600, "the model knows 512"),
    ],
)
def test_a_slot_that_contradicts_its_sequence_is_a_problem_of_its_own(
    tiny_gguf: Path, slot: Slot, ids: list[int], match: str
) -> None:
    stage = load_here(tiny_gguf, 0, 3)
    stage.open("s", 0, 3, None, 4)
    stage.open("neighbour", 0, 3, None, 4)
    good = np.array([7, 8], np.int32).tobytes()
    alone = stage.run(Batch((Slot("neighbour", 0, 2),), good, None))
    stage.rewind("neighbour", 0)
    result = stage.run(Batch((slot, Slot("neighbour", 0, 2)), np.array(ids, np.int32).tobytes() + good, None))
    assert match in result.slots[0].problem
    assert result.slots[1].problem == ""
    assert bytes(result.data)[-len(alone.data) :] == bytes(alone.data)
    assert not any(bytes(result.data)[: -len(alone.data)]), "a failed slot's rows are zeros"
    assert stage.run(Batch((Slot("s", 0, 1),), np.int32(3).tobytes(), None)).slots[0].problem == ""
    stage.drop()


def test_rows_of_nan_are_a_problem_of_their_own_and_get_nowhere(tiny_gguf: Path) -> None:
    stage = load_here(tiny_gguf, 3, 6)
    good = np.random.default_rng(1).standard_normal((1, 64)).astype(np.float32)
    for name in ("bad", "good"):
        stage.open(name, 3, 6, Sampling(), 4)
    rows = np.concatenate([np.full((1, 64), np.nan, np.float32), good]).tobytes()
    bad, other = stage.run(Batch((Slot("bad", 0, 1, "token"), Slot("good", 0, 1, "token")), rows, "float32")).slots
    assert "no finite numbers" in bad.problem
    again = Batch((Slot("bad", 0, 1, "token"),), good.tobytes(), "float32")
    assert len(other.tokens) == 1
    assert stage.run(again).slots[0].tokens == other.tokens, "nothing had moved"
    stage.drop()


def test_a_batch_or_a_sequence_that_cannot_be_is_refused_whole(tiny_gguf: Path) -> None:
    stage = load_here(tiny_gguf, 0, 3)
    for start, end in ((0, 4), (2, 2), (3, 6)):
        with pytest.raises(EngineError, match="the stage runs layers of 0–2"):
            stage.open("s", start, end, None, 4)
    stage.open("s", 0, 3, None, 4)
    with pytest.raises(EngineError, match="already"):
        stage.open("s", 0, 3, None, 4)
    with pytest.raises(EngineError, match="hidden states for layers that do begin"):
        stage.run(Batch((Slot("s", 0, 1),), bytes(256), "float32"))
    with pytest.raises(EngineError, match="at most 8192"):
        stage.run(Batch((Slot("s", 0, 9000),), bytes(36_000), None))
    stage.drop()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rows_travel_in_the_plans_dtype(tiny_gguf: Path, dtype: str) -> None:
    exact, narrow = Chain(tiny_gguf, [0, 3, 6]), Chain(tiny_gguf, [0, 3, 6], dtype=dtype)  # type: ignore[arg-type]
    ids = np.array([5, 6, 7], np.int32).tobytes()
    given = []
    for chain in (exact, narrow):
        chain.open("s", 3)
        given.append(chain.stages[0].run(Batch((Slot("s", 0, 3),), ids, None)).data)
    assert memoryview(given[1]).nbytes * 2 == memoryview(given[0]).nbytes
    chain = narrow
    result = chain.stages[1].run(Batch((Slot("s", 0, 3, "token"),), given[1], dtype))  # type: ignore[arg-type]
    assert len(result.slots[0].tokens) == 1
    exact.drop()
    narrow.drop()


def test_a_dropped_stage_gives_its_memory_back_and_may_be_dropped_again(tiny_gguf: Path) -> None:
    stage = load_here(tiny_gguf, 0, 3)
    stage.open("s", 0, 3, None, 4)
    stage.drop()
    stage.drop()
    assert not stage.is_held


def test_a_folder_without_gguf_says_which_backend_takes_it(library: None, tiny_folder: Path) -> None:
    with pytest.raises(LoadFailed, match=r"holds no GGUF file, and llama\.cpp reads no others"):
        load_here(tiny_folder, 0, 6)
