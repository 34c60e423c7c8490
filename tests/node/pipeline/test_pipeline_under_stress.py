"""Order and fairness: requests that wait, closings that overtake, frames that no honest hop would send."""

from __future__ import annotations

import pytest
import trio

from node.errors import HopLost, NoRoute, RequestError
from node.pipeline.generation import Generation
from node.pipeline.head import ANSWER_LIMIT_S
from node.wire.frames import Close, HopTiming, Route, Sampled, SampledPart, Sampling, Step, StepPart
from tests.fakes.engine import expected_tokens
from tests.node.pipeline.test_pipeline import LAYERS, asked, collect, lab, sequence, timed, tokens_of


@timed
async def test_a_long_answer_never_starves_another_requests_prompt() -> None:
    async with lab(0, 6, step_s=0.03) as here:
        (peer,) = here.peers
        async with trio.open_nursery() as nursery:
            nursery.start_soon(collect, peer, asked([1], 600), here.chain(0, 6))
            await trio.sleep(1)
            started = trio.current_time()
            async with peer.pipeline.head.generate(asked(list(range(200)) * 2, 5), here.chain(0, 6)) as tokens:
                await anext(tokens)
                assert trio.current_time() - started < 1.0, "four chunks, each behind a few decode steps"
                nursery.cancel_scope.cancel()


@timed
async def test_a_prompt_does_not_stop_answers_that_stream() -> None:
    async with lab(0, 6, step_s=0.03) as here:
        (peer,) = here.peers
        async with peer.pipeline.head.generate(asked([1], 50), here.chain(0, 6)) as tokens:
            await anext(tokens)
            async with peer.pipeline.head.generate(asked(list(range(200)) * 10, 5), here.chain(0, 6)):
                started = trio.current_time()
                for _ in range(20):
                    await anext(tokens)
                assert trio.current_time() - started < 20 * 0.03 * 1.5 + 0.1


@timed
async def test_a_client_that_leaves_before_the_engine_has_opened_it_leaves_nothing() -> None:
    async with lab(0, 3, 6, step_s=0.5) as here:
        first, second = here.peers
        async with trio.open_nursery() as nursery:
            nursery.start_soon(collect, second, asked([1] * 300, 3), here.chain(0, 3, 6))  # keeps both engines busy
            await trio.sleep(0.2)
            for _ in range(20):
                async with first.pipeline.head.generate(asked([1, 2], 50), here.chain(0, 3, 6)):
                    pass
        await here.quiet()
        assert here.live_sessions() == [0, 0]
        assert [peer.pipeline.stage.sessions for peer in here.peers] == [0, 0]


@timed
async def test_a_close_that_overtakes_its_open_wins() -> None:
    async with lab(0, 3, 6) as here:
        first, second = here.peers
        link = await first.swarm.link(second.swarm.node_id)
        session, head, chain = "a" * 32, first.swarm.node_id, here.chain(0, 3, 6)
        await link.send(Close(session, 1, "done"))
        await link.send(Route(sequence(session, head), 1, chain, 1, 2))
        await here.quiet()
        assert second.pipeline.stage.sessions == 0


@timed
async def test_a_slow_prompt_that_makes_progress_is_not_given_up() -> None:
    async with lab(0, 6, step_s=ANSWER_LIMIT_S / 3) as here:
        prompt = [k % 250 for k in range(128 * 9)]
        steps = await collect(here.peers[0], asked(prompt, 2), here.chain(0, 6))
        assert tokens_of(steps) == expected_tokens(prompt, LAYERS, 2)


@timed
async def test_a_tail_that_never_ends_is_ended_where_the_request_does() -> None:
    async with lab(0, 3, 6) as here:
        first, second = here.peers
        async with first.pipeline.head.generate(asked([1, 2], 3), here.chain(0, 3, 6)) as tokens:
            (session,) = first.pipeline.head._live
            link = await second.swarm.link(first.swarm.node_id)
            for position in range(2, 40):
                part = SampledPart(session, 1, position - 2, position, (7,), None, (HopTiming(0, 0, 0, 0),) * 2)
                await link.send(Sampled((part,), 0.0))
            seen = [step async for step in tokens]
            assert len(seen) == 3
            assert seen[-1].finish == "length"


