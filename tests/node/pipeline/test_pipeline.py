"""Whole requests over an in-memory swarm and a toy model whose output tells whether anything went astray."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import trio
import trio.testing

from node.engine.base import StageSpec
from node.errors import HopLost, NoRoute, Overloaded, RequestError, WorkerDied
from node.live.served_ranges import ServedRange, ServedRanges
from node.pipeline.generation import Generation, TokenStep
from node.pipeline.head import LEAST_PATIENCE_S, REST_LIMIT_S
from node.pipeline.pipeline import Pipeline
from node.plan.chain_time import CHUNK_TOKENS
from node.swarm.base import LinkLost, MemberGone
from node.wire.frames import Close, Hop, Route, Sampled, SampledPart, Sampling, Sequence, Step, StepPart
from tests.fakes.engine import KV_BYTES_PER_TOKEN_LAYER, FakeEngine, expected_tokens
from tests.fakes.swarm import FakeNetwork, FakeSwarm, open_fake_network

LAYERS = 6
KV_TOKENS = 4000


@dataclass
class Peer:
    swarm: FakeSwarm
    engine: FakeEngine
    pipeline: Pipeline
    stages: ServedRanges
    scope: trio.CancelScope


@dataclass
class Lab:
    network: FakeNetwork
    peers: list[Peer]

    def chain(self, *cuts: int) -> tuple[Hop, ...]:
        """Peer k holds [cuts[k], cuts[k + 1])."""
        return tuple(Hop(self.peers[k].swarm.node_id, a, b) for k, (a, b) in enumerate(pairwise(cuts)))

    def kill(self, peer: Peer) -> None:
        peer.scope.cancel()
        self.network.kill(peer.swarm)

    async def quiet(self) -> None:
        """Until nothing moves any more; the clock jumps."""
        await trio.sleep(5.0)

    def live_sessions(self) -> list[int]:
        return [peer.engine.live_sessions for peer in self.peers if peer.swarm.alive]


@asynccontextmanager
async def lab(*cuts: int, step_s: float = 0.001, delay_s: float = 0.002) -> AsyncIterator[Lab]:
    """A peer per range, each with its stage loaded, news of lost members wired to the pipelines."""
    names = [f"n{k}" for k in range(len(cuts) - 1)]
    async with open_fake_network(*names, delay_s=delay_s) as network, trio.open_nursery() as nursery:
        peers = []
        for swarm, start, end in zip(network.swarms, cuts, cuts[1:], strict=False):
            peers.append(await _peer(nursery, swarm, start, end, step_s))
        yield Lab(network, peers)
        nursery.cancel_scope.cancel()


async def _peer(nursery: trio.Nursery, swarm: FakeSwarm, start: int, end: int, step_s: float) -> Peer:
    engine = FakeEngine(LAYERS, step_s=step_s)
    kv_bytes = KV_TOKENS * KV_BYTES_PER_TOKEN_LAYER * (end - start)
    stages = ServedRanges()
    await hold(engine, stages, start, end, kv_bytes)

    def worker_failed(error: WorkerDied) -> None:
        for held in stages:
            pipeline.stage.drop_all_on(held.stage, str(error))

    pipeline = Pipeline(swarm, stages, worker_failed)
    scope = trio.CancelScope()

    async def run(task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        with scope:
            async with trio.open_nursery() as own:
                await own.start(pipeline.run)
                own.start_soon(_watch, swarm, pipeline)
                task_status.started()

    await nursery.start(run)
    return Peer(swarm, engine, pipeline, stages, scope)


async def hold(engine: FakeEngine, stages: ServedRanges, start: int, end: int, kv_bytes: int) -> None:
    stage = await engine.load(StageSpec("toy", start, end, "float32", kv_bytes))
    stages.add(ServedRange(stage, "toy", start, end, "", kv_bytes, 1))


async def _watch(swarm: FakeSwarm, pipeline: Pipeline) -> None:
    async for news in swarm.news:
        if isinstance(news, MemberGone):
            pipeline.member_gone(news.node_id, news.why)
        elif isinstance(news, LinkLost):
            pipeline.link_lost(news.node_id, news.reason, news.lanes)


def timed(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Run an async test on a clock that jumps."""

    def run() -> None:
        trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def asked(prompt: list[int], count: int = 8, **sampling: Any) -> Generation:
    return Generation(tuple(prompt), count, (), Sampling(**sampling))


