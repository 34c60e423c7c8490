"""Several sequences at once, drafts, broken chains, credits: what the frames and stages promise each other."""

from __future__ import annotations

import struct
from dataclasses import replace
from functools import partial

import pytest
import trio

from node.errors import HopLost, Overloaded
from node.pipeline.admission import MOST_OPENING
from node.pipeline.chunk_size import LEAST_TOKENS, chunk_tokens
from node.pipeline.endings import MOST_SUSPENDED, SUSPENDED_S
from node.pipeline.generation import Generation
from node.pipeline.head import LEAST_PATIENCE_S
from node.pipeline.intake import _split
from node.pipeline.schedule import CHUNK_STEPS
from node.plan.chain_time import CHUNK_TOKENS
from node.swarm.base import Arrival
from node.wire.frames import (
    Accepted,
    Close,
    Failed,
    Hop,
    Progress,
    Route,
    Sampled,
    Sampling,
    Sequence,
    Step,
    StepPart,
)
from node.wire.ids import NodeId
from node.wire.records import NodeRecord
from tests.fakes.engine import expected_tokens, layer_output, token_from
from tests.fakes.swarm import FakeSwarm
from tests.node.pipeline.test_pipeline import LAYERS, Lab, asked, collect, lab, sequence, timed, tokens_of

SESSION = "5" * 32


async def frames(swarm: FakeSwarm, *kinds: type) -> list[Arrival]:
    """What has come to a member without a pipeline of its own, of these kinds."""
    await trio.sleep(0.5)
    came: list[Arrival] = []
    while True:
        try:
            arrival = swarm.arrivals.receive_nowait()
        except trio.WouldBlock:
            return came
        if not kinds or isinstance(arrival.frame, kinds):
            came.append(arrival)


@timed
async def test_answers_that_stream_share_batches_and_frames_and_never_mix() -> None:
    async with lab(0, 3, 6, step_s=0.01) as here:
        sizes: list[int] = []
        deliver = here.peers[1].pipeline.deliver

        def watched(arrival: Arrival) -> None:
            if isinstance(arrival.frame, Step):
                sizes.append(len(arrival.frame.parts))
            deliver(arrival)

        here.peers[1].pipeline.deliver = watched  # type: ignore[method-assign]
        answers: dict[int, list[int]] = {}

        async def one(k: int) -> None:
            answers[k] = tokens_of(await collect(here.peers[k % 2], asked([k, 7, k], 40), here.chain(0, 3, 6)))

        async with trio.open_nursery() as nursery:
            for k in range(16):
                nursery.start_soon(one, k)
        assert answers == {k: expected_tokens([k, 7, k], LAYERS, 40) for k in range(16)}
        batches = here.peers[1].engine.stages[0].batches
        assert len(batches) < 16 * 40 / 3, "alone they would be 640"
        assert max(sizes) >= 4
        assert here.peers[0].engine.most_in_flight <= 2


@timed
async def test_one_sequences_problem_ends_that_one_and_not_its_neighbours() -> None:
    async with lab(0, 6, step_s=0.01) as here:
        (peer,) = here.peers
        got: list[object] = []

        async def one(k: int) -> None:
            try:
                got.append(tokens_of(await collect(peer, asked([k], 30), here.chain(0, 6))))
            except HopLost as error:
                got.append(str(error))

        async with trio.open_nursery() as nursery:
            for k in range(6):
                nursery.start_soon(one, k)
            await trio.sleep(0.1)
            peer.engine.problems.append("a number that is none")
        assert sum("a number that is none" in str(each) for each in got) == 1
        assert all(
            each in [expected_tokens([k], LAYERS, 30) for k in range(6)] for each in got if isinstance(each, list)
        )


@timed
async def test_a_head_that_feeds_its_sequence_itself_gets_the_same_tokens() -> None:
    async with lab(0, 2, 4, 6) as here:
        generation = Generation((3, 1, 4), 20, (), Sampling(), feed="head")
        steps = await collect(here.peers[1], generation, here.chain(0, 2, 4, 6))
        assert tokens_of(steps) == expected_tokens([3, 1, 4], LAYERS, 20)