@pytest.mark.parametrize(
    ("body_bytes", "width", "timings"),
    [(15, 4, 1), (0, 4, 1), (32, 8, 1), (16, 4, 0), (16, 4, 900)],
)
def test_activations_that_are_not_what_they_say_end_their_sequence_alone(
    body_bytes: int, width: int, timings: int
) -> None:
    @timed
    async def run() -> None:
        async with lab(0, 3, 6) as here:
            first, second = here.peers
            link = await first.swarm.link(second.swarm.node_id)
            session, chain = "b" * 32, here.chain(0, 3, 6)
            await link.send(Route(sequence(session, first.swarm.node_id), 1, chain, 1, 2))
            await trio.sleep(1)
            part = StepPart(session, 1, 1, 0, 0, 1, "token", (HopTiming(0, 0, 0, 0),) * timings)
            await link.send(Step((part,), width, "float32", 0.0), b"\0" * body_bytes)
            await here.quiet()
            assert second.pipeline.stage.sessions == 0
            assert tokens_of(await collect(first, asked([1, 2]), chain)) == expected_tokens([1, 2], LAYERS, 8)

    run()


@timed
async def test_the_link_alone_may_be_lost_and_the_request_ends_at_once() -> None:
    async with lab(0, 3, 6) as here:
        first, second = here.peers
        with pytest.raises(RequestError):
            async with first.pipeline.head.generate(asked([1, 2], 500), here.chain(0, 3, 6)) as tokens:
                await anext(tokens)
                started = trio.current_time()
                here.network.partition(first.swarm, second.swarm)
                async for _ in tokens:
                    pass
        assert trio.current_time() - started < 1
        await here.quiet()
        assert here.live_sessions() == [0, 0]


@timed
async def test_a_pipeline_that_has_ended_takes_frames_in_silence() -> None:
    async with lab(0, 3, 6) as here:
        first, _ = here.peers
        async with first.pipeline.head.generate(asked([1, 2], 500), here.chain(0, 3, 6)) as tokens:
            await anext(tokens)
            first.scope.cancel()
            await trio.sleep(0.1)
            seen = first.engine.stages[0].steps[:]
            assert here.live_sessions()[1] == 1
            link = await here.peers[1].swarm.link(first.swarm.node_id)
            await link.send(Close("0" * 32, 1, "late"))
            await trio.sleep(1)
            assert first.engine.stages[0].steps == seen, "it does nothing any more"
        here.network.kill(first.swarm)
        await here.quiet()
        assert here.live_sessions() == [0]


@timed
async def test_ranges_of_other_weights_are_not_taken_for_these() -> None:
    async with lab(0, 3, 6) as here:
        first, _ = here.peers
        for peer, weights in zip(here.peers, ("this/float32", "other/float32"), strict=True):
            for held in peer.stages:
                held.weights = weights
        generation = Generation((1, 2), 3, (), Sampling(), weights="this/float32")
        with pytest.raises(NoRoute, match=r"node n1 refused .* of other weights"):
            await collect(first, generation, here.chain(0, 3, 6))


@timed
async def test_a_head_that_only_we_cannot_reach_is_told_by_what_it_sees_itself() -> None:
    async with lab(0, 2, 4, 6) as here:
        head, _, tail = here.peers
        with pytest.raises(HopLost):
            async with head.pipeline.head.generate(asked([1, 2], 500), here.chain(0, 2, 4, 6)) as tokens:
                await anext(tokens)
                here.network.partition(head.swarm, tail.swarm)
                async for _ in tokens:
                    pass
        await here.quiet()
        assert here.live_sessions() == [0, 0, 0]


@timed
async def test_a_hop_that_only_its_neighbour_cannot_reach_is_the_one_that_is_named() -> None:
    async with lab(0, 2, 4, 6) as here:
        head, middle, tail = here.peers
        with pytest.raises(HopLost, match=r"node n2 \(layers 4–5\) was lost .*: node n1 lost the link to it: a cut"):
            async with head.pipeline.head.generate(asked([1, 2], 500), here.chain(0, 2, 4, 6)) as tokens:
                await anext(tokens)
                middle.pipeline.link_lost(tail.swarm.node_id, "a cut")
                async for _ in tokens:
                    pass
        await here.quiet()
        assert here.live_sessions() == [0, 0, 0]