async def collect(peer: Peer, generation: Generation, chain: tuple[Hop, ...]) -> list[TokenStep]:
    async with peer.pipeline.head.generate(generation, chain) as tokens:
        return [step async for step in tokens]


def tokens_of(steps: list[TokenStep]) -> list[int]:
    return [step.token for step in steps]


@pytest.mark.parametrize("cuts", [(0, 6), (0, 3, 6), (0, 1, 6), (0, 2, 4, 6), (0, 1, 2, 3, 4, 5, 6)])
@pytest.mark.parametrize("head", [0, -1])
def test_every_split_and_every_head_gives_the_same_tokens(cuts: tuple[int, ...], head: int) -> None:
    @timed
    async def run() -> None:
        async with lab(*cuts) as here:
            steps = await collect(here.peers[head], asked([3, 1, 4, 1, 5]), here.chain(*cuts))
            assert tokens_of(steps) == expected_tokens([3, 1, 4, 1, 5], LAYERS, 8)
            assert [step.finish for step in steps] == [None] * 7 + ["length"]
            assert all([(hop.start, hop.end) for hop in step.chain] == _pairs(cuts) for step in steps)
            assert all(len(step.hops) == len(step.chain) for step in steps)
            await here.quiet()
            assert sum(here.live_sessions()) == 0

    run()


def _pairs(cuts: tuple[int, ...]) -> list[tuple[int, int]]:
    return list(pairwise(cuts))


@timed
async def test_a_long_prompt_goes_in_chunks_and_never_all_at_once() -> None:
    prompt = [random.Random(7).randrange(200) for _ in range(CHUNK_TOKENS * 9 + 5)]
    async with lab(0, 2, 4, 6) as here:
        steps = await collect(here.peers[0], asked(prompt, 4), here.chain(0, 2, 4, 6))
        assert tokens_of(steps) == expected_tokens(prompt, LAYERS, 4)
        for peer in here.peers:
            (stage,) = peer.engine.stages
            assert max(step.count for step in stage.steps) == CHUNK_TOKENS
            assert [step.count for step in stage.steps[:10]] == [CHUNK_TOKENS] * 9 + [5]


@timed
async def test_many_requests_from_every_head_never_mix() -> None:
    random_prompts = [[random.Random(k).randrange(250) for _ in range(1 + 17 * k)] for k in range(18)]
    async with lab(0, 2, 4, 6) as here:
        answers: dict[int, list[int]] = {}

        async def one(k: int) -> None:
            generation = asked(random_prompts[k], 5 + k % 4, temperature=float(k % 2), seed=k)
            answers[k] = tokens_of(await collect(here.peers[k % 3], generation, here.chain(0, 2, 4, 6)))

        async with trio.open_nursery() as nursery:
            for k in range(len(random_prompts)):
                nursery.start_soon(one, k)
        for k, prompt in enumerate(random_prompts):
            sampling = Sampling(temperature=float(k % 2), seed=k)
            assert answers[k] == expected_tokens(prompt, LAYERS, 5 + k % 4, sampling=sampling)
        await here.quiet()
        assert here.live_sessions() == [0, 0, 0]
        assert all(peer.pipeline.stage.reserved_bytes == 0 for peer in here.peers)


@timed
async def test_a_stop_token_ends_the_answer_at_the_tail() -> None:
    answer = expected_tokens([9, 9], LAYERS, 20)
    stop = answer[5]
    async with lab(0, 3, 6) as here:
        generation = Generation((9, 9), 20, (stop,), Sampling())
        steps = await collect(here.peers[0], generation, here.chain(0, 3, 6))
        assert tokens_of(steps) == answer[: answer.index(stop) + 1]
        assert steps[-1].finish == "stop"


@timed
async def test_leaving_early_frees_the_sequence_on_every_hop() -> None:
    async with lab(0, 2, 4, 6) as here:
        async with here.peers[1].pipeline.head.generate(asked([1, 2, 3], 500), here.chain(0, 2, 4, 6)) as tokens:
            await anext(tokens)
            assert here.live_sessions() == [1, 1, 1]
        await here.quiet()
        assert here.live_sessions() == [0, 0, 0]


