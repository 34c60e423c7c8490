"""Room in the KV cache is counted in tokens; a step must continue its sequence."""

from __future__ import annotations

import pytest

from node.engine.base import BLOCK_TOKENS
from node.engine.kv_cache import Sequences
from node.engine.memory import WorkerMemory
from node.errors import EngineError, OutOfKV

LAYERS = 4


def sequences(capacity: int = 100, most: int = 10) -> Sequences[list[int]]:
    """Of layers [2, 6), each of which takes 1 byte per token."""
    return Sequences(2, (1,) * LAYERS, capacity, most)


def begin(book: Sequences[list[int]], name: str, tokens: int, start: int = 2, end: int = 6) -> None:
    book.open(name, start, end, None, tokens, list)


def test_room_is_set_aside_and_given_back() -> None:
    book = sequences()
    begin(book, "a", 60)
    with pytest.raises(OutOfKV) as full:
        begin(book, "b", 41)
    assert (full.value.needed_tokens, full.value.free_tokens) == (41, 40)
    begin(book, "b", 40)
    assert book.free_tokens == 0
    book.close("a")
    book.close("a")
    assert book.free_tokens == 60
    book.clear()
    assert book.free_tokens == 100


def test_a_sequence_over_half_of_the_layers_takes_half_the_room() -> None:
    book = sequences()
    begin(book, "half", 100, 3, 5)
    assert book.free_tokens == 50
    with pytest.raises(OutOfKV) as full:
        begin(book, "quarter", 201, 5, 6)
    assert (full.value.needed_tokens, full.value.free_tokens) == (201, 200)
    begin(book, "quarter", 200, 5, 6)
    assert book.free_tokens == 0
    assert book.ranges() == {(3, 5), (5, 6)}


@pytest.mark.parametrize(("start", "end"), [(1, 3), (5, 7), (4, 4), (5, 3), (0, 9)])
def test_layers_outside_the_stage_are_refused(start: int, end: int) -> None:
    book = sequences()
    with pytest.raises(EngineError, match=r"the stage holds 2–5"):
        begin(book, "a", 1, start, end)
    assert book.free_tokens == 100


def test_a_sequence_is_opened_once_and_no_more_than_so_many_are() -> None:
    book = sequences(most=2)
    begin(book, "a", 1)
    with pytest.raises(EngineError, match="already"):
        begin(book, "a", 1)
    begin(book, "b", 1)
    with pytest.raises(EngineError, match="2 sequences are open already"):
        begin(book, "c", 1)
    book.close("a")
    begin(book, "c", 1)


@pytest.mark.parametrize(
    ("position", "count", "match"),
    [(0, 1, "holds 4"), (3, 1, "holds 4"), (5, 1, "holds 4")],
)
def test_a_step_must_continue_its_sequence(position: int, count: int, match: str) -> None:
    book = sequences()
    begin(book, "a", 10)
    book.at("a", 0, 4).cached = 4
    with pytest.raises(EngineError, match=match):
        book.at("a", position, count)
    assert book.at("a", 4, 6).cached == 4


def test_a_sequence_takes_more_room_as_it_grows_and_nothing_where_there_is_not_enough() -> None:
    book = sequences()
    begin(book, "a", 10)
    begin(book, "half", 40, 3, 5)
    grown = book.get("a")
    assert book.grow(grown, 8)
    assert book.free_tokens == 70
    assert book.grow(grown, 50)
    assert book.free_tokens == 30
    assert not book.grow(grown, 81)
    assert book.grow(book.get("half"), 100), "it takes half as much for each token"
    assert book.free_tokens == 0
    assert not book.grow(grown, 51)
    book.close("half")
    assert book.grow(grown, 100)
    book.close("a")
    assert book.free_tokens == 100


def test_unknown_and_broken_sequences_are_refused() -> None:
    book = sequences()
    with pytest.raises(EngineError, match="open it first"):
        book.at("a", 0, 1)
    begin(book, "a", 10)
    book.at("a", 0, 1).broken = "its step failed"
    with pytest.raises(EngineError, match="cannot go on: its step failed"):
        book.at("a", 0, 1)


def test_each_sequence_has_a_cache_of_its_own() -> None:
    book = sequences()
    begin(book, "a", 1)
    begin(book, "b", 1)
    assert book.at("a", 0, 1).cache is not book.at("b", 0, 1).cache


def test_a_cache_that_cannot_be_made_leaves_no_sequence_behind() -> None:
    book = sequences()

    def fails() -> list[int]:
        raise EngineError("no such layers")

    with pytest.raises(EngineError, match="no such layers"):
        book.open("a", 2, 6, None, 10, fails)
    assert book.free_tokens == 100
    begin(book, "a", 1)


