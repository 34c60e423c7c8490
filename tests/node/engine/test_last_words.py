"""What a worker says last: bounded, printable."""

from __future__ import annotations

import pytest

from node.engine.last_words import KEPT_BYTES, TAIL_CHARACTERS, LastWords, LineBudget, lines_of


def words(stderr: bytes) -> LastWords:
    kept = LastWords()
    for begin in range(0, len(stderr), 7):
        kept.add(stderr[begin : begin + 7])
    return kept


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        (b"", ""),
        (b"warning\nTraceback:\n  File x\nValueError: bad\n\n", "ValueError: bad"),
        (b"\xff half", "\N{REPLACEMENT CHARACTER} half"),
        (b"before\n\x1b[2K\x07forged", " [2K forged"),
    ],
)
def test_the_sentence_is_the_last_line_that_says_something(stderr: bytes, said: str) -> None:
    assert words(stderr).sentence == said


def test_a_flood_keeps_its_end_alone() -> None:
    kept = words(b"x" * 3 * KEPT_BYTES + b"\n" + b"y" * 3 * KEPT_BYTES)
    assert set(kept.tail) == {"y"}
    assert len(kept.tail) == TAIL_CHARACTERS
    assert len(kept.sentence) == 500


def test_the_tail_is_the_last_lines() -> None:
    assert words(b"".join(b"line %d\n\n" % number for number in range(20))).tail.splitlines() == [
        f"line {number}" for number in range(14, 20)
    ]


def test_lines_are_printable_and_say_something() -> None:
    assert lines_of(b"a\tb\n \n\x00\nc\xe2\x80\x8bd\n") == ["a b", "c d"]


def test_a_flood_of_lines_goes_to_the_log_in_part_and_the_rest_is_counted() -> None:
    budget = LineBudget(3, 10)
    assert budget.take(["a", "b"], 0) == ["a", "b"]
    assert budget.take(["c", "d", "e"], 9) == ["c"]
    assert budget.take(["f"], 9.5) == []
    assert budget.take(["g"], 11) == ["(3 lines left out)", "g"]
    assert budget.take(["h", "i"], 12) == ["h"]
