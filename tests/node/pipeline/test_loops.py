"""An answer that goes round is at its end; one that merely repeats itself is not."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from node.pipeline.loops import LEAST_TOKENS, LONGEST_ROUND_TOKENS, ROUNDS, LoopGuard


def ends_after(tokens: Sequence[int]) -> int | None:
    """How many tokens are taken until it is said to go round."""
    guard = LoopGuard()
    return next((number for number, token in enumerate(tokens, 1) if guard.goes_round(token)), None)


@given(st.lists(st.integers(0, 3), max_size=80), st.lists(st.integers(0, 5), min_size=1, max_size=LONGEST_ROUND_TOKENS))
def test_every_answer_that_goes_round_ends_soon(before: list[int], round_: list[int]) -> None:
    bound = len(before) + max(ROUNDS * len(round_), LEAST_TOKENS) + len(round_)
    end = ends_after(before + round_ * 60)
    assert end is not None
    assert end <= bound


def test_text_that_differs_in_one_place_of_each_round_never_ends() -> None:
    assert ends_after([token for line in range(200) for token in (7, 8, 9, 100 + line, 10)]) is None


def test_a_refrain_and_a_row_of_dots_are_let_be() -> None:
    refrain = list(range(20))
    assert ends_after(refrain * (ROUNDS - 1)) is None
    assert ends_after([5] * (LEAST_TOKENS - 1)) is None
    assert ends_after([5] * LEAST_TOKENS) == LEAST_TOKENS
