"""The torch stage with the rows of a batch computed together, as on a graphics chip; here forced on the processor."""

from __future__ import annotations

from collections.abc import Generator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from node.engine.base import StageSpec
from node.engine.torch.backend import TorchBackend
from node.engine.torch.loading import SharedTensors, load_stage
from node.engine.torch.packed_attention import LEAST_TOKENS, NAME, PADDED_TWICE, Span, in_groups
from node.engine.torch.pages import PAGE_TOKENS, Pages, PageTable
from node.engine.torch.stage import TorchStage
from node.errors import OutOfKV
from node.wire.frames import Sampling
from tests.node.engine.driving import (
    CPU,
    KV_BYTES,
    TINY,
    batch_of,
    generate_here,
    load_here,
    open_here,
    rows_of,
    run_here,
    save_tiny,
    step_here,
    tiny_llama,
)
from tests.node.engine.test_stage_families import FAMILIES

PROMPTS = {"a": [3, 4, 5, 6, 7, 8, 9], "b": [11, 12, 13], "c": [21, 22, 23, 24, 25], "d": [31]}
BATCHED = ["llama", "qwen3 tied", "mistral, sliding", "gemma3 tied", "phi3", "qwen3 moe", "gpt-oss", "gemma2"]


def finished(progress: Generator[None, None, TorchStage]) -> TorchStage:
    while True:
        try:
            next(progress)
        except StopIteration as ended:
            stage: TorchStage = ended.value
            return stage


def load_packed(folder: Path, start: int, end: int, kv_bytes: int = KV_BYTES) -> TorchStage:
    spec = StageSpec(str(folder), start, end, "float32", kv_bytes)
    stage = finished(load_stage(spec, CPU, SharedTensors(), packed=True))
    assert "packed" in stage.info.drift_class
    return stage


def gemma2() -> transformers.PretrainedConfig:
    """Caps its scores."""
    return transformers.Gemma2Config(
        **{**TINY, "tie_word_embeddings": True},
        head_dim=16,
        sliding_window=8,
        query_pre_attn_scalar=16,
        attn_logit_softcapping=20.0,
        layer_types=["sliding_attention", "full_attention"] * 3,
    )


