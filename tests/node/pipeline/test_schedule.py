"""Which steps run together: nobody starves, budgets are kept, each sequence's steps stay in order. Pure."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from node.pipeline.schedule import (
    CHUNK_STEPS,
    DECODES_PER_CHUNK,
    IDLE,
    LEAST_ROWS,
    PROMPT_ROWS,
    UNKNOWN,
    Budget,
    Chosen,
    Rates,
    Ready,
    Running,
    Turn,
    next_batch,
)

BUDGET = Budget(rows=256, sequences=8)
BUDGETS = {"a": BUDGET, "b": Budget(rows=130, sequences=3)}


def decode(sequence: str, number: int, lot: str = "a") -> Ready:
    return Ready(sequence, lot, 1, True, number)


def chunk(sequence: str, number: int, served: int = 0, lot: str = "a") -> Ready:
    return Ready(sequence, lot, 128, False, number, served)


def choose(
    *waiting: Ready,
    running: Running = IDLE,
    turn: Turn = Turn(),  # noqa: B008
    in_flight: int = 2,
    rates: Rates = UNKNOWN,
    **budget: int | None,
) -> Chosen:
    budgets = {lot: replace(each, **budget) for lot, each in BUDGETS.items()}
    return next_batch(waiting, running, budgets, turn, in_flight, rates)


def names(chosen: Chosen) -> list[object]:
    return [step.sequence for step in chosen.steps]


def test_with_nothing_to_do_nothing_is_sent() -> None:
    assert choose().steps == ()


def test_rows_that_are_ready_together_run_together_oldest_first() -> None:
    assert names(choose(decode("z", 3), decode("y", 1), decode("x", 2))) == ["y", "x", "z"]


def test_decode_goes_before_a_prompt_and_a_prompt_goes_beside_it_after_a_while() -> None:
    turn = Turn()
    ran: list[list[object]] = []
    for _ in range(DECODES_PER_CHUNK + 2):
        chosen = choose(decode("s", 1), chunk("p", 2), turn=turn)
        turn = chosen.turn
        ran.append(names(chosen))
    assert ran == [["s"]] * DECODES_PER_CHUNK + [["s", "p"], ["s"]]


def test_a_prompt_alone_goes_at_once() -> None:
    assert names(choose(chunk("p", 1))) == ["p"]


def test_of_several_prompts_the_one_that_ran_longest_ago_goes_next() -> None:
    assert names(choose(chunk("p", 3, served=2), chunk("q", 4, served=1))) == ["q"]
    assert names(choose(chunk("p", 3, served=2), chunk("new", 9))) == ["new"]


def test_steps_of_other_layers_are_not_in_the_batch() -> None:
    assert names(choose(decode("x", 2), decode("y", 1, "b"), decode("z", 3, "b"))) == ["y", "z"]


def test_a_sequence_that_runs_waits_and_two_batches_are_under_way_at_most() -> None:
    running = Running(frozenset({"x"}), 1)
    assert names(choose(decode("x", 1), running=running)) == []
    assert names(choose(*(decode(f"{k}", k) for k in range(9)), running=Running(frozenset({"x"}), 2))) == []


def test_beside_a_batch_only_a_larger_one_lies_ready() -> None:
    running = Running(frozenset({"x", "y"}), 1)
    assert names(choose(decode("a", 1), decode("b", 2), running=running)) == [], "two halves would stay two halves"
    assert names(choose(decode("a", 1), decode("b", 2), decode("c", 3), running=running)) == ["a", "b", "c"]
    assert names(choose(chunk("p", 1), running=running, streams=1)) == [], "a decode step may come meanwhile"
    assert names(choose(chunk("p", 1), running=running)) == ["p"], "none can"


def test_a_batch_is_this_stages_share_of_what_streams_through_several() -> None:
    waiting = [decode(f"{k}", k) for k in range(6)]
    assert names(choose(*waiting, decodes=2, streams=6)) == ["0", "1"]
    running = Running(frozenset({"0", "1"}), 1)
    assert names(choose(*waiting[2:], running=running, decodes=2, streams=6)) == ["2", "3"], "the next lies ready"
    assert names(choose(waiting[5], running=running, decodes=2, streams=6)) == [], "half a share does not"


def test_a_prompt_beside_answers_that_stream_takes_as_long_as_some_of_their_steps() -> None:
    rates = Rates(decode_ms=10.0, row_ms=0.5)
    turn = Turn(DECODES_PER_CHUNK)
    (_, beside) = choose(decode("s", 1), chunk("p", 2), turn=turn, rates=rates, streams=1).steps
    assert beside.rows == CHUNK_STEPS * 10.0 / 0.5
    (_, beside) = choose(decode("s", 1), chunk("p", 2), turn=turn, rates=Rates(10.0, 50.0), streams=1).steps
    assert beside.rows == LEAST_ROWS
    (alone,) = choose(chunk("p", 2), turn=turn, rates=rates).steps
    assert alone.rows == 128, "nothing streams"


def test_a_prompt_goes_as_soon_as_what_streams_has_had_as_much_time_as_it_takes() -> None:
    rates = Rates(decode_ms=10.0, row_ms=0.5)
    short = Ready("p", "a", 40, False, 2)
    assert names(choose(decode("s", 1), short, turn=Turn(1), rates=rates, streams=1)) == ["s"]
    assert names(choose(decode("s", 1), short, turn=Turn(2), rates=rates, streams=1)) == ["s", "p"]


def test_short_prompts_go_together() -> None:
    waiting = [Ready(f"p{k}", "a", 30, False, k) for k in range(8)]
    chosen = choose(*waiting)
    assert [(step.sequence, step.rows) for step in chosen.steps] == [
        ("p0", 30),
        ("p1", 30),
        ("p2", 30),
        ("p3", 30),
        ("p4", 8),
    ]
    assert sum(step.rows for step in chosen.steps) == PROMPT_ROWS


def test_no_row_of_a_prompt_is_cut_off_alone_and_rows_to_be_run_one_by_one_count_as_steps() -> None:
    rates, turn = Rates(decode_ms=10.0, row_ms=0.5), Turn(DECODES_PER_CHUNK)
    (_, beside) = choose(decode("s", 1), Ready("p", "a", 81, False, 2), turn=turn, rates=rates, streams=1).steps
    assert beside.rows == 79
    (_, beside) = choose(
        decode("s", 1), Ready("p", "a", 16, False, 2, replay=True), turn=turn, rates=rates, streams=1
    ).steps
    assert beside.rows == CHUNK_STEPS
    (_, beside) = choose(
        decode("s", 1), Ready("p", "a", 100, False, 2, whole=True), turn=turn, rates=rates, streams=1
    ).steps
    assert beside.rows == 100


steps = st.builds(
    lambda sequence, lot, rows, kind: Ready(
        f"{lot}{sequence}",
        lot,
        1 if kind == "decode" else rows,
        kind == "decode",
        0,
        0,
        kind == "replay",
        kind == "whole",
    ),
    st.integers(0, 12),
    st.sampled_from(["a", "b"]),
    st.integers(1, 128),
    st.sampled_from(["decode", "chunk", "replay", "whole"]),
)
rates = st.one_of(st.just(UNKNOWN), st.builds(Rates, st.floats(0, 1e4), st.floats(0, 1e4)))


@given(st.lists(steps, max_size=40), rates, st.integers(0, 3), st.one_of(st.none(), st.integers(1, 4)))
def test_whatever_waits_budgets_are_kept_and_everything_runs_in_order_soon(
    arrivals: list[Ready], rates: Rates, streams: int, share: int | None
) -> None:
    """One batch at a time: within a bounded number of batches everything has run, each sequence in its order."""
    waiting = [replace(step, number=number + 1) for number, step in enumerate(arrivals)]
    total, ran, turn = sum(step.rows for step in waiting), list[Ready](), Turn()
    served: dict[object, int] = {}
    for _ in range(6 * total + 6):
        if not waiting:
            break
        told = [replace(step, served=served.get(step.sequence, 0)) for step in waiting]
        chosen = choose(*told, turn=turn, rates=rates, streams=streams, decodes=share)
        turn = chosen.turn
        assert chosen.steps, "an engine never idles while something waits"
        budget = BUDGETS[str(chosen.steps[0].lot)]
        assert len({step.lot for step in chosen.steps}) == 1
        assert len({step.sequence for step in chosen.steps}) == len(chosen.steps) <= budget.sequences
        assert sum(step.rows for step in chosen.steps) <= budget.rows
        assert share is None or sum(step.decode for step in chosen.steps) <= share
        for step in chosen.steps:
            served[step.sequence] = step.number
            (whole,) = [other for other in waiting if other.number == step.number]
            left = whole.rows - step.rows
            assert step.rows >= 1
            assert not left or not whole.whole
            assert not left or whole.replay or (left > 1 and step.rows > 1)
            at = waiting.index(whole)
            waiting[at : at + 1] = [replace(whole, rows=left)] if left else []
        ran += chosen.steps
    assert waiting == []
    for sequence in {step.sequence for step in ran}:
        numbers = [step.number for step in ran if step.sequence == sequence]
        assert numbers == sorted(numbers)


@given(st.integers(1, 20), st.integers(1, 4))
def test_however_many_decode_every_prompt_goes_on(decoding: int, prompts: int) -> None:
    turn, number = Turn(), 100
    served = {f"p{k}": 0 for k in range(prompts)}
    batches = (DECODES_PER_CHUNK + 1) * prompts
    for _ in range(batches):
        waiting = [decode(f"d{k}", number + k) for k in range(decoding)]
        waiting += [chunk(name, 50 + at, served=last) for at, (name, last) in enumerate(served.items())]
        chosen = choose(*waiting, turn=turn)
        turn, number = chosen.turn, number + decoding
        for step in chosen.steps:
            if not step.decode:
                served[str(step.sequence)] = number
    assert all(served.values()), "each had a chunk run"


@given(st.integers(9, 40))
def test_more_sequences_than_a_batch_takes_get_equal_turns(decoding: int) -> None:
    last = {f"d{k}": k + 1 for k in range(decoding)}
    counts = dict.fromkeys(last, 0)
    number, turn = decoding, Turn()
    for _ in range(4 * decoding):
        chosen = choose(*(decode(name, at) for name, at in last.items()), turn=turn)
        turn = chosen.turn
        for step in chosen.steps:
            number += 1
            last[str(step.sequence)] = number
            counts[str(step.sequence)] += 1
    assert max(counts.values()) - min(counts.values()) <= 1
