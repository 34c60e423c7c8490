"""Which steps run together: nobody starves, budgets are kept, each sequence's steps stay in order. Pure."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from node.pipeline.schedule import DECODES_PER_CHUNK, IDLE, Budget, Chosen, Ready, Running, Turn, next_batch

BUDGET = Budget(rows=256, sequences=8)
BUDGETS = {"a": BUDGET, "b": Budget(rows=130, sequences=3)}


def decode(sequence: str, number: int, lot: str = "a") -> Ready:
    return Ready(sequence, lot, 1, True, number)


def chunk(sequence: str, number: int, served: int = 0, lot: str = "a") -> Ready:
    return Ready(sequence, lot, 128, False, number, served)


def choose(*waiting: Ready, running: Running = IDLE, turn: Turn = Turn(), in_flight: int = 2) -> Chosen:  # noqa: B008
    return next_batch(waiting, running, dict(BUDGETS), turn, in_flight)


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
    assert names(choose(chunk("p", 1), running=running)) == [], "a decode step may come meanwhile"


steps = st.builds(
    lambda sequence, lot, rows, is_decode: Ready(f"{lot}{sequence}", lot, rows if not is_decode else 1, is_decode, 0),
    st.integers(0, 12),
    st.sampled_from(["a", "b"]),
    st.integers(1, 128),
    st.booleans(),
)


@given(st.lists(steps, max_size=40))
def test_whatever_waits_budgets_are_kept_and_everything_runs_in_order_soon(arrivals: list[Ready]) -> None:
    """One batch at a time: within a bounded number of batches everything has run, each sequence in its order."""
    waiting = [replace(step, number=number + 1) for number, step in enumerate(arrivals)]
    total, ran, turn = len(waiting), list[Ready](), Turn()
    served: dict[object, int] = {}
    for _ in range(6 * total + 6):
        if not waiting:
            break
        told = [replace(step, served=served.get(step.sequence, 0)) for step in waiting]
        chosen = choose(*told, turn=turn)
        turn = chosen.turn
        assert chosen.steps, "an engine never idles while something waits"
        budget = BUDGETS[str(chosen.steps[0].lot)]
        assert len({step.lot for step in chosen.steps}) == 1
        assert len({step.sequence for step in chosen.steps}) == len(chosen.steps) <= budget.sequences
        assert sum(step.rows for step in chosen.steps) <= budget.rows
        assert sum(not step.decode for step in chosen.steps) <= 1
        for step in chosen.steps:
            served[step.sequence] = step.number
            waiting = [other for other in waiting if other.number != step.number]
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
