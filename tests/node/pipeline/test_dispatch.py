"""Which chain a live request takes, and what it does where room lacks or a node fails before the first token."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from node.engine.base import Stage, StageSpec
from node.errors import BadRequest, EngineError, HopLost, NoRoute, Overloaded, RequestError
from node.pipeline.dispatch import MOST_TRIES, PAUSE_S, WAIT_LIMIT_S, Dispatcher
from node.pipeline.head import ANSWER_LIMIT_S, Generation
from node.pipeline.pipeline import Pipeline
from node.swarm.base import MemberGone
from node.wire.frames import Hop, Sampling
from node.wire.models import ModelFacts, ModelRef
from node.wire.plans import Override, Plan, PlanSettings
from node.wire.records import HeldRange, LayerLatency
from tests.fakes.engine import KV_BYTES_PER_TOKEN_LAYER, FakeEngine, expected_tokens
from tests.fakes.swarm import FakeSwarm, fake_node_id, open_fake_network

LAYERS = 6
KV_TOKENS = 100
PLAN = Plan(1, "a", ModelRef("toy", "test", "toy"), "float32", ModelFacts(LAYERS, 100, 10, 10, 8, 4, 251, 4096), ())


@dataclass
class Node:
    """A member that holds ranges, and says once a second how it is."""

    name: str
    swarm: FakeSwarm
    engine: FakeEngine
    pipeline: Pipeline
    dispatcher: Dispatcher
    stages: dict[tuple[int, int], Stage]
    chains: list[tuple[Hop, ...]] = field(default_factory=list)
    """Those that its requests were opened on."""

    def request(self, prompt: int = 3, answer: int = 5, name: str = "a request") -> Any:
        generation = Generation((1,) * prompt, answer, (), Sampling(), PLAN.weights)
        return self.dispatcher.generate(generation, name, self.chains.append)

    async def ask(self, prompt: int = 3, answer: int = 5, name: str = "a request") -> None:
        async with self.request(prompt, answer, name) as tokens:
            assert [step.token async for step in tokens] == expected_tokens([1] * prompt, LAYERS, answer)

    async def tell(self) -> None:
        stage = self.pipeline.stage
        start, end = next(iter(self.stages), (0, LAYERS))
        used = stage.reserved_bytes // (KV_BYTES_PER_TOKEN_LAYER * (end - start))
        await self.swarm.update(sessions=stage.sessions, load=stage.load, kv_tokens_used=used)

    def names(self) -> list[tuple[str, ...]]:
        """Of the nodes of its chains."""
        return [tuple(hop.node_id[-1] for hop in chain) for chain in self.chains]


@dataclass
class Lab:
    nursery: trio.Nursery
    swarms: Callable[..., FakeSwarm]
    plan: Plan = PLAN
    nodes: list[Node] = field(default_factory=list)

    async def join(self, name: str, *ranges: tuple[int, int], step_s: float = 0.01, **record: Any) -> Node:
        held = tuple(HeldRange(start, end, "ready", 1, self.plan.weights) for start, end in ranges)
        room = KV_TOKENS if ranges else 0
        engine = FakeEngine(LAYERS, step_s=step_s)
        told = {"machine_id": name, "hardware": engine.hardware, "held": held, "kv_tokens_total": room}
        swarm = self.swarms(name, **(told | record))
        stages: dict[tuple[int, int], Stage] = {}
        for start, end in ranges:
            kv_bytes = KV_TOKENS * KV_BYTES_PER_TOKEN_LAYER * (end - start)
            stages[start, end] = await engine.load(StageSpec("toy", start, end, "float32", kv_bytes))

        async def lookup(start: int, end: int, weights: str) -> Stage | None:
            await trio.lowlevel.checkpoint()
            return stages.get((start, end))

        pipeline = Pipeline(swarm, lookup, lambda error: None)
        dispatcher = Dispatcher(swarm.node_id, pipeline.head, lambda: self.plan, swarm.members)
        node = Node(name, swarm, engine, pipeline, dispatcher, stages)
        self.nodes.append(node)
        await self.nursery.start(pipeline.run)
        self.nursery.start_soon(self._watch, node)
        self.nursery.start_soon(self._report, node)
        return node

    async def _watch(self, node: Node) -> None:
        async for news in node.swarm.news:
            if isinstance(news, MemberGone):
                node.pipeline.lost(news.node_id, news.why)

    async def _report(self, node: Node) -> None:
        while True:
            await trio.sleep(1.0)
            await node.tell()


@asynccontextmanager
async def open_lab() -> AsyncIterator[Lab]:
    async with open_fake_network(delay_s=0.001) as network, trio.open_nursery() as nursery:
        yield Lab(nursery, network.add)
        nursery.cancel_scope.cancel()


def in_a_lab(test: Callable[[Lab], Awaitable[None]]) -> Callable[[], None]:
    """Run on a clock that jumps."""

    async def run() -> None:
        async with open_lab() as lab:
            await test(lab)
            await trio.sleep(3)
            assert [node.engine.live_sessions for node in lab.nodes] == [0] * len(lab.nodes), "nothing stays reserved"

    def sync() -> None:
        trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))

    sync.__name__, sync.__doc__ = test.__name__, test.__doc__
    return sync


async def together(*asked: Callable[[], Awaitable[object]]) -> None:
    async with trio.open_nursery() as nursery:
        for each in asked:
            nursery.start_soon(each)


@in_a_lab
async def test_two_requests_of_one_head_take_different_replicas(lab: Lab) -> None:
    head = await lab.join("h")
    await lab.join("a", (0, 6))
    await lab.join("b", (0, 6))
    await together(head.ask, head.ask)
    assert sorted(head.names()) == [("a",), ("b",)]


@in_a_lab
async def test_two_heads_avoid_one_another_as_soon_as_records_tell(lab: Lab) -> None:
    one, other = await lab.join("x"), await lab.join("y")
    await lab.join("a", (0, 6), step_s=0.1)
    await lab.join("b", (0, 6), step_s=0.1)
    async with one.request(answer=90) as tokens:
        await anext(tokens)
        await trio.sleep(1.5)
        await other.ask()
        await other.ask(name="another")
    assert {*one.names(), *other.names()} == {("a",), ("b",)}
    assert len(set(other.names())) == 1


@in_a_lab
async def test_a_free_node_is_free_again_at_once(lab: Lab) -> None:
    head = await lab.join("h")
    await lab.join("a", (0, 6), layer_latency=LayerLatency(1.0, 1.0, 1.0))
    await lab.join("b", (0, 6), layer_latency=LayerLatency(1.2, 1.2, 1.2))
    for _ in range(3):
        await head.ask()
    assert head.names() == [("a",)] * 3


@in_a_lab
async def test_a_full_node_is_avoided(lab: Lab) -> None:
    head = await lab.join("h")
    await lab.join("a", (0, 6), kv_tokens_used=KV_TOKENS - 5)
    await lab.join("b", (0, 6), layer_latency=LayerLatency(1e-6, 1e-6, 1e-6), kv_tokens_used=KV_TOKENS)
    await lab.join("c", (0, 6))
    await head.ask()
    assert head.names() == [("c",)]


@in_a_lab
async def test_requests_wait_for_room_in_the_order_in_which_they_came(lab: Lab) -> None:
    head = await lab.join("h")
    await lab.join("a", (0, 6))
    begun: list[int] = []

    async def ask(number: int) -> None:
        await trio.sleep(number / 1000)
        generation = Generation((1, 1, 1), 40, (), Sampling(), PLAN.weights)
        async with head.dispatcher.generate(generation, f"{number}", lambda chain: begun.append(number)) as tokens:
            assert len([step async for step in tokens]) == generation.max_new_tokens

    await together(*(partial(ask, number) for number in range(6)))
    assert begun == list(range(6)), "each once"


@in_a_lab
async def test_a_large_request_that_waits_does_not_hold_up_a_small_one(lab: Lab) -> None:
    head = await lab.join("h")
    await lab.join("a", (0, 6), step_s=1.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(head.ask, 10, 40)
        await trio.sleep(0.5)
        nursery.start_soon(head.ask, 60, 30)
        await trio.sleep(0.5)
        started_s = trio.current_time()
        await head.ask(3, 2)
        assert trio.current_time() - started_s < 10


@in_a_lab
async def test_a_large_request_is_not_overtaken_for_ever_by_small_ones(lab: Lab) -> None:
    head = await lab.join("h")
    await lab.join("a", (0, 6), step_s=0.05)
    large = 4
    begun: list[int] = []

    async def ask(number: int, prompt: int) -> None:
        generation = Generation((1,) * prompt, 35, (), Sampling(), PLAN.weights)
        async with head.dispatcher.generate(generation, f"{number}", lambda chain: begun.append(number)) as tokens:
            assert len([step async for step in tokens]) == 35

    async with trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(ask, number, 55 if number == large else 5)
            await trio.sleep(1)
    overtook = [number for number in begun[: begun.index(large)] if number > large]
    assert len(overtook) <= 2, "two small ones need nearly as much as it does"


@in_a_lab
async def test_without_room_for_long_a_request_is_told_so_and_one_that_goes_away_is_forgotten(lab: Lab) -> None:
    head = await lab.join("h")
    await lab.join("a", (0, 6), step_s=1.0)
    async with head.request(answer=90) as tokens:
        await anext(tokens)
        with trio.move_on_after(5) as gone:
            await head.ask(answer=80)
        assert gone.cancelled_caught
        started_s = trio.current_time()
        with pytest.raises(Overloaded, match="83 more tokens"):
            await head.ask(answer=80)
        assert trio.current_time() - started_s == pytest.approx(WAIT_LIMIT_S)
    await head.ask(answer=5)


@in_a_lab
async def test_a_complete_answer_holds_no_room_however_slowly_it_is_read(lab: Lab) -> None:
    head = await lab.join("h")
    only = await lab.join("a", (0, 6))
    async with head.request(prompt=50, answer=40) as tokens:
        await anext(tokens)
        await trio.sleep(1)
        assert only.engine.live_sessions == 0
        started_s = trio.current_time()
        await head.ask(prompt=50, answer=20)
        assert trio.current_time() - started_s < 1
        await trio.sleep(10 * ANSWER_LIMIT_S)
        assert len([step async for step in tokens]) == 39


@in_a_lab
async def test_a_node_that_has_less_room_than_it_told_is_waited_for(lab: Lab) -> None:
    """Six heads see the same room and only one gets it: the others are refused again and again."""
    heads = [await lab.join(f"h{number}") for number in range(6)]
    await lab.join("a", (0, 6), step_s=0.1)
    await together(*(partial(head.ask, 10, 50) for head in heads))


@in_a_lab
async def test_room_that_is_not_told_is_waited_for_too(lab: Lab) -> None:
    head = await lab.join("h")
    await lab.join("a", (0, 6), step_s=0.1, held=(HeldRange(0, 6, "draining", 1, PLAN.weights),), kv_tokens_total=0)
    await together(partial(head.ask, 50, 40), partial(head.ask, 50, 40))
    assert len(head.chains) < 10, "asked when there are news, not all the time"


@in_a_lab
async def test_a_node_that_refuses_for_lack_of_room_is_gone_around_meanwhile(lab: Lab) -> None:
    other, head = await lab.join("g"), await lab.join("h")
    await lab.join("a", (0, 6), layer_latency=LayerLatency(1e-3, 1e-3, 1e-3), step_s=1.0)
    await lab.join("b", (0, 6), layer_latency=LayerLatency(1.0, 1.0, 1.0))

    async def ask_before_it_tells() -> None:
        await trio.sleep(0.1)
        await head.ask(answer=50)

    await together(partial(other.ask, answer=90), ask_before_it_tells)
    assert other.names() == [("a",)]
    assert head.names() == [("a",), ("b",)]


@in_a_lab
async def test_a_second_try_waits_for_room_as_long_as_the_first(lab: Lab) -> None:
    head = await lab.join("h")
    slow = await lab.join("a", (0, 6), step_s=70.0, layer_latency=LayerLatency(1e-3, 1e-3, 1e-3))
    await lab.join("b", (0, 6), layer_latency=LayerLatency(1.0, 1.0, 1.0))

    async def lose() -> None:
        await trio.sleep(WAIT_LIMIT_S + 5)
        head.pipeline.lost(slow.swarm.node_id, "its cable was cut")

    await together(head.ask, lose)
    assert head.names() == [("a",), ("b",)]
    await trio.sleep(10)  # its step ends


@in_a_lab
async def test_what_never_fits_is_refused_at_once_with_the_numbers(lab: Lab) -> None:
    head = await lab.join("h")
    await lab.join("a", (0, 6))
    started_s = trio.current_time()
    with pytest.raises(BadRequest, match=r"may take 113 tokens.*has 100"):
        await head.ask(answer=110)
    assert trio.current_time() == started_s


@in_a_lab
async def test_a_node_that_refuses_before_the_first_token_is_gone_around(lab: Lab) -> None:
    head = await lab.join("h")
    bad = await lab.join("a", (0, 6), layer_latency=LayerLatency(1e-3, 1e-3, 1e-3))
    await lab.join("b", (0, 6), layer_latency=LayerLatency(1.0, 1.0, 1.0))
    bad.stages.clear()
    await head.ask()
    assert head.names() == [("a",), ("b",)]


@in_a_lab
async def test_a_node_that_failed_is_tried_again_where_the_others_are_full_and_holds_up_nobody(
    lab: Lab,
) -> None:
    head, other_head = await lab.join("h"), await lab.join("o")
    quick = await lab.join("a", (0, 6), layer_latency=LayerLatency(1e-3, 1e-3, 1e-3))
    await lab.join("b", (0, 6), layer_latency=LayerLatency(0.01, 0.01, 0.01), step_s=1.0)
    quick_stages = dict(quick.stages)
    quick.stages.clear()
    waited_s: dict[str, float] = {}

    async def ask(name: str, after_s: float) -> None:
        await trio.sleep(after_s)
        if name == "second":
            quick.stages.update(quick_stages)
        await head.ask(answer=60, name=name)
        waited_s[name] = trio.current_time() - started_s - after_s

    async with other_head.request(answer=90) as tokens:  # fails on the one, and fills the other
        await anext(tokens)
        assert other_head.names() == [("a",), ("b",)]
        started_s = trio.current_time()
        await together(partial(ask, "first", 0.0), partial(ask, "second", 0.1))
    assert head.names() == [("a",), ("a",), ("a",)]
    assert waited_s["second"] < PAUSE_S
    assert waited_s["first"] < PAUSE_S + 2


@in_a_lab
async def test_a_node_that_is_lost_before_the_first_token_is_gone_around(lab: Lab) -> None:
    head = await lab.join("h")
    bad = await lab.join("a", (0, 6), step_s=2.0, layer_latency=LayerLatency(1e-3, 1e-3, 1e-3))
    await lab.join("b", (0, 6), layer_latency=LayerLatency(1.0, 1.0, 1.0))

    async def lose() -> None:
        await trio.sleep(1)
        head.pipeline.lost(bad.swarm.node_id, "its cable was cut")

    await together(head.ask, lose)
    assert head.names() == [("a",), ("b",)]


@in_a_lab
async def test_the_node_that_a_neighbour_has_lost_is_gone_around_and_not_the_neighbour(lab: Lab) -> None:
    head = await lab.join("h")
    first = await lab.join("a", (0, 3))
    lost = await lab.join("b", (3, 6), step_s=2.0, layer_latency=LayerLatency(1e-3, 1e-3, 1e-3))
    await lab.join("c", (3, 6), layer_latency=LayerLatency(1.0, 1.0, 1.0))
    await lab.join("d", (0, 3), layer_latency=LayerLatency(1.0, 1.0, 1.0))

    async def lose() -> None:
        await trio.sleep(1)
        first.pipeline.lost(lost.swarm.node_id, "its cable was cut")

    await together(head.ask, lose)
    assert head.names() == [("a", "b"), ("a", "c")]


@in_a_lab
async def test_a_lost_node_that_nobody_stands_in_for_is_named(lab: Lab) -> None:
    head = await lab.join("h", (0, 3))
    only = await lab.join("a", (3, 6), step_s=2.0)

    async def lose() -> None:
        await trio.sleep(1)
        head.pipeline.lost(only.swarm.node_id, "its cable was cut")
        await only.swarm.update(held=())

    async def ask() -> None:
        with pytest.raises(HopLost, match="cable was cut"):
            await head.ask()

    await together(ask, lose)


@in_a_lab
async def test_the_only_node_is_tried_again_when_it_has_told_how_it_is(lab: Lab) -> None:
    head = await lab.join("h")
    only = await lab.join("a", (0, 6))
    kept = only.stages.pop((0, 6))

    async def recover() -> None:
        await trio.sleep(0.1)
        only.stages[0, 6] = kept

    await together(head.ask, recover)
    assert head.names() == [("a",), ("a",)]


@in_a_lab
async def test_after_three_failures_the_last_one_is_told(lab: Lab) -> None:
    head = await lab.join("h")
    for name in "abcd":
        (await lab.join(name, (0, 6))).stages.clear()
    with pytest.raises(NoRoute, match="not ready"):
        await head.ask()
    assert len(set(head.names())) == MOST_TRIES


@in_a_lab
async def test_the_only_node_is_not_tried_for_ever(lab: Lab) -> None:
    head = await lab.join("h")
    (await lab.join("a", (0, 6))).stages.clear()
    with trio.fail_after(60), pytest.raises(NoRoute, match="not ready"):
        await head.ask()
    assert head.names() == [("a",)] * MOST_TRIES


@in_a_lab
async def test_a_failure_in_the_middle_of_an_answer_is_told(lab: Lab) -> None:
    head = await lab.join("h")
    nodes = [await lab.join(name, (0, 6)) for name in "ab"]
    with pytest.raises(RequestError, match="refused on demand"):
        async with head.request() as tokens:
            await anext(tokens)
            for node in nodes:
                node.engine.refuse_next(EngineError("refused on demand"))
            async for _ in tokens:
                pass
    assert len(head.chains) == 1
    for node in nodes:
        node.engine._refusals.clear()


@in_a_lab
async def test_two_whole_copies_are_not_mixed_for_a_small_gain(lab: Lab) -> None:
    head = await lab.join("h")
    for name, layer_ms, head_ms in (("a", 100.0, 20.0), ("b", 101.0, 1.0)):  # b's last layer and head would save 1 %
        latency = LayerLatency(layer_ms, layer_ms, layer_ms)
        await lab.join(name, (0, 6), machine_id="one machine", layer_latency=latency, head_ms=head_ms)
    await head.ask()
    assert head.names() == [("b",)]


@in_a_lab
async def test_an_excluded_node_is_never_used_and_a_draining_one_only_where_it_must_be(lab: Lab) -> None:
    head = await lab.join("h")
    for name in "abc":
        await lab.join(name, (0, 6))

    def now(**duties: Any) -> None:
        overrides = tuple(Override(fake_node_id(name), duty=duty) for name, duty in duties.items())
        lab.plan = Plan(
            lab.plan.epoch + 1,
            PLAN.author,
            PLAN.model,
            PLAN.dtype,
            PLAN.facts,
            (),
            settings=PlanSettings("auto", overrides),
        )

    now(a="exclude", b="drain")
    for number in range(8):
        await head.ask(name=f"{number}")
    assert Counter(head.names()) == {("c",): 8}
    head.chains.clear()
    now(a="exclude", b="drain", c="exclude")
    await head.ask()
    assert head.names() == [("b",)]
    now(a="exclude", b="exclude", c="exclude")
    with pytest.raises(NoRoute, match="layers 0–5 of 6"):
        await head.ask()


@in_a_lab
async def test_equal_nodes_share_requests_that_come_one_after_another(lab: Lab) -> None:
    head = await lab.join("h")
    for name in "ab":
        await lab.join(name, (0, 6))
    for number in range(20):
        await head.ask(name=f"request {number}")
    counts = Counter(head.names())
    assert len(counts) == 2
    assert min(counts.values()) >= 4


@in_a_lab
async def test_a_chain_over_two_nodes_and_a_plan_for_another_model(lab: Lab) -> None:
    head = await lab.join("h", (0, 3))
    await lab.join("b", (3, 6), rtt_ms={fake_node_id("h"): 4.0})
    await head.ask()
    assert head.names() == [("h", "b")]
    lab.plan = Plan(2, "a", ModelRef("other", "test", "other"), "float32", PLAN.facts, ())
    with pytest.raises(NoRoute, match="another model"):
        await head.ask()
