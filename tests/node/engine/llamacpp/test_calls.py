"""Which rows of a batch share a call of the library."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node.engine.llamacpp.calls import Rows, SlotRows, calls_for, pieces


def test_decode_steps_share_a_call_in_the_order_of_their_streams() -> None:
    slots = [SlotRows(0, 5, 1, False), SlotRows(1, 2, 1, False), SlotRows(2, 9, 4, False)]
    assert list(calls_for(slots, 32)) == [[Rows(1, 0, 1), Rows(0, 0, 1)], [Rows(2, 0, 4)]]


def test_a_long_chunk_is_cut_and_no_row_is_left_alone() -> None:
    assert pieces(64, 32) == [32, 32]
    assert pieces(65, 32) == [32, 31, 2]
    assert pieces(1, 32) == [1]
    assert list(calls_for([SlotRows(0, 0, 33, False)], 32)) == [[Rows(0, 0, 31)], [Rows(0, 31, 2)]]


def test_what_were_decode_steps_once_are_run_one_by_one() -> None:
    slots = [SlotRows(0, 0, 3, True), SlotRows(1, 1, 1, False)]
    assert list(calls_for(slots, 32)) == [[Rows(1, 0, 1)], [Rows(0, 0, 1)], [Rows(0, 1, 1)], [Rows(0, 2, 1)]]


@given(
    st.lists(st.tuples(st.integers(1, 100), st.booleans()), max_size=16),
    st.integers(32, 64),
    st.randoms(use_true_random=False),
)
def test_every_row_runs_once_in_order_and_no_call_is_too_large(
    wishes: list[tuple[int, bool]], most: int, random: object
) -> None:
    streams = list(range(len(wishes)))
    random.shuffle(streams)  # type: ignore[attr-defined]
    slots = [SlotRows(n, streams[n], count, alone) for n, (count, alone) in enumerate(wishes)]
    seen = [0] * len(slots)
    for call in calls_for(slots, most):
        assert sum(rows.count for rows in call) <= most
        assert len({rows.count for rows in call}) == 1, "or the library orders them otherwise"
        assert [slots[rows.slot].stream for rows in call] == sorted(slots[rows.slot].stream for rows in call)
        for rows in call:
            assert rows.begin == seen[rows.slot]
            assert rows.count > 1 or slots[rows.slot].one_by_one or slots[rows.slot].count == 1
            seen[rows.slot] += rows.count
    assert seen == [slot.count for slot in slots]