def token_after(rows: list[int]) -> list[int]:
    """The toy model's token after each row."""
    past = [0] * LAYERS
    tokens = []
    for position, row in enumerate(rows):
        hidden = row
        for layer in range(LAYERS):
            entered, hidden = hidden, layer_output(layer, hidden, past[layer])
            past[layer] += entered
        tokens.append(token_from(hidden, position + 1, Sampling()))
    return tokens


@timed
async def test_a_draft_is_verified_row_by_row_and_a_rejected_one_is_taken_back() -> None:
    async with lab(0, 3, 6) as here:
        head = here.network.add("head")
        chain = here.chain(0, 3, 6)
        first = await head.link(here.peers[0].swarm.node_id)
        fed = Sequence(SESSION, head.node_id, "", 50, 3, 47, (), Sampling(), "head")
        await first.send(Route(fed, 1, chain, 0, 3))

        async def feed(step: int, position: int, *ids: int) -> list[int]:
            part = StepPart(SESSION, 1, 0, step, position, len(ids), "each", ())
            await first.send(Step((part,), 1, None, 0.0), struct.pack(f"<{len(ids)}i", *ids))
            (arrival,) = await frames(head, Sampled)
            assert isinstance(arrival.frame, Sampled)
            (sampled,) = arrival.frame.parts
            assert (sampled.position, sampled.finish) == (position + 1, None)
            return list(sampled.tokens)

        prompt = [9, 8, 7]
        assert await feed(0, 0, *prompt) == token_after(prompt)
        draft = [token_after(prompt)[-1], 50, 60]  # the first is right, the others are not
        assert await feed(1, 3, *draft) == token_after(prompt + draft)[3:]
        right = [*prompt, draft[0], token_after([*prompt, draft[0]])[-1]]
        assert await feed(2, 4, right[-1]) == token_after(right)[4:], "as if the draft had never been"


@timed
async def test_a_repeated_step_is_ignored_and_one_from_another_attempt_too() -> None:
    async with lab(0, 6) as here:
        head = here.network.add("head")
        link = await head.link(here.peers[0].swarm.node_id)
        await link.send(Route(sequence(SESSION, head.node_id), 2, here.chain(0, 6), 0, 2))
        for attempt, step in ((2, 0), (2, 0), (1, 1), (3, 1)):
            part = StepPart(SESSION, attempt, 0, step, 0, 2, "nothing", ())
            await link.send(Step((part,), 1, None, 0.0), struct.pack("<2i", 1, 2))
        await trio.sleep(1)
        assert len(here.peers[0].engine.stages[0].steps) == 1
        assert here.live_sessions() == [1]


@timed
async def test_a_tail_that_only_repeats_itself_gives_no_sign_of_life() -> None:
    async with lab(0, 3) as here:
        (first,) = here.peers
        liar = here.network.add("liar")
        chain = (Hop(first.swarm.node_id, 0, 3), Hop(liar.node_id, 3, 6))

        async def lie() -> None:
            (session,) = first.pipeline.head._live
            link = await liar.link(first.swarm.node_id)
            while True:
                await link.send(Progress(session, 1, 1))
                await link.send(Accepted(session, 1, 1, 128))
                await trio.sleep(1)

        started_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            with pytest.raises(HopLost, match=r"liar.*no sign of life"):
                async with first.pipeline.head.generate(asked([1, 2, 3]), chain) as tokens:
                    nursery.start_soon(lie)
                    await anext(tokens)
            nursery.cancel_scope.cancel()
        assert trio.current_time() - started_s < 3 * LEAST_PATIENCE_S


# --- credit -----------------------------------------------------------------------------------------------------------


