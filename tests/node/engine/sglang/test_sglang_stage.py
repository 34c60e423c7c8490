"""A stage on SGLang over a toy in the library's place: which rows go into which pass, and what comes of them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from node.engine.backend import BackendLost
from node.engine.base import Batch, Slot, StageInfo
from node.engine.batches import SUSPECT_FAILURES
from node.engine.memory import WorkerMemory
from node.engine.sglang import stage as stage_module
from node.engine.sglang.backend import meanwhile
from node.engine.sglang.forward import Part
from node.engine.sglang.range_runner import RangeRunner
from node.engine.sglang.stage import SglangStage
from node.errors import EngineError, LoadFailed
from node.wire.frames import Sampling
from tests.node.engine.driving import batch_of

VOCABULARY, WIDTH, ROOM = 16, 4, 24
INFO = StageInfo(1, 2, ROOM, 0.0, WIDTH, "float32", can_narrow=False, backend="sglang")


class ToyTable:
    """The library's table of sequences and its cache."""

    def __init__(self) -> None:
        self.req_to_token = torch.zeros(8, 64, dtype=torch.int32)
        self.rows, self.places = list(range(8)), list(range(1, ROOM + 1))

    def alloc_rows(self, count: int) -> list[int] | None:
        return [self.rows.pop() for _ in range(count)] if len(self.rows) >= count else None

    def free_rows(self, rows: list[int]) -> None:
        self.rows += rows

    def alloc(self, count: int) -> torch.Tensor | None:
        if len(self.places) < count:
            return None
        return torch.tensor([self.places.pop() for _ in range(count)])

    def free(self, places: torch.Tensor) -> None:
        self.places += places.tolist()


