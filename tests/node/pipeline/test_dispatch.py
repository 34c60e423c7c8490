"""Which chain a live request takes, and what it does where room lacks or a node fails before the first token."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from node.engine.base import StageSpec
from node.errors import BadRequest, HopLost, NoRoute, Overloaded, TooLong, WorkerDied
from node.live.served_ranges import ServedRange, ServedRanges
from node.pipeline.bad_pairs import LINK_S
from node.pipeline.dispatch import LOOK_AGAIN_S, LOOK_ANYWAY_S, WAIT_LIMIT_S, Dispatcher
from node.pipeline.failover import CLAIM_AFTER_S, FIRST_PAUSE_S, MOST_IN_VAIN, MOST_PAUSE_S, RESUME_LIMIT_S
from node.pipeline.generation import Generation
from node.pipeline.head import ANSWER_LIMIT_S, LEAST_PATIENCE_S, QUESTION_S, REST_LIMIT_S
from node.pipeline.pipeline import Pipeline
from node.pipeline.seats import KEEPS_S
from node.pipeline.suspects import FIRST_S, MOST_REFUSALS
from node.swarm.base import LinkLost, MemberGone, MemberSeen
from node.wire.events import NodeAvoided
from node.wire.frames import Hop, Route, Sampling, Sequence
from node.wire.models import ModelFacts, ModelRef
from node.wire.plans import Override, Plan, PlanSettings
from node.wire.records import HeldRange, LayerLatency
from tests.fakes.engine import KV_BYTES_PER_TOKEN_LAYER, FakeEngine, expected_tokens
from tests.fakes.swarm import FakeNetwork, FakeSwarm, fake_node_id, open_fake_network

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
    stages: ServedRanges
    avoided: list[NodeAvoided]
    chains: list[tuple[Hop, ...]] = field(default_factory=list)
    """Those that its requests were opened on."""
    waits: list[str] = field(default_factory=list)
    """What its requests were told to wait for."""

    def request(self, prompt: int = 3, answer: int = 5, name: str = "a request") -> Any:
        generation = Generation((1,) * prompt, answer, (), Sampling(), PLAN.weights)
        return self.dispatcher.generate(generation, name, self.chains.append, self.waits.append)

    async def ask(self, prompt: int = 3, answer: int = 5, name: str = "a request") -> None:
        async with self.request(prompt, answer, name) as tokens:
            assert [step.token async for step in tokens] == expected_tokens([1] * prompt, LAYERS, answer)

    async def tell(self) -> None:
        stage = self.pipeline.stage
        start, end = next(((held.start, held.end) for held in self.stages), (0, LAYERS))
        used = stage.reserved_bytes // (KV_BYTES_PER_TOKEN_LAYER * (end - start))
        await self.swarm.update(sessions=stage.sessions, load=stage.load, kv_tokens_used=used)

    def names(self) -> list[tuple[str, ...]]:
        """Of the nodes of its chains."""
        return [tuple(hop.node_id[-1] for hop in chain) for chain in self.chains]


@dataclass
class Lab:
    nursery: trio.Nursery
    network: FakeNetwork
    plan: Plan | None = PLAN
    nodes: list[Node] = field(default_factory=list)
    silent: bool = False
    """Nobody tells how it is."""

    def soon(self, name: str, *ranges: tuple[int, int]) -> None:
        self.nursery.start_soon(partial(self.join, name, *ranges))

    def kill(self, node: Node) -> None:
        self.nodes.remove(node)
        self.network.kill(node.swarm)

    def black_hole(self, name: str, *ranges: tuple[int, int], **record: Any) -> FakeSwarm:
        """A member whose record is as good as any, and that reads nothing."""
        held = tuple(HeldRange(start, end, "ready", 1, PLAN.weights) for start, end in ranges)
        hardware = FakeEngine(LAYERS).hardware
        told = {"machine_id": name, "hardware": hardware, "held": held, "kv_tokens_total": KV_TOKENS}
        return self.network.add(name, **(told | record))

    async def serve_again(self, node: Node) -> None:
        """Its engine has been started anew, and has loaded all layers."""
        engine = FakeEngine(LAYERS, step_s=0.01)
        node.engine = engine
        kv_bytes = KV_TOKENS * KV_BYTES_PER_TOKEN_LAYER * LAYERS
        stage = await engine.load(StageSpec("toy", 0, LAYERS, "float32", kv_bytes))
        node.stages.add(ServedRange(stage, "toy", 0, LAYERS, PLAN.weights, kv_bytes, 2))
        await node.swarm.update(held=(HeldRange(0, LAYERS, "ready", 2, PLAN.weights),), kv_tokens_total=KV_TOKENS)

    def hoard(self, head: Node, node: Node, number: int, tokens: int) -> None:
        """Have a sequence opened that does nothing."""
        chain = (Hop(node.swarm.node_id, 0, LAYERS),)
        name, prompt = f"{number:032x}", tokens - 2
        sequence = Sequence(name, head.swarm.node_id, PLAN.weights, tokens, prompt, 2, (), Sampling())

        async def send() -> None:
            link = await head.swarm.link(node.swarm.node_id)
            await link.send(Route(sequence, 1, chain, 0, prompt))

        self.nursery.start_soon(send)

    async def join(self, name: str, *ranges: tuple[int, int], step_s: float = 0.01, **record: Any) -> Node:
        held = tuple(HeldRange(start, end, "ready", 1, self.plan.weights) for start, end in ranges)
        kv_tokens = record.pop("kv_tokens", KV_TOKENS)
        room = kv_tokens if ranges else 0
        engine = FakeEngine(LAYERS, step_s=step_s)
        told = {"machine_id": name, "hardware": engine.hardware, "held": held, "kv_tokens_total": room}
        swarm = self.network.add(name, **(told | record))
        stages = ServedRanges()
        for start, end in ranges:
            kv_bytes = kv_tokens * KV_BYTES_PER_TOKEN_LAYER * (end - start)
            stage = await engine.load(StageSpec("toy", start, end, "float32", kv_bytes))
            stages.add(ServedRange(stage, "toy", start, end, PLAN.weights, kv_bytes, 1))

        def worker_failed(error: WorkerDied) -> None:
            for held in stages:
                pipeline.stage.drop_all_on(held.stage, str(error))

        pipeline = Pipeline(swarm, stages, worker_failed)
        avoided: list[NodeAvoided] = []
        dispatcher = Dispatcher(swarm.node_id, pipeline.head, lambda: self.plan, swarm.members, avoided.append)
        node = Node(name, swarm, engine, pipeline, dispatcher, stages, avoided)
        self.nodes.append(node)
        await self.nursery.start(pipeline.run)
        self.nursery.start_soon(self._watch, node)
        self.nursery.start_soon(self._report, node)
        return node

    async def _watch(self, node: Node) -> None:
        async for news in node.swarm.news:
            if isinstance(news, MemberGone):
                node.pipeline.member_gone(news.node_id, news.why)
                node.dispatcher.changed()
            elif isinstance(news, LinkLost):
                node.pipeline.link_lost(news.node_id, news.reason, news.lanes)
            elif isinstance(news, MemberSeen):
                node.dispatcher.heard(news.record)

    async def _report(self, node: Node) -> None:
        while True:
            await trio.sleep(1.0)
            if not self.silent:
                await node.tell()


@asynccontextmanager
async def open_lab() -> AsyncIterator[Lab]:
    async with open_fake_network(delay_s=0.001) as network, trio.open_nursery() as nursery:
        yield Lab(nursery, network)
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
        with pytest.raises(Overloaded, match="67 more tokens"):
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
async def test_a_second_try_after_a_long_first_one(lab: Lab) -> None:
    head = await lab.join("h")
    slow = await lab.join("a", (0, 6), step_s=70.0, layer_latency=LayerLatency(1e-3, 1e-3, 1e-3))
    await lab.join("b", (0, 6), layer_latency=LayerLatency(1.0, 1.0, 1.0))

    async def lose() -> None:
        await trio.sleep(WAIT_LIMIT_S + 5)
        head.pipeline.member_gone(slow.swarm.node_id, "its cable was cut")

    await together(head.ask, lose)
    assert head.names() == [("a",), ("b",)]
    await trio.sleep(10)  # its step ends


@in_a_lab
async def test_what_never_fits_is_refused_at_once_with_the_numbers(lab: Lab) -> None:
    head = await lab.join("h")
    await lab.join("a", (0, 6))
    started_s = trio.current_time()
    with pytest.raises(BadRequest, match=r"take 105 tokens.*has 100"):
        await head.ask(prompt=100, answer=5)
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
    quick_stages = list(quick.stages)
    quick.stages.clear()
    waited_s: dict[str, float] = {}

    async def ask(name: str, after_s: float) -> None:
        await trio.sleep(after_s)
        if name == "second":
            for held in quick_stages:
                quick.stages.add(held)
        await head.ask(answer=60, name=name)
        waited_s[name] = trio.current_time() - started_s - after_s

    async with other_head.request(answer=90) as tokens:  # fails on the one, and fills the other
        await anext(tokens)
        assert other_head.names() == [("a",), ("b",)]
        started_s = trio.current_time()
        await together(partial(ask, "first", 0.0), partial(ask, "second", 0.1))
    assert head.names() == [("a",), ("a",), ("a",)]
    assert waited_s["second"] < FIRST_PAUSE_S
    assert waited_s["first"] < FIRST_PAUSE_S + 2


@in_a_lab
async def test_a_node_that_is_lost_before_the_first_token_is_gone_around(lab: Lab) -> None:
    head = await lab.join("h")
    bad = await lab.join("a", (0, 6), step_s=2.0, layer_latency=LayerLatency(1e-3, 1e-3, 1e-3))
    await lab.join("b", (0, 6), layer_latency=LayerLatency(1.0, 1.0, 1.0))

    async def lose() -> None:
        await trio.sleep(1)
        head.pipeline.member_gone(bad.swarm.node_id, "its cable was cut")

    await together(head.ask, lose)
    assert head.names() == [("a",), ("b",)]


@in_a_lab
async def test_two_nodes_that_have_lost_one_another_are_kept_apart_and_both_used(lab: Lab) -> None:
    head = await lab.join("h")
    first = await lab.join("a", (0, 3), layer_latency=LayerLatency(1e-3, 1e-3, 1e-3))
    lost = await lab.join("b", (3, 6), step_s=0.3, layer_latency=LayerLatency(1e-3, 1e-3, 1e-3))
    await lab.join("c", (3, 6), layer_latency=LayerLatency(100.0, 100.0, 100.0))
    await lab.join("d", (0, 3), layer_latency=LayerLatency(100.0, 100.0, 100.0))

    async def lose() -> None:
        await trio.sleep(0.1)
        first.pipeline.link_lost(lost.swarm.node_id, "its cable was cut")

    await together(head.ask, lose)
    before, after = head.names()
    assert before == ("a", "b")
    assert after in (("a", "c"), ("d", "b")), "neither of the two is avoided, but both together"
    head.chains.clear()
    await head.ask(name="another")
    assert head.names() != [("a", "b")], "other requests of this head learn from it"
    await trio.sleep(LINK_S)
    head.chains.clear()
    await head.ask()
    assert head.names() == [("a", "b")], "their records say that they reach one another"


@in_a_lab
async def test_a_lost_node_that_nobody_stands_in_for_is_named(lab: Lab) -> None:
    head = await lab.join("h", (0, 3))
    only = await lab.join("a", (3, 6), step_s=2.0)

    async def lose() -> None:
        await trio.sleep(1)
        head.pipeline.member_gone(only.swarm.node_id, "its cable was cut")
        await only.swarm.update(held=())

    async def ask() -> None:
        with pytest.raises(HopLost, match="cable was cut"):
            await head.ask()

    await together(ask, lose)


@in_a_lab
async def test_the_only_node_is_tried_again_when_it_has_told_how_it_is(lab: Lab) -> None:
    head = await lab.join("h")
    only = await lab.join("a", (0, 6))
    (kept,) = only.stages
    only.stages.clear()

    async def recover() -> None:
        await trio.sleep(0.1)
        only.stages.add(kept)

    await together(head.ask, recover)
    assert head.names() == [("a",), ("a",)]


@in_a_lab
async def test_where_all_fail_for_long_the_last_failure_is_told(lab: Lab) -> None:
    head = await lab.join("h")
    for name in "abcd":
        (await lab.join(name, (0, 6))).stages.clear()
    started_s = trio.current_time()
    with pytest.raises(NoRoute, match="not ready"):
        await head.ask()
    assert WAIT_LIMIT_S - MOST_PAUSE_S <= trio.current_time() - started_s <= WAIT_LIMIT_S + 1
    assert len(set(head.names()[:4])) == 4, "each before any is tried again"
    assert len(head.chains) < 50


@in_a_lab
async def test_the_only_node_is_tried_ever_more_rarely(lab: Lab) -> None:
    head = await lab.join("h")
    (await lab.join("a", (0, 6))).stages.clear()
    with pytest.raises(NoRoute, match="not ready"):
        await head.ask()
    assert 5 <= len(head.chains) <= 12
    assert any("which failed a moment ago" in reason for reason in head.waits)


# --- before the first token nothing is refused that waiting would serve -----------------------------------------------


@in_a_lab
async def test_a_request_waits_for_layers_that_nobody_serves_yet(lab: Lab) -> None:
    head = await lab.join("h", (0, 3))

    async def load() -> None:
        await trio.sleep(20)
        await lab.join("a", (3, 6))

    await together(head.ask, load)
    assert head.names() == [("h", "a")]
    assert "layers 3–5 of 6 have no ready node" in head.waits[0]
    assert len(head.waits) == 1, "told once"


@in_a_lab
async def test_a_request_looks_again_as_soon_as_records_change_and_not_before(lab: Lab) -> None:
    head = await lab.join("h", (0, 3))
    looks = 0
    route = head.dispatcher._router.route

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal looks
        looks += 1
        return route(*args, **kwargs)

    head.dispatcher._router.route = counted  # type: ignore[method-assign]
    lab.silent = True

    async def load() -> None:
        await trio.sleep(20.0)
        before = looks
        assert before <= 1 + 20 / LOOK_ANYWAY_S
        await lab.join("a", (3, 6))
        await trio.sleep(LOOK_AGAIN_S + 0.01)
        assert looks == before + 1
        lab.silent = False

    await together(head.ask, load)


@in_a_lab
async def test_a_request_waits_for_a_plan(lab: Lab) -> None:
    head = await lab.join("h", (0, 6))
    lab.plan, plan = None, lab.plan

    async def decide() -> None:
        await trio.sleep(10)
        lab.plan = plan
        head.dispatcher.changed()

    await together(head.ask, decide)
    assert head.waits == ["a plan"]


@in_a_lab
async def test_a_request_whose_node_is_killed_before_the_first_token_waits_for_the_one_that_takes_over(
    lab: Lab,
) -> None:
    head = await lab.join("h", (0, 3))
    lost = await lab.join("a", (3, 6), step_s=2.0)

    async def kill() -> None:
        await trio.sleep(1)
        lab.kill(lost)
        await trio.sleep(12)
        await lab.join("b", (3, 6))

    await together(head.ask, kill)
    assert head.names() == [("h", "a"), ("h", "b")]


@in_a_lab
async def test_a_request_whose_worker_died_waits_until_the_layers_are_loaded_again(lab: Lab) -> None:
    head = await lab.join("h")
    only = await lab.join("a", (0, 6), step_s=1.0)

    async def die() -> None:
        await trio.sleep(0.5)
        only.engine.die()
        await trio.sleep(1)
        only.stages.clear()
        await only.swarm.update(held=(), kv_tokens_total=0)
        await trio.sleep(8)
        await lab.serve_again(only)

    await together(head.ask, die)
    assert head.names()[-1] == ("a",)


@in_a_lab
async def test_patience_runs_from_the_arrival_that_is_told(lab: Lab) -> None:
    head = await lab.join("h")
    started_s = trio.current_time()
    generation = Generation((1, 2), 3, (), Sampling(), PLAN.weights)
    with pytest.raises(NoRoute, match="waited in vain: layers 0–5"):
        async with head.dispatcher.generate(generation, "r", arrived_s=started_s - 50):
            pass
    assert trio.current_time() - started_s == pytest.approx(WAIT_LIMIT_S - 50)


@in_a_lab
async def test_what_a_request_waits_for_and_how_many_are_before_it_is_told(lab: Lab) -> None:
    head = await lab.join("h")
    await lab.join("a", (0, 6), step_s=0.1)
    await together(*(partial(head.ask, 10, 60, f"{number}") for number in range(3)))
    assert "KV room for 70 tokens" in head.waits
    assert "its turn: 2 before it wait for room" in head.waits


# --- after it, the answer goes on -------------------------------------------------------------------------------------


async def tell_after(seconds: float, act: Callable[[], object]) -> None:
    await trio.sleep(seconds)
    act()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("victim", ["a", "b"])
def test_an_answer_whose_node_is_killed_goes_on_along_another_chain(victim: str, temperature: float) -> None:
    @in_a_lab
    async def run(lab: Lab) -> None:
        head = await lab.join("h")
        nodes = {name: await lab.join(name, layers) for name, layers in (("a", (0, 3)), ("b", (3, 6)))}
        sampling = Sampling(temperature=temperature, seed=7)
        generation = Generation((1, 2, 3), 60, (), sampling, PLAN.weights)
        async with head.dispatcher.generate(generation, "r", head.chains.append, head.waits.append) as tokens:
            got = [(await anext(tokens)).token for _ in range(7)]
            lab.kill(nodes[victim])
            lab.nursery.start_soon(tell_after, 5.0, partial(lab.soon, "c", (0, 3) if victim == "a" else (3, 6)))
            steps = [step async for step in tokens]
        got += [step.token for step in steps]
        assert got == expected_tokens([1, 2, 3], LAYERS, 60, sampling=sampling)
        assert head.names() == [("a", "b"), ("c", "b") if victim == "a" else ("a", "c")]
        assert {hop.node_id[-1] for hop in steps[-1].chain} == {*head.names()[-1]}

    run()


@in_a_lab
async def test_an_answer_goes_on_over_a_new_link_without_a_second_prompt(lab: Lab) -> None:
    head = await lab.join("h")
    first = await lab.join("a", (0, 3))
    second = await lab.join("b", (3, 6))
    async with head.request(prompt=20, answer=60) as tokens:
        got = [(await anext(tokens)).token for _ in range(5)]
        lab.network.break_link(first.swarm, second.swarm)
        got += [step.token async for step in tokens]
    assert got == expected_tokens([1] * 20, LAYERS, 60)
    assert head.names() == [("a", "b")] * 2
    (stage,) = second.engine.stages
    assert sum(slot.count for slot in stage.steps) <= 20 + 60 + 1, "one position may be run twice"


@in_a_lab
async def test_an_answer_that_finds_no_other_chain_ends_with_the_name_of_the_node(lab: Lab) -> None:
    head = await lab.join("h")
    only = await lab.join("a", (0, 6))
    started_s = 0.0
    with pytest.raises(HopLost, match="node a"):
        async with head.request(answer=60) as tokens:
            await anext(tokens)
            lab.kill(only)
            started_s = trio.current_time()
            async for _ in tokens:
                pass
    assert trio.current_time() - started_s == pytest.approx(RESUME_LIMIT_S, abs=1)


@in_a_lab
async def test_an_engine_that_fails_in_the_middle_of_an_answer_is_gone_around(lab: Lab) -> None:
    head = await lab.join("h")
    nodes = [await lab.join(name, (0, 6)) for name in "ab"]
    async with head.request(answer=20) as tokens:
        got = [(await anext(tokens)).token]
        serving = next(node for node in nodes if node.name == head.names()[0][0])
        serving.engine.problems.append("a number that is none")
        got += [step.token async for step in tokens]
    assert got == expected_tokens([1] * 3, LAYERS, 20)
    assert len(set(head.names())) == 2


@in_a_lab
async def test_what_a_model_cannot_do_is_told_at_once_in_the_engines_words_but_not_by_one_node_alone(lab: Lab) -> None:
    head = await lab.join("h")
    nodes = {name: await lab.join(name, (0, 6)) for name in "ab"}
    for node in nodes.values():
        node.engine.refuse_next(TooLong(90, 64))
    started_s = trio.current_time()
    with pytest.raises(BadRequest, match=r"90 tokens, but this model's rotary table .* beyond 64 tokens"):
        await head.ask()
    assert trio.current_time() - started_s < 1
    assert len(head.chains) == 2
    await trio.sleep(3)
    nodes["a"].engine.refuse_next(TooLong(90, 64))
    await head.ask()


@in_a_lab
async def test_an_answer_that_every_new_chain_fails_on_ends_and_does_not_take_one_node_after_another(lab: Lab) -> None:
    head = await lab.join("h")
    nodes = [await lab.join(name, (0, 6)) for name in "ab"]
    async with head.request(answer=20) as tokens:
        await anext(tokens)
        for node in nodes:
            node.engine.problems += ["it ends whoever computes it"] * 100
        with pytest.raises(HopLost, match="ends whoever"):
            async for _ in tokens:
                pass
    assert len(head.chains) <= 1 + MOST_IN_VAIN


# --- nodes that do not do what they say -------------------------------------------------------------------------------


@in_a_lab
async def test_a_node_that_takes_a_sequence_and_says_nothing_is_named_and_gone_around_from_then_on(lab: Lab) -> None:
    head = await lab.join("h", (0, 3))
    hole = lab.black_hole("a", (3, 6), layer_latency=LayerLatency(1e-3, 1e-3, 1e-3))
    await lab.join("b", (3, 6), layer_latency=LayerLatency(1.0, 1.0, 1.0))
    started_s = trio.current_time()
    await head.ask()
    assert trio.current_time() - started_s < LEAST_PATIENCE_S + QUESTION_S + 1
    assert head.names() == [("h", "a"), ("h", "b")]
    (avoided,) = head.avoided
    assert (avoided.node_id, avoided.name) == (hole.node_id, "a")
    assert "no sign of life" in avoided.reason
    head.chains.clear()
    await head.ask(name="another")
    assert head.names() == [("h", "b")]


@in_a_lab
async def test_a_node_that_did_it_again_is_avoided_for_longer_and_one_that_answers_is_trusted_again(lab: Lab) -> None:
    head = await lab.join("h", (0, 3))
    lab.black_hole("a", (3, 6), layer_latency=LayerLatency(1e-3, 1e-3, 1e-3))
    await lab.join("b", (3, 6), layer_latency=LayerLatency(1.0, 1.0, 1.0))
    for number in range(40):
        await head.ask(name=f"{number}")
        await trio.sleep(FIRST_S / 10)
    told = [event.for_s for event in head.avoided]
    assert told == [FIRST_S * 2**times for times in range(len(told))]
    assert 2 <= len(told) <= 3


@in_a_lab
async def test_who_asks_four_times_a_minute_meets_a_silent_node_three_times_in_five_minutes(lab: Lab) -> None:
    head = await lab.join("h", (0, 3))
    lab.black_hole("a", (3, 6), layer_latency=LayerLatency(1e-3, 1e-3, 1e-3))
    await lab.join("b", (3, 6), layer_latency=LayerLatency(1.0, 1.0, 1.0))
    started_s, took_s = trio.current_time(), []
    while (asked_s := trio.current_time()) < started_s + 300:
        await head.ask(name=f"{asked_s}")
        took_s.append(trio.current_time() - asked_s)
        await trio.sleep(15)
    assert sum(took > LEAST_PATIENCE_S for took in took_s) <= 3


@in_a_lab
async def test_a_node_that_always_says_that_it_is_full_is_avoided(lab: Lab) -> None:
    head = await lab.join("h")
    liar = await lab.join("a", (0, 6), layer_latency=LayerLatency(1e-3, 1e-3, 1e-3))
    for stage in liar.engine.stages:
        stage.info = replace(stage.info, kv_tokens=0)
    await lab.join("b", (0, 6), layer_latency=LayerLatency(1.0, 1.0, 1.0))
    for number in range(8):
        await head.ask(name=f"{number}")
        await trio.sleep(1.1)
    assert [event.name for event in head.avoided] == ["a"]
    assert "room that its record tells" in head.avoided[0].reason
    assert Counter(head.names())[("a",)] == MOST_REFUSALS


@in_a_lab
async def test_a_slow_node_that_answers_is_not_taken_for_a_dead_one(lab: Lab) -> None:
    head = await lab.join("h")
    await lab.join("a", (0, 6), step_s=REST_LIMIT_S - LEAST_PATIENCE_S)
    await head.ask(answer=2)
    assert head.avoided == []
    assert len(head.chains) == 1


@in_a_lab
async def test_a_link_that_a_chain_does_not_use_may_break(lab: Lab) -> None:
    head = await lab.join("n0", (0, 1))
    others = [await lab.join(f"n{k}", (k, k + 1) if k < 3 else (3, 6)) for k in range(1, 4)]
    async with head.request(answer=40) as tokens:
        got = [(await anext(tokens)).token for _ in range(5)]
        lab.network.break_link(others[0].swarm, others[2].swarm)
        got += [step.token async for step in tokens]
    assert got == expected_tokens([1] * 3, LAYERS, 40)
    assert len(head.chains) == 1


@in_a_lab
async def test_where_the_tail_cannot_reach_the_head_its_neighbour_says_so(lab: Lab) -> None:
    head = await lab.join("h")
    quick = LayerLatency(1e-3, 1e-3, 1e-3)
    first = await lab.join("a", (0, 3), layer_latency=quick)
    tail = await lab.join("b", (3, 6), layer_latency=quick)
    await lab.join("c", (0, 6), layer_latency=LayerLatency(900.0, 900.0, 900.0))
    async with head.request(answer=40) as tokens:
        got = [(await anext(tokens)).token for _ in range(5)]
        assert head.names() == [("a", "b")]
        started_s = trio.current_time()
        tail.pipeline.link_lost(head.swarm.node_id, "it is cut off")  # it alone notices
        got += [step.token async for step in tokens]
    assert got == expected_tokens([1] * 3, LAYERS, 40)
    assert trio.current_time() - started_s < 3
    assert first.swarm.alive


@in_a_lab
async def test_a_node_that_says_for_ever_that_work_waits_there_is_given_up_by_what_its_steps_take(lab: Lab) -> None:
    head = await lab.join("h")
    hole = await lab.join("a", (0, 6), layer_latency=LayerLatency(1e-3, 1e-3, 1e-3))
    await lab.join("b", (0, 6), layer_latency=LayerLatency(1.0, 1.0, 1.0))
    hole.engine.step_s = 1e6
    started_s = trio.current_time()
    await head.ask()
    assert trio.current_time() - started_s < REST_LIMIT_S + 2 * LEAST_PATIENCE_S
    assert head.names() == [("a",), ("b",)]
    hole.engine.turn = trio.Lock()
    lab.kill(hole)


@in_a_lab
async def test_a_tail_that_accuses_an_honest_node_is_found_out_when_it_accuses_another(lab: Lab) -> None:
    head = await lab.join("h")
    quick, slow = LayerLatency(1e-3, 1e-3, 1e-3), LayerLatency(50.0, 50.0, 50.0)
    for name in "ac":
        await lab.join(name, (0, 3), layer_latency=quick)
    liar = await lab.join("b", (3, 6), layer_latency=quick)
    await lab.join("d", (3, 6), layer_latency=slow)
    intake = liar.pipeline.stage._intake
    intake.rows = lambda incoming: [  # type: ignore[method-assign]
        liar.pipeline.stage._endings.end(each, "rows that cannot be", "wrong", each.upstream)
        for each in liar.pipeline.stage._sessions
    ]
    await head.ask()
    assert [len(names) for names in head.names()] == [2, 2, 2]
    assert [names[1] for names in head.names()] == ["b", "b", "d"]
    assert [event.name for event in head.avoided] == ["b"], "and no other"


@in_a_lab
async def test_a_tail_that_denies_to_have_got_rows_makes_no_other_node_look_wrong(lab: Lab) -> None:
    head = await lab.join("h")
    quick = LayerLatency(1e-3, 1e-3, 1e-3)
    await lab.join("a", (0, 3), layer_latency=quick)
    liar = await lab.join("b", (3, 6), layer_latency=quick)
    await lab.join("d", (3, 6), layer_latency=LayerLatency(50.0, 50.0, 50.0))
    liar.pipeline.stage._intake.rows = lambda incoming: None  # type: ignore[method-assign]
    await head.ask()
    assert head.names() == [("a", "b"), ("a", "d")]
    assert head.avoided == [], "nobody can tell which of the two it was"


@in_a_lab
async def test_an_answer_that_goes_on_over_a_new_link_is_not_broken_once_more_by_the_loss_of_the_prompts_lane(
    lab: Lab,
) -> None:
    head = await lab.join("h")
    first, second = await lab.join("a", (0, 3)), await lab.join("b", (3, 6))
    async with head.request(prompt=20, answer=60) as tokens:
        got = [(await anext(tokens)).token for _ in range(5)]
        for lanes in (("steps",), ("bulk",)):
            for one, other in ((first, second), (second, first), (head, first), (first, head)):
                one.pipeline.link_lost(other.swarm.node_id, "it broke", lanes)
            await trio.sleep(0.05)
        got += [step.token async for step in tokens]
    assert got == expected_tokens([1] * 20, LAYERS, 60)
    assert head.names() == [("a", "b")] * 2


@in_a_lab
async def test_a_prompt_whose_lane_breaks_goes_another_way(lab: Lab) -> None:
    head = await lab.join("h")
    await lab.join("a", (0, 6), step_s=2.0, layer_latency=LayerLatency(1e-3, 1e-3, 1e-3))
    await lab.join("b", (0, 6), layer_latency=LayerLatency(1.0, 1.0, 1.0))

    async def lose() -> None:
        await trio.sleep(1)
        head.pipeline.link_lost(fake_node_id("a"), "it broke", ("bulk",))

    await together(head.ask, lose)
    assert head.names() == [("a",), ("b",)]


# --- many at once -----------------------------------------------------------------------------------------------------


@in_a_lab
async def test_one_member_that_takes_all_room_does_not_lock_the_others_out(lab: Lab) -> None:
    greedy, modest = await lab.join("g"), await lab.join("h")
    only = await lab.join("a", (0, 6), step_s=0.5)
    for number in range(20):
        lab.hoard(greedy, only, number, tokens=5)
    await trio.sleep(0.5)
    assert only.pipeline.stage.sessions == 20
    started_s = trio.current_time()
    await modest.ask(answer=7)
    assert trio.current_time() - started_s < 8
    lab.network.kill(greedy.swarm)


@in_a_lab
async def test_one_sequence_that_takes_all_room_does_not_lock_other_heads_out(lab: Lab) -> None:
    greedy, modest = await lab.join("g"), await lab.join("h")
    only = await lab.join("a", (0, 6), step_s=0.1)
    lab.hoard(greedy, only, 1, tokens=KV_TOKENS)
    await trio.sleep(2 * KEEPS_S)
    assert only.pipeline.stage.reserved_bytes == KV_TOKENS * KV_BYTES_PER_TOKEN_LAYER * LAYERS
    started_s = trio.current_time()
    await modest.ask(answer=7)
    assert trio.current_time() - started_s < CLAIM_AFTER_S + 3
    lab.network.kill(greedy.swarm)


@in_a_lab
async def test_a_node_that_refuses_what_was_asked_for_although_it_is_full_is_not_suspected(lab: Lab) -> None:
    head = await lab.join("h")
    only = await lab.join("a", (0, 6), step_s=1.0)
    async with head.request(prompt=90, answer=8) as tokens:  # a head may have everything, and takes nothing from itself
        await anext(tokens)
        for number in range(3):
            with trio.move_on_after(12):
                await head.ask(prompt=30, name=f"{number}")
        assert len(head.chains) > 3, "it was asked"
        assert head.avoided == []
        assert only.pipeline.stage.sessions == 1


# --- KV grows as answers grow ----------------------------------------------------------------------------------------


@in_a_lab
async def test_no_room_is_set_aside_for_what_an_answer_may_come_to(lab: Lab) -> None:
    head = await lab.join("h")
    only = await lab.join("a", (0, 6), kv_tokens_total=1000, kv_tokens=1000)

    async def ask(number: int) -> None:
        generation = Generation((1, number), 100_000, (), Sampling(), PLAN.weights)
        async with head.dispatcher.generate(generation, f"{number}") as tokens:
            for _ in range(30):
                await anext(tokens)
            most.append(only.pipeline.stage.sessions)

    most: list[int] = []
    await together(*(partial(ask, number) for number in range(12)))
    assert max(most) == 12


@in_a_lab
async def test_fifty_requests_of_mixed_lengths_with_room_for_eight_all_get_the_text_that_they_would_alone(
    lab: Lab,
) -> None:
    heads = [await lab.join("h"), await lab.join("i")]
    room = 8 * 60
    nodes = [await lab.join(name, (k, k + 3), kv_tokens_total=room, kv_tokens=room) for name, k in (("a", 0), ("b", 3))]
    mixed = random.Random(1)
    done: list[int] = []

    async def ask(number: int) -> None:
        await trio.sleep(0.01 * number)
        prompt, answer = [mixed.randrange(250) for _ in range(mixed.randint(2, 60))], mixed.randint(5, 120)
        generation = Generation(tuple(prompt), answer, (), Sampling(temperature=1.0, seed=number), PLAN.weights)
        async with heads[number % 2].dispatcher.generate(generation, f"{number}") as tokens:
            got = [step.token async for step in tokens]
        assert got == expected_tokens(prompt, LAYERS, answer, sampling=generation.sampling)
        done.append(number)

    await together(*(partial(ask, number) for number in range(50)))
    assert len(done) == 50
    assert sum(node.engine.out_of_kv for node in nodes) > 0, "there was too little room at times"
    assert all(event.for_s == 0 for head in heads for event in head.avoided), "and that is nobody's fault"


@in_a_lab
async def test_of_two_answers_that_outgrow_the_room_together_the_older_goes_on_and_the_other_after_it(lab: Lab) -> None:
    head = await lab.join("h")
    only = await lab.join("a", (0, 6), kv_tokens_total=200, kv_tokens=200)
    ended: list[str] = []

    async def ask(name: str, after_s: float) -> None:
        await trio.sleep(after_s)
        await head.ask(10, 170, name)
        ended.append(name)

    await together(partial(ask, "older", 0.0), partial(ask, "newer", 0.1))
    assert ended == ["older", "newer"]
    assert len(head.chains) == 3, "one of them began twice"
    (stage,) = only.engine.stages
    runs = Counter(slot.position for slot in stage.steps if not slot.replay and slot.position >= 10)
    assert max(runs.values()) <= 3, "no answer is computed again and again"


@in_a_lab
async def test_an_answer_that_made_room_for_others_goes_on_before_those_that_have_not_begun(lab: Lab) -> None:
    head = await lab.join("h")
    await lab.join("a", (0, 6), kv_tokens_total=200, kv_tokens=200)
    begun: list[str] = []

    async def ask(name: str, after_s: float, prompt: int, answer: int) -> None:
        await trio.sleep(after_s)
        generation = Generation((1,) * prompt, answer, (), Sampling(), PLAN.weights)
        async with head.dispatcher.generate(generation, name, lambda chain: begun.append(name)) as tokens:
            assert [step.token async for step in tokens] == expected_tokens([1] * prompt, LAYERS, answer)

    await together(
        partial(ask, "older", 0.0, 10, 170),
        partial(ask, "newer", 0.1, 10, 170),
        *(partial(ask, f"later {k}", 0.2, 60, 30) for k in range(3)),
    )
    assert begun[:3] == ["older", "newer", "newer"]


@in_a_lab
async def test_an_answer_that_no_chain_can_hold_any_more_ends_as_at_its_length(lab: Lab) -> None:
    head = await lab.join("h")
    await lab.join("a", (0, 6))
    generation = Generation((1, 2, 3), 4000, (), Sampling(), PLAN.weights)
    async with head.dispatcher.generate(generation, "r") as tokens:
        got = [step.token async for step in tokens]
    assert got == expected_tokens([1, 2, 3], LAYERS, len(got))
    assert KV_TOKENS - 3 - 64 <= len(got) <= KV_TOKENS - 3 + 1


@in_a_lab
async def test_an_answer_is_computed_again_as_it_was_the_first_time(lab: Lab) -> None:
    """In quantised arithmetic one row and several rows give other last bits."""
    head = await lab.join("h")
    first, second = await lab.join("a", (0, 6)), await lab.join("b", (0, 6))
    prompt = 17
    async with head.request(prompt=prompt, answer=40) as tokens:
        got = [(await anext(tokens)).token for _ in range(20)]
        serving, other = (first, second) if head.names() == [("a",)] else (second, first)
        lab.kill(serving)
        got += [step.token async for step in tokens]
    assert got == expected_tokens([1] * prompt, LAYERS, 40)
    (stage,) = other.engine.stages
    again = [slot for slot in stage.steps if slot.position < prompt]
    assert [slot.count for slot in again] == [17]
    assert not any(slot.replay for slot in again)
    replayed = [slot for slot in stage.steps if slot.replay]
    assert replayed[0].position == prompt
    assert sum(slot.count for slot in replayed) >= 20 - 1


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