@pytest.fixture(scope="module", params=BATCHED)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    save_tiny(gemma2() if request.param == "gemma2" else FAMILIES[request.param](), folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save_tiny(tiny_llama(), folder)
    return folder


def side_by_side(stages: list[TorchStage], count: int) -> dict[str, list[int]]:
    """b leaves early, d comes late with its prompt among the others' steps, c pauses for two steps."""
    answers: dict[str, list[int]] = {name: [] for name in PROMPTS}
    for name in PROMPTS:
        open_here(stages, name, len(PROMPTS[name]) + count)
    for step in range(3 * count):
        slots = []
        for name, prompt in PROMPTS.items():
            got = answers[name]
            if len(got) == count or (name == "d" and step < 3) or (name == "c" and step in (2, 5)):
                continue
            slots.append((name, len(prompt) + len(got) - 1, [got[-1]], "token") if got else (name, 0, prompt, "token"))
        if not slots:
            break
        result = run_here(stages, batch_of(*slots))  # type: ignore[arg-type]
        for (name, *_), slot in zip(slots, result.slots, strict=True):
            answers[name] += slot.tokens  # type: ignore[index]
    return answers


@pytest.mark.parametrize("cuts", [[0, 6], [0, 1, 4, 6]])
def test_sequences_that_share_products_get_the_tokens_that_they_get_alone(family: Path, cuts: list[int]) -> None:
    """Ragged, past windows of 8, with prompts among others' steps, and neighbours that come, pause and go."""
    alone = [load_here(family, start, end) for start, end in pairwise(cuts)]
    stages = [load_packed(family, start, end) for start, end in pairwise(cuts)]
    assert side_by_side(stages, 12) == {name: generate_here(alone, ids, 12) for name, ids in PROMPTS.items()}


def test_rows_are_close_to_those_that_the_librarys_own_attention_gives(family: Path) -> None:
    alone, packed = load_here(family, 1, 4), load_packed(family, 1, 4)
    rows = torch.randn(40, 64, generator=torch.Generator().manual_seed(3))
    given = []
    for stage in (alone, packed):
        stage.open("s", 1, 4, None, 40)

        def ran(at: int, piece: torch.Tensor, stage: TorchStage = stage) -> torch.Tensor:
            data = stage.run(rows_of("s", at, piece.numpy().tobytes(), len(piece))).data
            return torch.frombuffer(bytearray(data), dtype=torch.float32)

        parts = [ran(0, rows[:17]), ran(17, rows[17:18]), ran(18, rows[18:])]
        given.append(torch.cat(parts))
    assert torch.allclose(*given, rtol=0, atol=1e-4 * float(given[0].abs().max()))


def test_windows_go_back_too_since_pages_keep_everything(tmp_path: Path) -> None:
    save_tiny(FAMILIES["gemma3 tied"](), tmp_path)
    stage = load_packed(tmp_path, 0, 6)
    assert stage.info.can_rewind
    answer = generate_here([stage], PROMPTS["a"], 12)
    open_here([stage], "t", 30)
    ids = [*PROMPTS["a"], *answer[:11], 99, 98]
    step_here([stage], "t", 0, ids)
    stage.rewind("t", len(ids) - 2)
    stage.rewind("t", len(ids) - 3)
    assert step_here([stage], "t", len(ids) - 3, [answer[10]]) == (answer[11],)


def test_a_draft_and_rows_to_replay_and_a_chunk_share_a_batch_with_steps(folder: Path) -> None:
    stage = load_packed(folder, 0, 6)
    answers = {name: generate_here([stage], ids, 5) for name, ids in PROMPTS.items()}
    for name, ids in PROMPTS.items():
        open_here([stage], name, 20)
        if name != "d":
            run_here([stage], batch_of((name, 0, ids, "nothing")))
    batch = batch_of(
        ("a", 7, answers["a"][:3], "each"),
        ("b", 3, answers["b"][:1], "token"),
        ("c", 5, answers["c"][:3], "token"),
        ("d", 0, PROMPTS["d"], "token"),
    )
    replayed = tuple(
        type(slot)(slot.sequence, slot.position, slot.count, slot.want, slot.sequence == "c") for slot in batch.slots
    )
    result = stage.run(type(batch)(replayed, batch.data, None))
    assert [slot.tokens for slot in result.slots] == [
        tuple(answers["a"][1:4]),
        (answers["b"][1],),
        (answers["c"][3],),
        (answers["d"][0],),
    ]


def test_one_that_fails_does_not_end_its_neighbours(folder: Path) -> None:
    stage = load_packed(folder, 0, 6)
    for name in "ab":
        open_here([stage], name, 9)
    stage._sequences.get("a").cache.table.pages[:] = [999]  # beyond what there is
    result = stage.run(batch_of(("a", 0, [4], "token"), ("b", 0, [5], "token")))
    assert "the backend failed" in result.slots[0].problem
    assert len(result.slots[1].tokens) == 1


def test_one_without_room_is_told_so_and_its_neighbours_run(folder: Path) -> None:
    per_token = load_packed(folder, 0, 6).info.kv_bytes_per_token
    stage = load_packed(folder, 0, 6, kv_bytes=2 * PAGE_TOKENS * per_token)
    for name in "st":
        stage.open(name, 0, 6, Sampling(), 5)
    with pytest.raises(OutOfKV):
        stage.open("u", 0, 6, Sampling(), 5)
    result = stage.run(batch_of(("s", 0, [7] * (PAGE_TOKENS + 1), "token"), ("t", 0, [7], "token")))
    assert [(slot.out_of_kv, len(slot.tokens)) for slot in result.slots] == [(True, 0), (False, 1)]
    stage.close("t")
    assert step_here([stage], "s", 0, [7] * (PAGE_TOKENS + 1))


def test_a_sequence_may_run_through_some_of_the_layers(folder: Path) -> None:
    wide, narrow = load_packed(folder, 1, 5), load_packed(folder, 2, 4)
    rows = torch.randn(3, 64).numpy().tobytes()
    for stage in (wide, narrow):
        stage.open("s", 2, 4, None, 8)
    assert bytes(wide.run(rows_of("s", 0, rows, 3)).data) == bytes(narrow.run(rows_of("s", 0, rows, 3)).data)


def test_a_family_that_computes_something_else_when_packed_runs_one_after_another(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("node.engine.torch.packed_attention._attention", lambda query, *_: torch.zeros_like(query))
    spec = StageSpec(str(folder), 0, 6, "float32", KV_BYTES)
    stage = finished(load_stage(spec, CPU, SharedTensors(), packed=True))
    assert "packed" not in stage.info.drift_class
    assert "runs one sequence after another: its rows differ by" in capfd.readouterr().err
    assert stage.whole.model.config._attn_implementation != NAME
    assert generate_here([stage], PROMPTS["a"], 4) == generate_here([load_here(folder, 0, 6)], PROMPTS["a"], 4)


def test_on_a_processor_each_sequence_is_computed_by_itself(folder: Path) -> None:
    stage = finished(TorchBackend("cpu").load(StageSpec(str(folder), 0, 2, "float32", KV_BYTES)))
    assert "packed" not in stage.info.drift_class


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 3)), min_size=1, max_size=20))
def test_steps_share_a_call_only_where_little_is_padded(made: list[tuple[int, int]]) -> None:
    spans = [Span(PageTable(), position, count, 0) for position, count in made]
    groups = list(in_groups(spans))
    assert sorted(map(id, spans)) == sorted(id(span) for group in groups for span in group)
    for group in groups:
        lengths = [span.length for span in group]
        assert len(group) == 1 or {span.count for span in group} == {1}
        assert max(lengths) <= PADDED_TWICE * max(LEAST_TOKENS, min(lengths))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 400)), max_size=30))
def test_no_two_sequences_ever_have_the_same_page(changes: list[tuple[int, int]]) -> None:
    pages, tables = Pages(CPU), [PageTable() for _ in range(4)]
    for which, tokens in changes:
        if tokens > tables[which].room:
            assert pages.reserve(tables[which], tokens)
        else:
            pages.keep(tables[which], tokens)
        assert tables[which].room == -(-tokens // PAGE_TOKENS) * PAGE_TOKENS
        held = [page for table in tables for page in table.pages]
        assert len(held) == len(set(held)) == pages.taken
        assert all(page < pages.count for page in held)
    for table in tables:
        pages.keep(table, 0)
    assert pages.count == 0