class Toy:
    """Its next token is the sum of all tokens so far, and each pass is noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, last: bool = True) -> None:
        self.table = ToyTable()
        self.passes: list[tuple[bool, list[tuple[int, int]]]] = []
        self.texts: dict[int, list[int]] = {}
        self.fails = False
        runner = SimpleNamespace(req_to_token_pool=self.table, token_to_kv_pool_allocator=self.table)
        self.range = RangeRunner(runner, True, last, WIDTH, VOCABULARY, "cpu")
        monkeypatch.setattr(stage_module, "forward", self.forward)
        self.stage = SglangStage(self.range, INFO, 0, (1, 1), WorkerMemory(lambda: 1))

    def forward(self, _: Any, parts: Sequence[Part], rows: torch.Tensor, *, decode: bool) -> torch.Tensor:
        if self.fails:
            raise RuntimeError("the chip is gone")
        self.passes.append((decode, [(part.position, part.count) for part in parts]))
        begin, logits = 0, torch.zeros(len(parts), VOCABULARY)
        for index, part in enumerate(parts):
            assert part.held.places.shape[0] >= part.position + part.count
            text = self.texts.setdefault(part.held.row, [])
            text[part.position :] = rows[begin : begin + part.count].tolist()
            begin += part.count
            logits[index, sum(text) % VOCABULARY] = 1.0
        return logits if self.range.last else rows[:, None].float().expand(-1, WIDTH)

    def open(self, *names: str, tokens: int = 6) -> None:
        for name in names:
            self.stage.open(name, 0, 2, Sampling() if self.range.last else None, tokens)

    def run(self, *slots: tuple[str, int, Sequence[int], Any]) -> list[tuple[int, ...]]:
        result = self.stage.run(batch_of(*slots))
        assert [slot.problem for slot in result.slots] == [""] * len(slots)
        return [slot.tokens for slot in result.slots]


def test_steps_are_one_pass_and_prompts_another(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy(monkeypatch)
    toy.open("a", "b", "c")
    assert toy.run(("a", 0, [1, 2], "token"), ("b", 0, [3], "token")) == [(3,), (3,)]
    toy.passes.clear()
    assert toy.run(("a", 2, [3], "token"), ("c", 0, [5, 6], "token"), ("b", 1, [3], "token")) == [(6,), (11,), (6,)]
    assert toy.passes == [(True, [(2, 1), (1, 1)]), (False, [(0, 2)])]


def test_a_draft_gets_a_token_for_each_row_by_steps_and_what_was_refused_is_taken_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    toy = Toy(monkeypatch)
    toy.open("a")
    toy.run(("a", 0, [1, 2], "token"))
    free = len(toy.table.places)
    assert toy.run(("a", 2, [3, 9, 4], "each")) == [(6, 15, 3)]
    assert [count for _, parts in toy.passes[1:] for _, count in parts] == [1, 1, 1]
    toy.stage.rewind("a", 3)
    assert len(toy.table.places) == free - 1
    assert toy.run(("a", 3, [6], "token")) == [(12,)]


def test_rows_to_replay_are_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy(monkeypatch)
    toy.open("a")
    toy.run(("a", 0, [1, 2], "nothing"))
    batch = batch_of(("a", 2, [3, 6], "token"))
    (slot,) = toy.stage.run(replace(batch, slots=(Slot("a", 2, 2, "token", replay=True),))).slots
    assert slot.tokens == (12,)
    assert toy.passes[1:] == [(True, [(2, 1)]), (True, [(3, 1)])]


def test_hidden_states_come_out_in_the_order_of_the_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy(monkeypatch, last=False)
    toy.open("a", "b")
    toy.run(("a", 0, [1], "nothing"))
    result = toy.stage.run(batch_of(("b", 0, [7, 8], "nothing"), ("a", 1, [2], "nothing")))
    assert struct.unpack(f"<{3 * WIDTH}f", result.data) == (7.0,) * WIDTH + (8.0,) * WIDTH + (2.0,) * WIDTH


def test_one_without_room_waits_and_its_neighbours_run(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy(monkeypatch)
    toy.open("a", "b", tokens=2)
    result = toy.stage.run(batch_of(("a", 0, [1] * 23, "token"), ("b", 0, [2], "token")))
    assert [(slot.out_of_kv, slot.tokens) for slot in result.slots] == [(True, ()), (False, (2,))]
    toy.stage.close("b")
    assert toy.run(("a", 0, [1] * 23, "token")) == [(7,)]
    toy.stage.close("a")
    assert (len(toy.table.places), len(toy.table.rows)) == (ROOM, 8)


def test_what_no_sequence_may_want_is_its_own_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy(monkeypatch)
    toy.open("a")
    toy.stage.open("b", 0, 2, None, 2)
    result = toy.stage.run(batch_of(("a", 0, [VOCABULARY], "token"), ("b", 0, [1], "token")))
    assert "the vocabulary has 16" in result.slots[0].problem
    assert "without a sampling" in result.slots[1].problem
    with pytest.raises(EngineError, match="all of a stage's layers or none"):
        toy.stage.open("c", 0, 1, None, 2)
    with pytest.raises(EngineError, match="hidden states for layers that do begin the model"):
        toy.stage.run(Batch((Slot("a", 0, 1),), bytes(4 * WIDTH), "float32"))


def test_a_library_that_only_fails_ends_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy(monkeypatch)
    toy.fails = True
    for name in "abc"[: SUSPECT_FAILURES - 1]:
        toy.open(name)
        assert "the chip is gone" in toy.stage.run(batch_of((name, 0, [1], "token"))).slots[0].problem
    toy.open("z")
    with pytest.raises(BackendLost):
        toy.stage.run(batch_of(("z", 0, [1], "token")))


def test_a_load_goes_on_while_the_library_builds_and_its_error_comes_out() -> None:
    steps = meanwhile(lambda: (_ for _ in ()).throw(LoadFailed("0–1", "no such file")))
    with pytest.raises(LoadFailed, match="no such file"):
        while True:
            next(steps)
