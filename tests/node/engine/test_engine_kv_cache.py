"""Room in the KV cache is counted in tokens; a step must continue its sequence."""

from __future__ import annotations

import pytest

from node.engine.kv_cache import Sequences
from node.engine.memory import WorkerMemory
from node.errors import EngineError, OutOfKV


def sequences(capacity: int = 100) -> Sequences[list[int]]:
    return Sequences(capacity, list)


def test_room_is_set_aside_and_given_back() -> None:
    book = sequences()
    book.reserve("a", 60)
    with pytest.raises(OutOfKV) as full:
        book.reserve("b", 41)
    assert (full.value.needed_tokens, full.value.free_tokens) == (41, 40)
    book.reserve("b", 40)
    assert book.free_tokens == 0
    book.free("a")
    book.free("a")
    assert book.free_tokens == 60
    book.clear()
    assert book.free_tokens == 100


def test_a_sequence_reserves_once() -> None:
    book = sequences()
    book.reserve("a", 1)
    with pytest.raises(EngineError, match="already"):
        book.reserve("a", 1)


@pytest.mark.parametrize(
    ("position", "count", "match"),
    [(0, 1, "holds 4"), (3, 1, "holds 4"), (5, 1, "holds 4"), (4, 7, "10 are reserved"), (4, 0, "0 tokens")],
)
def test_a_step_must_continue_its_sequence_within_its_room(position: int, count: int, match: str) -> None:
    book = sequences()
    book.reserve("a", 10)
    book.at("a", 0, 4).cached = 4
    with pytest.raises(EngineError, match=match):
        book.at("a", position, count)
    assert book.at("a", 4, 6).cached == 4


def test_unknown_and_broken_sequences_are_refused() -> None:
    book = sequences()
    with pytest.raises(EngineError, match="reserve it first"):
        book.at("a", 0, 1)
    book.reserve("a", 10)
    book.at("a", 0, 1).broken = "its step failed"
    with pytest.raises(EngineError, match="cannot go on: its step failed"):
        book.at("a", 0, 1)


def test_each_sequence_has_a_cache_of_its_own() -> None:
    book = sequences()
    book.reserve("a", 1)
    book.reserve("b", 1)
    assert book.at("a", 0, 1).cache is not book.at("b", 0, 1).cache


def test_stages_of_one_worker_share_its_memory() -> None:
    weights = 100
    memory = WorkerMemory(lambda: weights)
    whole: Sequences[list[int]] = Sequences(50, list, memory, bytes_per_token=10)
    part: Sequences[list[int]] = Sequences(110, list, memory, bytes_per_token=5)
    memory.enter(whole, 100 + 50 * 10)
    memory.enter(part, 50 + 110 * 5)
    whole.reserve("a", 40)
    assert (whole.free_tokens, part.free_tokens) == (10, 20)
    part.reserve("b", 20)
    with pytest.raises(OutOfKV):
        whole.reserve("c", 1)
    whole.clear()
    assert (whole.free_tokens, part.free_tokens) == (40, 80)
    memory.coming_bytes = 300
    assert (whole.free_tokens, part.free_tokens) == (10, 20)
    weights, memory.coming_bytes = 350, 0
    assert whole.free_tokens == 15, "a second range beside the first"
    weights = 50
    memory.leave(whole)
    assert part.free_tokens == 90