@timed
async def test_rows_ahead_of_the_credit_end_their_sequence() -> None:
    async with lab(0, 6, step_s=1.0) as here:
        head = here.network.add("head")
        link = await head.link(here.peers[0].swarm.node_id)
        await link.send(Route(sequence(SESSION, head.node_id, 3000), 1, here.chain(0, 6), 0, 2900))
        (arrival,) = await frames(head, Accepted)
        assert isinstance(arrival.frame, Accepted)
        rows = arrival.frame.rows
        assert rows == 3 * CHUNK_TOKENS
        for step in range(rows // CHUNK_TOKENS + 2):
            part = StepPart(SESSION, 1, 0, step, step * CHUNK_TOKENS, CHUNK_TOKENS, "nothing", ())
            await link.send(Step((part,), 1, None, 0.0), bytes(4 * CHUNK_TOKENS))
        (failed,) = await frames(head, Failed)
        assert isinstance(failed.frame, Failed)
        assert (failed.frame.kind, failed.frame.suspect) == ("wrong", None)
        assert here.peers[0].pipeline.stage.queue_depth == 0


@timed
async def test_rows_for_a_sequence_that_is_not_open_yet_are_held_back_within_the_first_credit() -> None:
    async with lab(0, 6) as here:
        head = here.network.add("head")
        stage = here.peers[0].engine.stages[0]
        async with here.peers[0].pipeline.stage.idle_probe._measuring:  # nothing is opened meanwhile
            link = await head.link(here.peers[0].swarm.node_id)
            await link.send(Route(sequence(SESSION, head.node_id, 3000), 1, here.chain(0, 6), 0, 2900))
            for step in range(3):
                part = StepPart(SESSION, 1, 0, step, step * CHUNK_TOKENS, CHUNK_TOKENS, "nothing", ())
                await link.send(Step((part,), 1, None, 0.0), bytes(4 * CHUNK_TOKENS))
            (failed,) = await frames(head, Failed)
            assert isinstance(failed.frame, Failed)
            assert failed.frame.kind == "overloaded"
        await trio.sleep(1)
        assert stage.sequences == {}


@timed
async def test_a_prompt_never_has_more_rows_under_way_than_every_hop_has_room_for() -> None:
    prompt = [k % 200 for k in range(CHUNK_TOKENS * 9)]
    async with lab(0, 2, 4, 6, step_s=0.05) as here:
        here.peers[2].pipeline.stage._credits._budget_bytes = 200 * 16  # the tail has little memory
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                await trio.sleep(0.01)
                rows = [session.waiting_rows for peer in here.peers for session in peer.pipeline.stage._sessions]
                most = max(most, sum(rows))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            steps = await collect(here.peers[0], asked(prompt, 3), here.chain(0, 2, 4, 6))
            nursery.cancel_scope.cancel()
        assert tokens_of(steps) == expected_tokens(prompt, LAYERS, 3)
        assert most <= 200


@timed
async def test_without_memory_for_rows_a_sequence_is_told_that_there_is_no_room() -> None:
    async with lab(0, 6) as here:
        here.peers[0].pipeline.stage._credits._budget_bytes = 100
        with pytest.raises(Overloaded, match="rows that wait"):
            await collect(here.peers[0], asked([1] * 200, 3), here.chain(0, 6))


@timed
async def test_a_head_that_holds_all_memory_for_rows_makes_room_for_another_one() -> None:
    async with lab(0, 6) as here:
        credits = here.peers[0].pipeline.stage._credits
        credits._budget_bytes = 6 * CHUNK_TOKENS * 4
        greedy = here.network.add("greedy")
        link = await greedy.link(here.peers[0].swarm.node_id)
        for number in range(9):
            await link.send(Route(sequence(f"{number:032x}", greedy.node_id, 300), 1, here.chain(0, 6), 0, 200))
        await trio.sleep(1)
        assert credits.free_bytes < CHUNK_TOKENS * 4
        steps = await collect(here.peers[0], asked([1] * 200, 3), here.chain(0, 6))
        assert tokens_of(steps) == expected_tokens([1] * 200, LAYERS, 3)
        assert {a.frame.kind for a in await frames(greedy, Failed)} == {"overloaded"}


@timed
async def test_routes_that_are_closed_at_once_do_not_pile_up_before_the_engine() -> None:
    async with lab(0, 6) as here:
        peer, head = here.peers[0], here.network.add("head")
        peer.engine.open_s = 100.0
        link = await head.link(peer.swarm.node_id)
        for number in range(MOST_OPENING + 5):
            await link.send(Route(sequence(f"{number:032x}", head.node_id, 3), 1, here.chain(0, 6), 0, 2))
            await link.send(Close(f"{number:032x}", 1, "not wanted any more"))
        await trio.sleep(1)
        assert len(peer.pipeline.stage._admission._reserving) <= MOST_OPENING
        assert len(await frames(head, Failed)) == 5
        await trio.sleep(200)
        peer.engine.open_s = 0.0
        assert peer.pipeline.stage.idle
        assert await collect(peer, asked([1], 3), here.chain(0, 6))


def test_a_row_that_waits_keeps_nothing_of_its_frame_in_memory_but_itself() -> None:
    parts = tuple(StepPart(f"{k:032x}", 1, 0, 0, 0, 1 + k * 100, "nothing", ()) for k in range(2))
    body = bytes(4 * 102)
    arrival = Arrival(NodeId("a"), Step(parts, 1, None, 0.0), body, 0.0, 0.0)
    assert [memoryview(incoming.data).obj is body for incoming in _split(arrival, arrival.frame)] == [False, False]


@timed
async def test_a_prompt_keeps_all_stages_busy_where_links_take_as_long_as_they_do() -> None:
    chunks, step_s = 20, 0.05
    prompt = [1] * (CHUNK_TOKENS * chunks)
    async with lab(0, 2, 4, 6, step_s=step_s, delay_s=step_s) as here:
        started_s = trio.current_time()
        await collect(here.peers[0], asked(prompt, 1), here.chain(0, 2, 4, 6))
        assert trio.current_time() - started_s <= (chunks + 8) * step_s


def test_chunks_are_as_long_as_the_slowest_link_carries_in_a_moment() -> None:
    chain = (Hop("a", 0, 2), Hop("b", 2, 4), Hop("c", 4, 6))

    def record(name: str, **mbps: float) -> NodeRecord:
        return NodeRecord(name, name, 1, 5.0, "m", (), "test", mbps=mbps)

    def tokens(b_from_a: float, c_from_b: float) -> int:
        records = {NodeId("b"): record("b", a=b_from_a), NodeId("c"): record("c", b=c_from_b)}
        return chunk_tokens(chain, records, 8192)

    assert tokens(1000.0, 1000.0) == CHUNK_TOKENS
    assert tokens(1000.0, 10.0) == LEAST_TOKENS, "10 Mbit/s carry 15 rows in 100 ms"
    assert tokens(40.0, 1000.0) == 61
    assert chunk_tokens(chain, {}, 8192) == CHUNK_TOKENS


# --- chains that break ------------------------------------------------------------------------------------------------


async def open_on(here: Lab, head: FakeSwarm, session: str = SESSION) -> None:
    link = await head.link(here.peers[0].swarm.node_id)
    await link.send(Route(sequence(session, head.node_id), 1, here.chain(0, 3, 6), 0, 2))


@timed
async def test_a_broken_chain_leaves_its_kv_for_some_seconds_and_tells_the_head_from_both_sides() -> None:
    async with lab(0, 3, 6) as here:
        head = here.network.add("head")
        await open_on(here, head)
        await frames(head)
        here.network.break_link(here.peers[0].swarm, here.peers[1].swarm)
        told = await frames(head, Failed)
        assert {(each.peer, each.frame.suspect) for each in told if isinstance(each.frame, Failed)} == {
            (here.peers[0].swarm.node_id, here.peers[1].swarm.node_id),
            (here.peers[1].swarm.node_id, here.peers[0].swarm.node_id),
        }
        assert here.live_sessions() == [1, 1]
        await trio.sleep(SUSPENDED_S)
        assert here.live_sessions() == [0, 0]


@timed
async def test_a_new_route_takes_up_what_was_kept_and_one_that_wants_more_is_told_so() -> None:
    async with lab(0, 6) as here:
        head = here.network.add("head")
        (stage,) = here.peers[0].engine.stages
        link = await head.link(here.peers[0].swarm.node_id)
        await link.send(Route(sequence(SESSION, head.node_id), 1, here.chain(0, 6), 0, 2))
        part = StepPart(SESSION, 1, 0, 0, 0, 2, "nothing", ())
        await link.send(Step((part,), 1, None, 0.0), struct.pack("<2i", 1, 2))
        await trio.sleep(0.5)
        here.network.break_link(head, here.peers[0].swarm)
        await frames(head)
        link = await head.link(here.peers[0].swarm.node_id)
        await link.send(Route(sequence(SESSION, head.node_id), 2, here.chain(0, 6), 0, 2, 1))
        again = StepPart(SESSION, 2, 0, 0, 1, 1, "nothing", ())
        await link.send(Step((again,), 1, None, 0.0), struct.pack("<i", 2))
        assert [each.frame.attempt for each in await frames(head, Accepted) if isinstance(each.frame, Accepted)] == [2]
        assert [(slot.position, slot.count) for slot in stage.steps] == [(0, 2), (1, 1)]
        assert len(stage.sequences) == 1
        await link.send(Route(sequence(SESSION, head.node_id), 3, here.chain(0, 6), 0, 9, 8))
        (failed,) = await frames(head, Failed)
        assert isinstance(failed.frame, Failed)
        assert failed.frame.kind == "forgotten"
        await trio.sleep(1)
        assert stage.sequences == {}


@timed
async def test_only_so_many_broken_sequences_are_kept_and_they_give_way_to_others() -> None:
    async with lab(0, 3, 6) as here:
        head = here.network.add("head")
        for number in range(MOST_SUSPENDED + 8):
            await open_on(here, head, f"{number:032x}")
        await frames(head)
        here.network.break_link(here.peers[0].swarm, here.peers[1].swarm)
        await trio.sleep(1)
        assert here.live_sessions() == [MOST_SUSPENDED] * 2
        steps = await collect(here.peers[1], asked([1] * 3900, 90), here.chain(0, 3, 6))
        assert len(steps) == 90, "all the KV there is"


@timed
async def test_a_close_of_an_older_attempt_leaves_the_newer_one() -> None:
    async with lab(0, 6) as here:
        head = here.network.add("head")
        link = await head.link(here.peers[0].swarm.node_id)
        await link.send(Route(sequence(SESSION, head.node_id), 2, here.chain(0, 6), 0, 2))
        await trio.sleep(0.5)
        await link.send(Close(SESSION, 1, "another way"))
        await trio.sleep(0.5)
        assert here.live_sessions() == [1]
        await link.send(Close(SESSION, 2, "done"))
        await link.send(Route(sequence(SESSION, head.node_id), 2, here.chain(0, 6), 0, 2))
        await trio.sleep(0.5)
        assert here.live_sessions() == [0]


@timed
async def test_another_heads_sequence_of_the_same_name_touches_nobodys() -> None:
    async with lab(0, 6) as here:
        heads = [here.network.add("one"), here.network.add("other")]
        for head in heads:
            link = await head.link(here.peers[0].swarm.node_id)
            await link.send(Route(sequence(SESSION, head.node_id), 1, here.chain(0, 6), 0, 2))
            await trio.sleep(0.1)
        (failed,) = await frames(heads[1], Failed)
        assert isinstance(failed.frame, Failed)
        assert "another head" in failed.frame.reason
        assert await frames(heads[0], Failed) == []
        assert here.live_sessions() == [1]


@timed
async def test_what_streams_is_not_held_up_by_another_requests_prompt_on_a_thin_link() -> None:
    """A chunk of 128 rows takes two seconds on the link; a decode step's row 16 ms."""
    async with lab(0, 3, 6) as here:
        here.network.bytes_per_s = 1024.0
        async with here.peers[0].pipeline.head.generate(asked([1], 60), here.chain(0, 3, 6)) as tokens:
            for _ in range(3):
                await anext(tokens)
            async with trio.open_nursery() as nursery:
                prompt = [k % 200 for k in range(CHUNK_TOKENS * 5)]
                nursery.start_soon(partial(collect, here.peers[0], asked(prompt, 2), here.chain(0, 3, 6)))
                started_s = trio.current_time()
                for _ in range(40):
                    await anext(tokens)
                assert trio.current_time() - started_s < 40 * 0.05
                nursery.cancel_scope.cancel()


async def asked_at_once(here: Lab, count: int, prompt: int, answer: int, chain: tuple[Hop, ...]) -> list[float]:
    """Times to the first token of so many requests that come together, each with its right text."""
    first_s: list[float] = []
    begun_s = trio.current_time()

    async def one(number: int) -> None:
        ids = [number % 250] * prompt
        async with here.peers[0].pipeline.head.generate(asked(ids, answer), chain) as tokens:
            got = [(await anext(tokens)).token]
            first_s.append(trio.current_time() - begun_s)
            got += [step.token async for step in tokens]
        assert got == expected_tokens(ids, LAYERS, answer)

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(one, number)
    return sorted(first_s)


@pytest.mark.parametrize("prompt", [20, 60])
def test_of_64_that_ask_at_once_nobody_waits_twice_as_long_for_the_first_token_as_most_do(prompt: int) -> None:
    @timed
    async def run() -> None:
        async with lab(0, 6, step_s=0.005) as here:
            here.peers[0].engine.row_s = 0.002
            here.peers[0].engine.stages[0].info = replace(here.peers[0].engine.stages[0].info, kv_tokens=64 * 200)
            first_s = await asked_at_once(here, 64, prompt, 40, here.chain(0, 6))
            assert first_s[-1] <= 2 * first_s[len(first_s) // 2]

    run()


@timed
async def test_an_answer_that_streams_waits_for_a_long_prompt_no_longer_than_for_some_of_its_own_steps() -> None:
    async with lab(0, 6, step_s=0.01) as here:
        here.peers[0].engine.row_s = 0.001
        head, chain = here.peers[0].pipeline.head, here.chain(0, 6)
        async with head.generate(asked([1, 2], 300), chain) as tokens, trio.open_nursery() as nursery:
            for _ in range(40):
                await anext(tokens)
            nursery.start_soon(collect, here.peers[0], asked([3] * 1500, 2), chain)
            await anext(tokens)
            waits_s: list[float] = []
            before_s = trio.current_time()
            async for _ in tokens:
                waits_s.append(trio.current_time() - before_s)
                before_s = trio.current_time()
        step_s = 0.011
        assert sorted(waits_s)[-2] <= (CHUNK_STEPS + 1.5) * step_s, (
            "but for the first chunk, before the rates are known"
        )
        assert sum(wait > 2 * step_s for wait in waits_s) >= 10, "the prompt went on beside it"


@timed
async def test_many_answers_keep_all_stages_of_a_chain_busy() -> None:
    """Three stages of 10 ms, links of two, twelve answers: nearly as many batches as three stages can run."""
    async with lab(0, 2, 4, 6, step_s=0.01) as here:
        chain = here.chain(0, 2, 4, 6)
        begun_s = trio.current_time()
        await asked_at_once(here, 12, 4, 60, chain)
        took_s = trio.current_time() - begun_s
        (stage,) = here.peers[1].engine.stages
        decodes = [batch for batch in stage.batches if batch.slots[0].position > 8]
        assert max(len(batch.slots) for batch in decodes) <= 4
        assert len(decodes) * 0.01 / took_s > 0.8, "of the time this stage worked"
