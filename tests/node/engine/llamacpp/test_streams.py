"""How the room for keys and values is divided."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node.engine.llamacpp.streams import CELLS_STEP, MOST_STREAMS, Shape, room_for_one_more, shape_for

rooms = st.integers(0, 200_000)
contexts = st.integers(1, 140_000)
sizes = st.lists(st.integers(0, 20_000), max_size=MOST_STREAMS + 2)


def test_the_first_sequences_get_four_streams_that_are_long_enough_to_talk() -> None:
    assert shape_for(100_000, 8192, [40]) == Shape(4, 1024)


def test_little_room_makes_few_and_short_streams() -> None:
    assert shape_for(600, 8192, [40]) == Shape(1, 512)
    assert shape_for(200, 8192, [40]) is None


def test_a_sequence_that_grows_beyond_its_stream_gets_one_twice_as_long() -> None:
    now = Shape(4, 1024)
    assert shape_for(100_000, 8192, [1024, 30], now) == now
    assert shape_for(100_000, 8192, [1025, 30], now) == Shape(4, 2048)


def test_one_sequence_may_take_all_the_room_there_is() -> None:
    assert shape_for(10_000, 131_072, [9_000], Shape(4, 1024)) == Shape(1, 9984)


def test_no_stream_is_longer_than_the_models_context() -> None:
    assert shape_for(1_000_000, 300, [1]) == Shape(4, 512)


@given(rooms, contexts, sizes)
def test_a_shape_fits_the_room_and_all_that_are_told(room: int, context: int, needed: list[int]) -> None:
    shape = shape_for(room, context, needed)
    if shape is None:
        return
    assert shape.cells <= room
    assert shape.tokens % CELLS_STEP == 0
    assert shape.tokens < context + CELLS_STEP
    assert len(needed) <= shape.streams <= MOST_STREAMS
    assert shape.tokens >= max(needed, default=0)


@given(rooms, contexts, sizes, st.integers(1, 20_000))
def test_room_that_is_told_is_there_and_more_is_not(room: int, context: int, held: list[int], more: int) -> None:
    told = room_for_one_more(room, context, held)
    assert (shape_for(room, context, [*held, more]) is not None) == (more <= told)


@given(rooms, contexts, sizes)
def test_what_there_is_is_kept_while_it_suits(room: int, context: int, needed: list[int]) -> None:
    shape = shape_for(room, context, needed)
    if shape is not None:
        assert shape_for(room, context, needed, shape) == shape
        assert shape_for(room, context, needed[1:], shape) == shape