@pytest.mark.parametrize("victim", [0, 1, 2])
@pytest.mark.parametrize("when", ["prompt", "decode"])
def test_a_hop_that_dies_ends_the_request_with_its_name_and_frees_the_others(victim: int, when: str) -> None:
    @timed
    async def run() -> None:
        prompt = list(range(100)) * 10
        async with lab(0, 2, 4, 6) as here:
            head = here.peers[0 if victim else 1]
            with pytest.raises(HopLost, match=f"n{victim}"):
                async with head.pipeline.head.generate(asked(prompt, 500), here.chain(0, 2, 4, 6)) as tokens:
                    if when == "decode":
                        for _ in range(3):
                            await anext(tokens)
                    else:
                        await trio.sleep(0.004)
                    here.kill(here.peers[victim])
                    async for _ in tokens:
                        pass
            await here.quiet()
            assert here.live_sessions() == [0, 0]

    run()


@timed
async def test_a_head_that_dies_leaves_nothing_behind() -> None:
    async with lab(0, 3, 6) as here:
        extra = here.network.add("head")
        async with trio.open_nursery() as nursery:
            head = await _peer(nursery, extra, 0, 6, 0.001)

            async def endless() -> None:
                async with head.pipeline.head.generate(asked([1], 1500), here.chain(0, 3, 6)) as tokens:
                    async for _ in tokens:
                        pass

            with trio.CancelScope() as scope:
                head.scope = scope
                nursery.start_soon(endless)
                await trio.sleep(0.1)
            assert here.live_sessions() == [1, 1]
            here.network.kill(extra)
            await here.quiet()
            assert here.live_sessions() == [0, 0]
            nursery.cancel_scope.cancel()


@timed
async def test_a_worker_that_dies_ends_the_request_and_the_next_one_is_told_why() -> None:
    async with lab(0, 3, 6) as here:
        with pytest.raises(RequestError, match="n1"):
            async with here.peers[0].pipeline.head.generate(asked([1, 2], 500), here.chain(0, 3, 6)) as tokens:
                await anext(tokens)
                here.peers[1].engine.die()
                async for _ in tokens:
                    pass
        here.peers[1].stages.clear()
        with pytest.raises(NoRoute, match="not ready"):
            await collect(here.peers[0], asked([1, 2]), here.chain(0, 3, 6))
        here.peers[1].stages.add(ServedRange(here.peers[1].engine.stages[0], "toy", 3, 6, "another model", 1, 1))
        with pytest.raises(NoRoute, match=r"node n1 .*of other weights than the sequence's"):
            await collect(here.peers[0], asked([1, 2]), here.chain(0, 3, 6))
        await here.quiet()
        assert here.peers[0].engine.live_sessions == 0


@timed
async def test_without_kv_room_a_request_is_told_so_and_others_go_on() -> None:
    async with lab(0, 3, 6) as here:
        async with here.peers[0].pipeline.head.generate(asked([1] * (KV_TOKENS - 70)), here.chain(0, 3, 6)) as tokens:
            await anext(tokens)
            with pytest.raises(Overloaded, match="n0"):
                await collect(here.peers[1], asked([1, 2, 3] * 30), here.chain(0, 3, 6))
            await anext(tokens)
        await here.quiet()
        assert here.live_sessions() == [0, 0]
        steps = await collect(here.peers[1], asked([1, 2, 3]), here.chain(0, 3, 6))
        assert tokens_of(steps) == expected_tokens([1, 2, 3], LAYERS, 8)


def open_sessions(peer: Peer) -> list[str]:
    return [session.session for session in peer.pipeline.stage._sessions]


@timed
async def test_repeated_frames_change_nothing_and_frames_out_of_order_end_the_sequence() -> None:
    async with lab(0, 3, 6) as here:
        first, second = here.peers
        chain = here.chain(0, 3, 6)
        async with first.pipeline.head.generate(asked([5, 6, 7], 12), chain) as tokens:
            seen = [await anext(tokens) for _ in range(3)]
            (session,) = open_sessions(first)
            again = await second.swarm.link(first.swarm.node_id)
            await again.send(Sampled((SampledPart(session, 1, 1, 4, (99,), None, ()),), 0.0))
            seen += [await anext(tokens) for _ in range(3)]
            assert tokens_of(seen) == expected_tokens([5, 6, 7], LAYERS, 12)[:6]
            with pytest.raises(HopLost, match="position 900"):
                await again.send(Sampled((SampledPart(session, 1, 900, 900, (99,), None, ()),), 0.0))
                async for _ in tokens:
                    pass
        await here.quiet()
        assert here.live_sessions() == [0, 0]


