"""Tokens to text: stop strings that come in pieces, and times that add up."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from time import perf_counter

import trio
from hypothesis import given
from hypothesis import strategies as st

from node.pipeline.answer import AnswerTiming, Piece, StopFilter, read_answer
from node.pipeline.generation import TokenStep
from node.pipeline.loops import LoopGuard
from node.wire.frames import Hop, HopTiming

texts = st.text(alphabet="abc", max_size=12)


@given(st.lists(texts, max_size=8), st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3))
def test_the_filter_shows_exactly_what_lies_before_the_first_stop(pieces: list[str], stops: list[str]) -> None:
    stop_filter = StopFilter(stops)
    shown = ""
    for piece in pieces:
        shown += stop_filter.push(piece)
        if stop_filter.hit:
            break
    shown += stop_filter.finish()
    whole = "".join(pieces)
    found = [(whole.find(stop) + len(stop), whole.find(stop)) for stop in stops if stop in whole]
    assert stop_filter.hit == bool(found)
    if not found:
        assert shown == whole
    else:
        assert not any(stop in shown for stop in stops)
        assert whole.startswith(shown)
        assert any(whole[len(shown) :].startswith(stop) for stop in stops)


def test_nothing_is_held_back_that_cannot_become_a_stop() -> None:
    stop_filter = StopFilter(["\n\n"])
    assert [stop_filter.push(piece) for piece in ("one", "\n", "two", "\n", "\nthree")] == ["one", "", "\ntwo", "", ""]
    assert stop_filter.hit
    assert stop_filter.finish() == ""


def step(compute_ms: float, *chain: Hop) -> TokenStep:
    chain = chain or (Hop("a", 0, 3),)
    return TokenStep(1, 5, None, chain, (HopTiming(1.0, 0.5, compute_ms, 0.25),) * len(chain), 2.0)


def test_the_first_token_is_prefill_and_stays_out_of_the_means() -> None:
    timing = AnswerTiming({})
    timing.add(step(500.0))
    assert timing.hops()[0].compute_ms == 500.0
    for compute_ms in (10.0, 20.0, 30.0):
        timing.add(step(compute_ms))
    (hop,) = timing.hops()
    assert (hop.compute_ms, hop.total_ms, timing.return_ms, timing.tokens) == (20.0, 21.75, 2.0, 4)
    assert timing.ttft_ms > 0


def test_hops_are_told_by_node_and_layers_where_another_chain_takes_over() -> None:
    timing = AnswerTiming({})
    ada, bob, cy = Hop("a", 0, 3), Hop("b", 3, 6), Hop("c", 0, 3)
    for one in (step(1.0, ada, bob), step(10.0, ada, bob), step(90.0, cy, bob)):
        timing.add(one)
    first, second = timing.hops()
    assert (first.node_id, first.compute_ms) == ("c", 90.0)
    assert (second.node_id, second.compute_ms) == ("b", 50.0)


def test_the_clock_runs_from_the_arrival_that_it_is_told() -> None:
    timing = AnswerTiming({}, started_s=perf_counter() - 2.0)
    timing.add(step(1.0))
    assert 2000 <= timing.ttft_ms < 2500


def test_an_answer_whose_tokens_end_without_a_word_has_reached_its_length() -> None:
    class Letters:
        def push(self, token_id: int) -> str:
            return "ab"

        def finish(self) -> str:
            return "c"

    async def tokens() -> AsyncIterator[TokenStep]:
        for _ in range(2):
            yield step(1.0)

    async def read() -> list[Piece]:
        return [piece async for piece in read_answer(tokens(), Letters(), ["bx"], (), AnswerTiming({}))]

    pieces = trio.run(read)
    assert ("".join(piece.text for piece in pieces), pieces[-1].finish) == ("ababc", "length")


def test_an_answer_that_goes_round_is_at_its_end_where_that_is_looked_for() -> None:
    class Words:
        def push(self, token: int) -> str:
            return f"{token} "

        def finish(self) -> str:
            return ""

    async def tokens() -> AsyncGenerator[TokenStep, None]:
        for number in range(400):
            yield dataclasses.replace(step(1.0), token=number % 3)

    async def read(loops: LoopGuard | None) -> list[Piece]:
        async with aclosing(tokens()) as steps:
            return [piece async for piece in read_answer(steps, Words(), (), (), AnswerTiming({}), loops=loops)]

    ended = trio.run(read, LoopGuard())
    assert ended[-1].finish == "stop"
    assert len(ended) < 60
    assert trio.run(read, None)[-1].finish == "length"
