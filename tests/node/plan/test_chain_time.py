"""The one chain-time function, against an event simulation that knows nothing of its formulae."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.plan.chain_time import (
    CHUNK_TOKENS,
    LARGE_BATCH,
    ChainTime,
    HopTime,
    StageTime,
    chain_of_nodes,
    hop_time,
    node_times,
)
from node.plan.costs.roofline import OVERHEAD_MS
from node.plan.machines.pool import Links, PoolNode, Workload
from tests.fakes.pools import GIB, small_model

MILLISECONDS = st.floats(0.01, 200)


@dataclass
class Server:
    """Serves one after another, in order of arrival; what it lets go arrives `way_ms` later at the next."""

    way_ms: float
    queue: list[int] = field(default_factory=list)
    busy: bool = False


def played_ms(chain: ChainTime, tokens: int) -> float:
    """A prompt's chunks as events: all are at the first stage at once, each stage and link takes one at a time."""
    sizes = [CHUNK_TOKENS] * (tokens // CHUNK_TOKENS) + ([tokens % CHUNK_TOKENS] if tokens % CHUNK_TOKENS else [])
    servers, times = [], []
    for i, stage in enumerate(chain.stages):
        is_tail = i == len(chain.stages) - 1
        servers.append(Server(chain.to_head_ms if is_tail else 0.0))
        times.append(
            [
                max(stage.decode_ms, stage.chunk_ms * size / CHUNK_TOKENS)
                + stage.overhead_ms
                + (stage.head_ms if is_tail and chunk == len(sizes) - 1 else 0.0)
                for chunk, size in enumerate(sizes)
            ]
        )
        if not is_tail:
            servers.append(Server(chain.hops[i].way_ms))
            times.append([size * chain.token_bytes * chain.hops[i].byte_ms for size in sizes])
    events = [(chain.to_first_ms, 0, chunk, "arrives") for chunk in range(len(sizes))]
    heapq.heapify(events)
    now = 0.0
    while events:
        now, at, chunk, what = heapq.heappop(events)
        if at == len(servers):
            continue
        server = servers[at]
        if what == "arrives":
            server.queue.append(chunk)
        else:
            server.busy = False
            heapq.heappush(events, (now + server.way_ms, at + 1, chunk, "arrives"))
        if server.queue and not server.busy:
            server.busy = True
            following = server.queue.pop(0)
            heapq.heappush(events, (now + times[at][following], at, following, "done"))
    return now


@st.composite
def chains(draw: st.DrawFn) -> ChainTime:
    """One to six stages and their links."""
    count = draw(st.integers(1, 6))
    head_ms = draw(st.floats(0, 30))
    decode = draw(st.lists(MILLISECONDS, min_size=count, max_size=count))
    stages = [
        StageTime(ms, ms * draw(st.floats(1, 128)), draw(st.floats(0, 5)), head_ms if i == count - 1 else 0.0)
        for i, ms in enumerate(decode)
    ]
    hops = [HopTime(draw(st.floats(0, 150)), draw(st.floats(0, 0.01))) for _ in range(count)]
    return ChainTime(stages, hops, draw(st.floats(0, 16_384)), draw(st.floats(0, 100)), draw(st.floats(0, 100)))


@given(chains(), st.integers(1, 3000))
def test_a_prompts_time_is_what_its_chunks_take_one_by_one(chain: ChainTime, tokens: int) -> None:
    assert chain.prompt_ms(tokens) == pytest.approx(played_ms(chain, tokens), rel=1e-9)


@given(chains(), st.integers(1, 3000), st.integers(1, 500))
def test_more_tokens_take_no_less_time_and_a_slower_stage_helps_nobody(
    chain: ChainTime, tokens: int, more: int
) -> None:
    assert chain.prompt_ms(tokens + more) >= chain.prompt_ms(tokens) - 1e-9
    stage = chain.stages[0]
    slower = replace(chain, stages=[stage._replace(decode_ms=stage.decode_ms * 2), *chain.stages[1:]])
    assert slower.prompt_ms(tokens) >= chain.prompt_ms(tokens) - 1e-9
    assert slower.step_ms() > chain.step_ms()


def test_a_step_goes_once_around_and_its_token_back_to_the_first_stage() -> None:
    stages = [StageTime(10, 10, 1), StageTime(20, 20, 2, 5)]
    chain = ChainTime(stages, [HopTime(30, 0.001), HopTime(40, 0.001)], 8000, to_first_ms=7, to_head_ms=9)
    assert chain.step_ms() == pytest.approx(10 + 1 + 30 + 8 + 20 + 2 + 5 + 40)


def test_ways_to_and_from_the_head_delay_an_answer_once() -> None:
    near = ChainTime([StageTime(10, 10)], [HopTime(0)])
    far = replace(near, to_first_ms=50, to_head_ms=30)
    assert far.step_ms() == near.step_ms()
    assert far.answer_ms(10, 100) == pytest.approx(near.answer_ms(10, 100) + 80)


def test_chunks_of_a_prompt_overlap() -> None:
    chain = ChainTime([StageTime(1, 100)] * 3, [HopTime(0)] * 3)
    assert chain.prompt_ms(16 * CHUNK_TOKENS) == pytest.approx(3 * 100 + 15 * 100)


def test_a_thin_link_sets_the_pace_of_a_long_prompt() -> None:
    thin = HopTime(5, 8 / (1000 * 10))  # 10 Mbit/s
    chain = ChainTime([StageTime(1, 10)] * 2, [thin, thin], 8192)
    assert chain.prompt_ms(2048) == pytest.approx(2048 * 8192 * 8 / 10_000 + 10 + 10 + 5, rel=0.01)
    assert chain.step_ms() == pytest.approx(1 + 1 + 5 + 5 + 8192 * 8 / 10_000)


def test_two_stages_of_one_node_take_turns() -> None:
    apart = ChainTime(
        [StageTime(1, 100, node="a"), StageTime(1, 10, node="b"), StageTime(1, 100, node="c")], [HopTime(0)] * 3
    )
    twice = replace(apart, stages=[*apart.stages[:2], StageTime(1, 100, node="a")])
    assert apart.prompt_ms(20 * CHUNK_TOKENS) == pytest.approx(19 * 100 + 100 + 10 + 100)
    assert twice.prompt_ms(20 * CHUNK_TOKENS) == pytest.approx(20 * 200)
    assert twice.tokens_per_s(300, Workload(2000, 10)) < 0.6 * apart.tokens_per_s(300, Workload(2000, 10))


def test_a_tokens_mean_time_holds_its_share_of_the_prompt() -> None:
    chain = ChainTime([StageTime(10, 100)], [HopTime(0)])
    assert chain.token_ms(Workload(1, 1)) == pytest.approx(10)
    assert chain.token_ms(Workload(2 * CHUNK_TOKENS, 11)) == pytest.approx((200 + 10 * 10) / 11)


@given(chains())
def test_one_sequence_alone_gets_what_a_step_takes(chain: ChainTime) -> None:
    no_prompt = Workload(1, 10**9)
    assert chain.tokens_per_s(1, no_prompt) <= 1000 / chain.step_ms() * (1 + 1e-6)
    assert chain.tokens_per_s(1, no_prompt) == pytest.approx(1000 / chain.step_ms(), rel=1e-6)


@given(chains(), st.floats(1, 200), st.floats(1.0, 3.0))
def test_more_sequences_make_no_fewer_tokens_per_second_where_a_large_batch_costs_no_more(
    chain: ChainTime, running: float, more: float
) -> None:
    work = Workload(100, 100)
    assert chain.tokens_per_s(running * more, work) >= chain.tokens_per_s(running, work) * (1 - 1e-9)


def played_rate(chain: ChainTime, running: int) -> float:
    """Groups of sequences go round and round; tokens per second of the later half."""
    groups = min(running, len(chain.stages))
    size = running / groups
    free = [0.0] * len(chain.stages)
    done: list[float] = []
    events = [(0.0, 0, group) for group in range(groups)]
    heapq.heapify(events)
    while len(done) < 400:
        now, at, group = heapq.heappop(events)
        start = max(now, free[at])
        free[at] = start + chain.stages[at].batch_step_ms(size)
        is_back = at == len(chain.stages) - 1
        if is_back:
            done.append(free[at])
        heapq.heappush(events, (free[at] + chain.hops[at].way_ms, (at + 1) % len(chain.stages), group))
    return 1000 * 200 * size / (done[-1] - done[199])


@given(chains(), st.integers(1, 40))
def test_the_rate_of_many_is_that_of_their_batches_going_round(chain: ChainTime, batches: int) -> None:
    count = len(chain.stages)
    running = batches * count if batches > 1 else 1
    bare = replace(chain, token_bytes=0.0)
    told = bare.tokens_per_s(running, Workload(1, 10**9))
    assert told == pytest.approx(played_rate(bare, running), rel=0.02)


def test_a_batch_takes_longer_by_what_was_measured_between_one_and_many() -> None:
    stage = StageTime(10, 10, 1, 2, 25, 5)
    assert stage.batch_step_ms(1) == pytest.approx(13)
    assert stage.batch_step_ms(LARGE_BATCH) == pytest.approx(31)


def test_nodes_and_links_give_a_chain() -> None:
    model, work = small_model(8), Workload(512, 64)
    fast, slow = PoolNode("fast", GIB, 1e11, 1e13, overhead_ms=0.5), PoolNode("slow", GIB, 1e10, 1e12, head_ms=3.0)
    links = Links({("fast", "slow"): 20.0}, {("fast", "slow"): 100.0})
    chain = chain_of_nodes(model, links, [fast, slow], [6, 2], work, head=slow)
    assert chain.stages[0].decode_ms == pytest.approx(6 * node_times(model, fast, work).layer_ms)
    assert (chain.stages[0].head_ms, chain.stages[1].head_ms) == (0.0, pytest.approx(3.0))
    assert chain.hops[0] == hop_time(links, fast, slow) == HopTime(10.0, pytest.approx(8 / 100_000))
    assert (chain.to_first_ms, chain.to_head_ms) == (10.0, 0.0)
    assert chain.stages[0].overhead_ms == 0.5


def test_a_chunk_multiplies_where_a_step_reads() -> None:
    model, work = small_model(8), Workload(256, 64)
    node = PoolNode("a", GIB, 1e11, 1e12)
    times = node_times(model, node, work)
    params = model.dense_params
    assert times.layer_ms == pytest.approx(2 * params / 1e11 / 0.7 * 1000 + OVERHEAD_MS, rel=0.02)
    assert times.chunk_layer_ms == pytest.approx(2 * CHUNK_TOKENS * params / 1e12 / 0.7 * 1000 + OVERHEAD_MS, rel=0.05)


def test_measured_layers_time_the_steps_that_were_measured() -> None:
    node = PoolNode("a", GIB, 1e11, 1e12, layer_ms=((1, 7.0),))
    assert node_times(small_model(8), node, Workload(256, 256)).layer_ms == pytest.approx(7.0, rel=0.02)


def test_a_measured_prompt_times_the_chunks() -> None:
    node = PoolNode("a", GIB, 1e11, 1e12, prompt_row_ms=0.25)
    times = node_times(small_model(8), node, Workload(256, 256))
    assert times.chunk_layer_ms == pytest.approx(0.25 * CHUNK_TOKENS)
    assert times.layer_ms == node_times(small_model(8), PoolNode("a", GIB, 1e11, 1e12), Workload(256, 256)).layer_ms
