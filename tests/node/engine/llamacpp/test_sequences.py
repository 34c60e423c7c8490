"""Sequences in a context that is made anew as they grow, and what happens where there is less memory than was told."""

from __future__ import annotations

from typing import Any

import pytest

from node.engine.llamacpp.carrying import State
from node.engine.llamacpp.sequences import Sequences
from node.engine.llamacpp.streams import Shape
from node.engine.memory import WorkerMemory
from node.errors import EngineError, OutOfKV


class Budget:
    """A stage, as far as the worker's memory is concerned."""


class FakeContext:
    """Remembers what was put into which stream."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.streams: dict[int, State] = {}
        self.freed = False

    def take_state(self, stream: int) -> State:
        return self.streams[stream]

    def put_state(self, stream: int, state: State) -> None:
        self.streams[stream] = state

    def forget(self, stream: int, position: int = 0) -> bool:
        if position == 0:
            self.streams.pop(stream, None)
        return True

    def free(self) -> None:
        self.freed = True


class Contexts:
    """Makes them, as long as there is memory for so many cells."""

    def __init__(self, most_cells: int = 1 << 30) -> None:
        self.most_cells = most_cells
        self.made: list[FakeContext] = []

    def __call__(self, shape: Shape) -> Any:
        if shape.cells > self.most_cells:
            raise EngineError("no memory")
        assert all(context.freed for context in self.made), "two at a time take twice the memory"
        self.made.append(FakeContext(shape))
        return self.made[-1]


def sequences(contexts: Contexts, room: int = 8192, longest: int = 8192) -> tuple[Sequences, WorkerMemory]:
    memory = WorkerMemory(lambda: 0)
    budget = Budget()
    memory.enter(budget, room)
    found = Sequences(contexts, room, longest, 1, memory)
    found.budget = budget  # type: ignore[attr-defined]  # memory forgets stages that nobody holds
    return found, memory


def fill(book: Sequences, name: str, tokens: int) -> None:
    held = book.get(name)
    held.cached = tokens
    book.context.put_state(held.stream, State(name.encode(), held.stream, book.context.shape.streams, 0, True))


def test_what_streams_hold_goes_with_their_sequences_into_a_new_shape() -> None:
    contexts = Contexts()
    book, memory = sequences(contexts)
    for name in ("a", "b", "c"):
        book.open(name, (0, 6), None, 100)
        fill(book, name, 100)
    book.close("a")
    assert book.grow("b", 1500)
    assert book.context.shape == Shape(4, 2048)
    for name in ("b", "c"):
        assert book.context.take_state(book.get(name).stream).data == name.encode()
    assert memory.reserved_bytes == book.context.shape.cells
    book.close_all()
    assert memory.reserved_bytes == 0
    assert all(context.freed for context in contexts.made)


def test_where_there_is_less_memory_than_was_told_everything_stays_as_it_was() -> None:
    contexts = Contexts(most_cells=4096)
    book, memory = sequences(contexts)
    book.open("a", (0, 6), None, 100)
    fill(book, "a", 100)
    before = book.context.shape
    assert not book.grow("a", 3000)
    assert book.context.shape == before
    assert book.context.take_state(book.get("a").stream).data == b"a"
    assert memory.reserved_bytes == before.cells
    with pytest.raises(OutOfKV):
        book.open("b", (0, 6), None, 5000)
    assert book.grow("a", 200)


def test_where_even_that_is_gone_sequences_are_told_to_be_broken_and_can_be_closed() -> None:
    contexts = Contexts()
    book, memory = sequences(contexts)
    book.open("a", (0, 6), None, 100)
    fill(book, "a", 100)
    contexts.most_cells = 0
    with pytest.raises(EngineError, match="no memory"):
        book.grow("a", 3000)
    assert "lost" in book.get("a").broken
    assert memory.reserved_bytes == 0
    book.close("a")
    contexts.most_cells = 1 << 30
    book.open("b", (0, 6), None, 10)
    assert book.get("b").stream == 0


def test_nothing_is_made_before_the_first_sequence_and_a_name_is_open_once() -> None:
    contexts = Contexts()
    book, memory = sequences(contexts)
    assert book.free_tokens == 8192
    assert not contexts.made
    book.open("a", (0, 6), None, 10)
    with pytest.raises(EngineError, match="already"):
        book.open("a", (0, 6), None, 10)
    with pytest.raises(EngineError, match="open it first"):
        book.get("b")
    memory.reserved_bytes += 4096  # another stage took room
    assert not book.grow("a", 8000)


def test_what_may_be_no_numbers_leaves_memory_with_its_sequence() -> None:
    """A masked token counts 0 times what it holds; where that is no number, nor is the sum, for whoever comes next."""
    contexts = Contexts()
    book, _ = sequences(contexts)
    for name in ("good", "bad"):
        book.open(name, (0, 6), None, 10)
        fill(book, name, 5)
    first = book.context
    book.close("good")
    assert book.context is first, "whose numbers are in order leaves them there"
    book.open("good", (0, 6), None, 10)
    fill(book, "good", 5)
    book.get("bad").poisoned = True
    book.close("bad")
    assert book.context is not first
    assert book.context.take_state(book.get("good").stream).data == b"good"
    second = book.context
    book.get("good").poisoned = True
    assert book.rewind(book.get("good"), 3)
    assert book.context is not second
    assert (book.get("good").cached, book.get("good").poisoned) == (3, False)
    book.get("good").junk = True
    book.close("good")
    assert book.shape is None