def sequence(session: str, head: str, max_tokens: int = 50) -> Sequence:
    return Sequence(session, head, "", max_tokens, 2, max_tokens - 2, (), Sampling())


@timed
async def test_a_member_outside_the_chain_can_neither_feed_nor_close_nor_steer_a_sequence() -> None:
    async with lab(0, 3, 6) as here:
        stranger = here.network.add("stranger")
        chain = here.chain(0, 3, 6)
        async with here.peers[0].pipeline.head.generate(asked([8], 10), chain) as tokens:
            seen = [await anext(tokens)]
            (session,) = open_sessions(here.peers[0])
            for peer in here.peers:
                link = await stranger.link(peer.swarm.node_id)
                await link.send(Close(session, 1, "mine now"))
                await link.send(Route(sequence(session, stranger.node_id), 2, chain, 0, 2))
                await link.send(Sampled((SampledPart(session, 1, 1, 2, (7,), None, ()),), 0.0))
            seen += [step async for step in tokens]
            assert tokens_of(seen) == expected_tokens([8], LAYERS, 10)


@pytest.mark.parametrize(
    ("frame", "body"),
    [
        (Step((StepPart("0" * 32, 1, 0, 0, 0, 4, "token", ()),), 1, None, 0.0), b"\0" * 16),
        (Step((StepPart("f" * 32, 1, 7, 0, 0, 1, "token", ()),), 4, "float32", 0.0), b"\0" * 16),
        (Sampled((SampledPart("0" * 32, 1, 3, 3, (5,), None, ()),), 0.0), b""),
        (Close("0" * 32, 1, ""), b""),
    ],
)
def test_frames_of_unknown_sequences_are_ignored(frame: Any, body: bytes) -> None:
    @timed
    async def run() -> None:
        async with lab(0, 3, 6) as here:
            link = await here.peers[1].swarm.link(here.peers[0].swarm.node_id)
            await link.send(frame, body)
            steps = await collect(here.peers[0], asked([4, 2]), here.chain(0, 3, 6))
            assert tokens_of(steps) == expected_tokens([4, 2], LAYERS, 8)

    run()


@pytest.mark.parametrize(
    "broken",
    [
        lambda ids: (Hop(ids[0], 0, 3),),
        lambda ids: (Hop(ids[0], 0, 3), Hop(ids[1], 4, 6)),
        lambda ids: (Hop(ids[0], 0, 3), Hop(ids[1], 2, 6)),
        lambda ids: (Hop(ids[1], 0, 3), Hop(ids[0], 3, 6)),
    ],
    ids=["ends early", "gap", "overlap", "wrong owners"],
)
def test_a_chain_that_cannot_work_is_refused(broken: Any) -> None:
    @timed
    async def run() -> None:
        async with lab(0, 3, 6) as here:
            ids = [peer.swarm.node_id for peer in here.peers]
            with pytest.raises(RequestError):
                await collect(here.peers[0], asked([4, 2]), broken(ids))
            await here.quiet()
            assert here.live_sessions() == [0, 0]

    run()


@timed
async def test_one_node_may_be_two_hops_of_a_chain() -> None:
    async with lab(0, 2, 6) as here:
        first, second = here.peers
        kv_bytes = KV_TOKENS * KV_BYTES_PER_TOKEN_LAYER * 2
        await hold(first.engine, first.stages, 4, 6, kv_bytes)
        a, b = first.swarm.node_id, second.swarm.node_id
        chain = (Hop(a, 0, 2), Hop(b, 2, 4), Hop(a, 4, 6))
        for head in here.peers:
            steps = await collect(head, asked([7, 7, 7]), chain)
            assert tokens_of(steps) == expected_tokens([7, 7, 7], LAYERS, 8)
        await here.quiet()
        assert here.live_sessions() == [0, 0]