def test_stages_of_one_worker_share_its_memory() -> None:
    weights = 100
    memory = WorkerMemory(lambda: weights)
    whole: Sequences[list[int]] = Sequences(0, (5, 5), 50, 10)
    part: Sequences[list[int]] = Sequences(0, (5,), 110, 10)
    whole.share(memory)
    part.share(memory)
    memory.enter(whole, 100 + 50 * 10)
    memory.enter(part, 50 + 110 * 5)
    begin(whole, "a", 40, 0, 2)
    assert (whole.free_tokens, part.free_tokens) == (10, 20)
    begin(part, "b", 20, 0, 1)
    with pytest.raises(OutOfKV):
        begin(whole, "c", 1, 0, 2)
    whole.clear()
    assert (whole.free_tokens, part.free_tokens) == (40, 80)
    memory.coming_bytes = 300
    assert (whole.free_tokens, part.free_tokens) == (10, 20)
    weights, memory.coming_bytes = 350, 0
    assert whole.free_tokens == 15, "a second range beside the first"
    weights = 50
    memory.leave(whole)
    assert part.free_tokens == 90


def kept(book: Sequences[list[int]], name: str, tokens: int, names: tuple[bytes, ...]) -> None:
    """A sequence of so many tokens, which is closed then."""
    begin(book, name, tokens)
    held = book.get(name)
    held.cache, held.cached = list(range(tokens)), tokens
    book.keep(name, names, lambda cache, count: cache[:count])
    book.close(name)


def taken_up(book: Sequences[list[int]], prefix: tuple[bytes, ...], room: int = 300) -> int:
    begin(book, "next", room)
    tokens = book.take_up("next", prefix, lambda cache, count: cache[:count])
    assert book.get("next").cache == list(range(tokens))
    assert book.get("next").cached == tokens
    book.close("next")
    return tokens


def test_a_sequence_begins_with_what_was_kept_of_its_first_blocks() -> None:
    book = sequences(1000)
    kept(book, "a", 200, (b"1", b"2", b"3", b"too many"))
    assert book.kept_bytes == 3 * BLOCK_TOKENS * LAYERS
    assert book.free_tokens == 1000, "what is kept is free"
    assert taken_up(book, (b"1", b"2", b"3", b"4")) == 192
    assert taken_up(book, (b"1", b"2")) == 128
    assert taken_up(book, (b"1", b"other")) == 64
    assert taken_up(book, (b"other", b"2")) == 0, "a name stands for all before it"
    assert taken_up(book, ()) == 0
    kept(book, "b", 256, (b"1", b"2", b"3", b"4"))
    assert book.kept_bytes == 4 * BLOCK_TOKENS * LAYERS, "one stands for both"
    kept(book, "c", 128, (b"1", b"2"))
    assert book.kept_bytes == 4 * BLOCK_TOKENS * LAYERS
    assert taken_up(book, (b"1", b"2", b"3", b"4")) == 256


def test_what_is_kept_goes_where_room_is_needed_who_was_used_longest_ago_first() -> None:
    book = sequences(600)
    for name in "abc":
        kept(book, name, 128, (name.encode() + b"1", name.encode() + b"2"))
    assert taken_up(book, (b"a1", b"a2"), 128) == 128
    begin(book, "large", 300)
    assert book.kept_bytes == 2 * 128 * LAYERS
    assert taken_up(book, (b"b1", b"b2"), 40) == 0
    assert book.grow(book.get("large"), 600)
    assert book.kept_bytes == 0
    book.clear()
    assert book.free_tokens == 600


def test_what_one_stage_keeps_makes_room_for_another_one_and_for_weights() -> None:
    memory = WorkerMemory(lambda: 0)
    one, other = sequences(200), sequences(200)
    for book in (one, other):
        book.share(memory)
        memory.enter(book, 200 * LAYERS)
    kept(one, "a", 128, (b"1", b"2"))
    begin(other, "b", 150)
    assert one.kept_bytes == 0
    other.close("b")
    kept(one, "a", 128, (b"1", b"2"))
    memory.coming_bytes = 100 * LAYERS
    assert one.kept_bytes == 0


def test_a_sequence_that_failed_half_way_is_not_kept() -> None:
    book = sequences(500)
    begin(book, "a", 128)
    held = book.get("a")
    held.cached, held.broken = 128, "its step failed"
    book.keep("a", (b"1", b"2"), lambda cache, count: cache[:count])
    assert book.kept_bytes == 0
    book.keep("unknown", (b"1",), lambda cache, count: cache[:count])