@timed
async def test_a_sequence_loads_each_hop_of_its_chain_with_its_part() -> None:
    async with lab(0, 2, 6) as here:
        first, second = here.peers
        await hold(first.engine, first.stages, 2, 6, 1_000_000)
        alone = (Hop(first.swarm.node_id, 0, 2), Hop(first.swarm.node_id, 2, 6))
        async with (
            first.pipeline.head.generate(asked([1, 2], 500), here.chain(0, 2, 6)) as tokens,
            first.pipeline.head.generate(asked([1, 2], 500), alone) as others,
        ):
            await anext(tokens)
            await anext(others)
            assert (first.pipeline.stage.load, second.pipeline.stage.load) == (1.5, 0.5)


@timed
async def test_the_hops_times_add_up_to_the_time_of_a_token() -> None:
    async with lab(0, 2, 4, 6, step_s=0.02, delay_s=0.005) as here:
        started = trio.current_time()
        steps = await collect(here.peers[0], asked([1, 2, 3], 11), here.chain(0, 2, 4, 6))
        per_token_ms = (trio.current_time() - started) * 1e3 / 11
        wire_ms = sum(hop.wire_ms for hop in steps[5].hops[1:]) + steps[5].return_ms
        assert 3 * 5 <= wire_ms <= 3 * 5 + 1
        assert 3 * 20 <= per_token_ms - wire_ms <= 3 * 20 + 5


@timed
async def test_a_silent_chain_whose_nodes_all_answer_is_given_up_in_the_end() -> None:
    async with lab(0, 3, 6) as here:
        here.peers[1].engine.step_s = 1e6
        with pytest.raises(HopLost, match=r"node n1 .*not a step"):
            await collect(here.peers[0], asked([1]), here.chain(0, 3, 6))
        await here.quiet()
        assert here.peers[0].engine.live_sessions == 0


@timed
async def test_a_hop_that_the_route_has_not_come_to_is_not_taken_for_a_dead_one() -> None:
    async with lab(0, 3, 6) as here:
        here.peers[0].engine.open_s = 20.0
        steps = await collect(here.peers[0], asked([1, 2]), here.chain(0, 3, 6))
        assert tokens_of(steps) == expected_tokens([1, 2], LAYERS, 8)


@timed
async def test_where_a_hop_never_takes_the_route_it_is_named_and_not_one_behind_it() -> None:
    async with lab(0, 3, 6) as here:
        here.peers[0].engine.open_s = 1e6
        with pytest.raises(HopLost, match=r"node n0 .*not a step"):
            await collect(here.peers[1], asked([1, 2]), here.chain(0, 3, 6))


@timed
async def test_a_chain_at_rest_that_gives_nothing_is_given_up_soon() -> None:
    async with lab(0, 3, 6) as here:
        second = here.peers[1]
        started_s = trio.current_time()
        with pytest.raises(HopLost, match="not a step"):
            async with here.peers[0].pipeline.head.generate(asked([1], 500), here.chain(0, 3, 6)) as tokens:
                await anext(tokens)
                second.pipeline.stage._sender.send = lambda results: None  # type: ignore[method-assign]
                async for _ in tokens:
                    pass
        assert trio.current_time() - started_s < REST_LIMIT_S + 3 * LEAST_PATIENCE_S


@timed
async def test_a_hop_that_takes_a_sequence_with_less_room_than_a_chunk_is_named() -> None:
    prompt = [7] * (CHUNK_TOKENS + 1)
    async with lab(0, 3, 6) as here:
        first, second = here.peers
        second.pipeline.stage._admission._credit = lambda session, route, held: 1  # type: ignore[method-assign]
        started_s = trio.current_time()
        with pytest.raises(HopLost, match=r"node n1 .*1 rows only"):
            await collect(first, asked(prompt), here.chain(0, 3, 6))
        assert trio.current_time() - started_s < LEAST_PATIENCE_S


@timed
async def test_a_sequence_that_nobody_touches_is_freed() -> None:
    async with lab(0, 3, 6) as here:
        link = await here.peers[1].swarm.link(here.peers[0].swarm.node_id)
        head = here.peers[1].swarm.node_id
        await link.send(Route(sequence("a" * 32, head), 1, here.chain(0, 3, 6), 0, 2))
        await trio.sleep(1)
        assert here.live_sessions() == [1, 1]
        await trio.sleep(700)
        assert here.live_sessions() == [0, 0]
