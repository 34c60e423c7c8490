"""Ranges that come and go on several nodes at once: hand-made plans, an in-memory swarm, toy engines, no planner."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from node.engine.base import GoesOn, StageSpec
from node.errors import FetchFailed, HopLost
from node.live.engine_supervisor import EngineSupervisor
from node.live.mover import FINISH_S, RETRY_S
from node.live.served_ranges import ServedRanges
from node.live.turn import PATIENCE_S
from node.pipeline.generation import Generation
from node.pipeline.kv_room import tokens_to_begin
from node.pipeline.pipeline import Pipeline
from node.swarm.base import LinkLost, MemberGone
from node.wire.frames import Hop, Sampling
from node.wire.models import ModelFacts, ModelRef
from node.wire.plans import Assignment, Override, Plan, PlanSettings
from node.wire.records import HeldRange
from tests.fakes.engine import KV_BYTES_PER_TOKEN_LAYER, FakeEngine, FakeStage, expected_tokens
from tests.fakes.jumping_clock import on_a_jumping_clock
from tests.fakes.swarm import FakeNetwork, FakeSwarm

LAYERS = 6
MIB = 1024**2
KV_LAYER = 2048 * 8
FACTS = ModelFacts(LAYERS, MIB, MIB, MIB, 8, 4, 251, 4096)
MODEL = ModelRef("toy", "test", "toy")
WEIGHTS = Plan(1, "author", MODEL, "float32", FACTS, ()).weights
PROMPT = (1, 2, 3)
LOAD_S = 2.0


def room_for(layers: int) -> int:
    """Memory for so many layers and both ends."""
    return layers * (MIB + KV_LAYER) + 2 * MIB


class SlowEngine(FakeEngine):
    """Takes a while to read layers that no other of its stages has. Remembers the most layers it ever held."""

    most_layers = 0
    reserve_s = 0.0
    part_s = 0.0
    """What it takes to make a part of a held range."""

    async def load(self, spec: StageSpec, goes_on: GoesOn = lambda share: None) -> FakeStage:
        if set(range(spec.start, spec.end)) - self.layers_held():
            await trio.sleep(LOAD_S)
        elif self.part_s:
            await trio.sleep(self.part_s)
        stage = await super().load(spec, goes_on)
        self.most_layers = max(self.most_layers, len(self.layers_held()))
        return stage

    def layers_held(self) -> set[int]:
        return {layer for stage in self.stages for layer in range(stage.spec.start, stage.spec.end)}

    async def _enter(self, stage: FakeStage | None) -> None:
        if stage is not None and self.reserve_s:
            pause_s, self.reserve_s = self.reserve_s, 0.0
            await trio.sleep(pause_s)
        await super()._enter(stage)


class Files:
    """Has the model's files, unless told otherwise."""

    missing = False

    async def weights(self, ref: ModelRef, start: int, end: int) -> Path:
        await trio.lowlevel.checkpoint()
        if self.missing:
            raise FetchFailed("toy", "no network")
        return Path("toy")


@dataclass
class Node:
    swarm: FakeSwarm
    supervisor: EngineSupervisor
    pipeline: Pipeline
    files: Files
    engine: SlowEngine
    events: list[Any] = field(default_factory=list)

    @property
    def told(self) -> list[tuple[int, int, str]]:
        return [(held.start, held.end, held.state) for held in self.swarm.record.held]

    @property
    def serves(self) -> tuple[int, int] | None:
        ready = self.swarm.record.ready_range()
        return (ready.start, ready.end) if ready is not None else None


@dataclass
class Lab:
    network: FakeNetwork
    nursery: trio.Nursery
    nodes: dict[str, Node] = field(default_factory=dict)
    epoch: int = 0
    uncovered: set[int] = field(default_factory=set)
    """Layers that were without a node at some time since the first plan was carried out."""

    async def join(self, name: str, room: int = 20, step_s: float = 0.001) -> Node:
        swarm = self.network.add(name, machine_id=name, memory_cap_bytes=room_for(room))
        engine = SlowEngine(LAYERS, step_s=step_s)

        @asynccontextmanager
        async def open_engine(threads: int) -> AsyncIterator[FakeEngine]:
            await trio.lowlevel.checkpoint()
            yield engine

        files, events = Files(), list[Any]()
        ranges = ServedRanges()
        pipeline = Pipeline(swarm, ranges, lambda error: None)
        supervisor = EngineSupervisor(swarm, files, ranges, pipeline.stage, open_engine, events.append, cores=4)  # type: ignore[arg-type]
        self.nodes[name] = Node(swarm, supervisor, pipeline, files, engine, events)
        await self.nursery.start(pipeline.run)
        self.nursery.start_soon(supervisor.run)
        self.nursery.start_soon(self._read_news, self.nodes[name])
        return self.nodes[name]

    async def _read_news(self, node: Node) -> None:
        async for news in node.swarm.news:
            if isinstance(news, MemberGone):
                node.pipeline.member_gone(news.node_id, news.why)
            elif isinstance(news, LinkLost):
                node.pipeline.link_lost(news.node_id, news.reason)

    def plan(self, **ranges: tuple[int, int]) -> Plan:
        """Give every node named a range; all of them follow."""
        self.epoch += 1
        assignments = [Assignment(self.id_of(name), *layers) for name, layers in ranges.items()]
        plan = Plan(self.epoch, "author", MODEL, "float32", FACTS, tuple(sorted(assignments, key=lambda a: a.start)))
        self.follow(plan)
        return plan

    def follow(self, plan: Plan) -> None:
        self.epoch = plan.epoch
        for node in self.nodes.values():
            node.supervisor.follow(plan)

    def id_of(self, name: str) -> str:
        return next(swarm.node_id for swarm in self.network.swarms if swarm.record.name == name)

    async def start(self, **ranges: tuple[int, int]) -> None:
        """Carry the first plan out, and watch from then on."""
        self.plan(**ranges)
        await trio.sleep(LOAD_S + 1)
        self.nursery.start_soon(self._watch)

    async def _watch(self) -> None:
        while True:
            served = set[int]()
            for node in self.nodes.values():
                told = {layer for start, end, _ in self._open(node) for layer in range(start, end)}
                assert told <= node.engine.layers_held(), "a record tells of layers that are not there"
                served |= told
            self.uncovered |= set(range(LAYERS)) - served
            await trio.sleep(0.01)

    def hops(self, name: str) -> list[tuple[str, int, int]]:
        """Ranges that a route may lead through now."""
        return [(name, start, end) for start, end, _ in self._open(self.nodes[name])]

    def _open(self, node: Node) -> list[tuple[int, int, str]]:
        return [held for held in node.told if held[2] != "loading"]

    async def lose(self, head: str, *hops: tuple[str, int, int]) -> None:
        """A request that would go on for long, and whose layers leave it."""
        with pytest.raises(HopLost):
            await self.ask(head, *hops, count=1000)

    async def ask(self, head: str, *hops: tuple[str, int, int], count: int = 5) -> list[int]:
        chain = tuple(Hop(self.id_of(name), start, end) for name, start, end in hops)
        generation = Generation(PROMPT, count, (), Sampling(), WEIGHTS)
        async with self.nodes[head].pipeline.head.generate(generation, chain) as tokens:
            return [step.token async for step in tokens]


def answer(count: int = 5) -> list[int]:
    return expected_tokens(PROMPT, LAYERS, count)


in_a_lab = on_a_jumping_clock(Lab)


@in_a_lab
async def test_a_record_tells_what_runs_the_layers_and_how_their_weights_lie(lab: Lab) -> None:
    node = await lab.join("desk")
    assert not node.swarm.record.backend, "nothing is loaded yet"
    await lab.start(desk=(0, LAYERS))
    record = node.swarm.record
    assert (record.backend, record.quantisation, record.drift_class) == ("torch", "whole numbers", "toy")


# --- make before break ------------------------------------------------------------------------------------------------


@in_a_lab
async def test_nodes_with_room_swap_their_layers_without_a_gap(lab: Lab) -> None:
    for name in "ab":
        await lab.join(name, room=6)
    await lab.start(a=(0, 3), b=(3, 6))
    lab.plan(a=(3, 6), b=(0, 3))
    await trio.sleep(10)
    assert [lab.nodes[name].told for name in "ab"] == [[(3, 6, "ready")], [(0, 3, "ready")]]
    assert lab.uncovered == set()
    assert [len(lab.nodes[name].engine.stages) for name in "ab"] == [1, 1]


@in_a_lab
async def test_in_a_swap_without_room_one_goes_first_and_the_other_keeps_its_layers_until_then(lab: Lab) -> None:
    for name in "ab":
        await lab.join(name, room=3)
    await lab.start(a=(0, 3), b=(3, 6))
    lab.plan(a=(3, 6), b=(0, 3))
    first, second = sorted("ab", key=lab.id_of)
    kept = lab.nodes[second].serves
    while lab.nodes[first].serves != kept:
        assert lab.nodes[second].serves == kept
        await trio.sleep(0.1)
    await trio.sleep(10)
    assert [lab.nodes[name].told for name in "ab"] == [[(3, 6, "ready")], [(0, 3, "ready")]]
    assert len(lab.uncovered) == 3
    assert [lab.nodes[name].engine.most_layers for name in "ab"] == [3, 3], "memory is never overdrawn"


@in_a_lab
async def test_room_for_one_layer_is_enough_to_swap_piece_by_piece_without_a_gap(lab: Lab) -> None:
    await lab.join("a", room=4)
    await lab.join("b", room=3)
    await lab.start(a=(0, 3), b=(3, 6))
    lab.plan(a=(3, 6), b=(0, 3))
    wrong = list[object]()

    async def keep_asking() -> None:
        while True:
            ranges = [held for name in "ab" for held in lab.hops(name)]
            hops, at = list[tuple[str, int, int]](), 0
            while at < LAYERS:
                name, _, end = max((hop for hop in ranges if hop[1] <= at < hop[2]), key=lambda hop: hop[2])
                hops.append((name, at, end))
                at = end
            if (got := await lab.ask("a", *hops)) != answer():
                wrong.append(got)
            await trio.sleep(0.2)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_asking)
        await trio.sleep(40)
        nursery.cancel_scope.cancel()
    assert [lab.nodes[name].told for name in "ab"] == [[(3, 6, "ready")], [(0, 3, "ready")]]
    assert not wrong
    assert lab.uncovered == set()
    assert [lab.nodes[name].engine.most_layers for name in "ab"] == [4, 3], "memory is never overdrawn"


@in_a_lab
async def test_a_node_without_room_waits_until_its_layers_are_ready_elsewhere(lab: Lab) -> None:
    await lab.join("a", room=3)
    await lab.join("b")
    await lab.start(a=(0, 3), b=(3, 6))
    await lab.join("c", room=3)
    lab.plan(a=(3, 6), b=(3, 6), c=(0, 3))
    await trio.sleep(LOAD_S)
    assert lab.nodes["a"].told == [(0, 3, "ready")]
    await trio.sleep(10)
    assert [lab.nodes[name].serves for name in "abc"] == [(3, 6), (3, 6), (0, 3)]
    assert lab.uncovered == set()
    assert await lab.ask("b", ("c", 0, 3), ("a", 3, 6)) == answer()


@in_a_lab
async def test_layers_in_both_ranges_stay_while_the_rest_makes_room(lab: Lab) -> None:
    await lab.join("a", room=4)
    await lab.join("b", room=6)
    await lab.start(a=(0, 4), b=(4, 6))
    lab.plan(a=(2, 6), b=(0, 2))
    await trio.sleep(12)
    assert [lab.nodes[name].told for name in "ab"] == [[(2, 6, "ready")], [(0, 2, "ready")]]
    assert lab.uncovered == set(), "a alone had layers 2 and 3 all the time"
    assert lab.nodes["a"].engine.most_layers == 4
    assert await lab.ask("b", ("b", 0, 2), ("a", 2, 6)) == answer()


@pytest.mark.parametrize("trouble", ["does nothing", "fails", "leaves"])
def test_nobody_waits_for_a_member_that_will_not_load(trouble: str) -> None:
    @in_a_lab
    async def run(lab: Lab) -> None:
        await lab.join("a", room=3)
        await lab.join("b")
        await lab.start(a=(0, 3), b=(3, 6))
        idle = lab.network.add("c", memory_cap_bytes=room_for(6), hardware=lab.nodes["a"].engine.hardware)
        lab.plan(a=(3, 6), b=(3, 6), c=(0, 3))
        await trio.sleep(PATIENCE_S - 3)
        assert lab.nodes["a"].serves == (0, 3)
        if trouble == "fails":
            await idle.update(state="failed")
        elif trouble == "leaves":
            lab.network.leave(idle)
        await trio.sleep(3 if trouble == "does nothing" else 0)
        await trio.sleep(7)
        assert lab.nodes["a"].serves == (3, 6)

    run()


@in_a_lab
async def test_a_member_that_loads_is_waited_for_however_long_it_takes(lab: Lab) -> None:
    await lab.join("a", room=3)
    await lab.join("b")
    await lab.start(a=(0, 3), b=(3, 6))
    slow = lab.network.add("c", memory_cap_bytes=room_for(6), hardware=lab.nodes["a"].engine.hardware)
    plan = lab.plan(a=(3, 6), b=(3, 6), c=(0, 3))
    await slow.update(held=(HeldRange(0, 3, "loading", plan.epoch, plan.weights),), plan_epoch=plan.epoch)
    await trio.sleep(4 * PATIENCE_S)
    assert lab.nodes["a"].serves == (0, 3)
    await slow.update(held=(HeldRange(0, 3, "ready", plan.epoch, plan.weights),))
    await trio.sleep(8)
    assert lab.nodes["a"].serves == (3, 6)


@in_a_lab
async def test_a_plan_that_changes_in_the_middle_of_a_turn_ends_in_the_newest(lab: Lab) -> None:
    for name in "ab":
        await lab.join(name, room=4)
    await lab.start(a=(0, 4), b=(4, 6))
    for delay_s in (0.0, 0.3, 1.2, 2.0, 2.9, 4.0):
        lab.plan(a=(2, 6), b=(0, 2))
        await trio.sleep(delay_s)
        lab.plan(a=(0, 4), b=(4, 6))
        await trio.sleep(20)
        assert [lab.nodes[name].told for name in "ab"] == [[(0, 4, "ready")], [(4, 6, "ready")]]
        assert await lab.ask("b", ("a", 0, 4), ("b", 4, 6)) == answer()
        assert [len(lab.nodes[name].engine.stages) for name in "ab"] == [1, 1]


@in_a_lab
async def test_nothing_is_dropped_for_layers_whose_files_cannot_be_had(lab: Lab) -> None:
    ada = await lab.join("a", room=4)
    await lab.join("b")
    await lab.start(a=(0, 4), b=(3, 6))
    ada.files.missing = True
    lab.plan(a=(2, 6), b=(0, 6))
    await trio.sleep(RETRY_S - 1)
    assert ada.told == [(0, 4, "ready")]
    assert (ada.swarm.record.state, "no network" in ada.swarm.record.problem) == ("failed", True)
    ada.files.missing = False
    await trio.sleep(10)
    assert ada.told == [(2, 6, "ready")]
    assert (ada.swarm.record.state, ada.swarm.record.problem) == ("serving", "")


@in_a_lab
async def test_a_newer_plan_with_the_same_range_for_a_node_does_not_disturb_its_turn(lab: Lab) -> None:
    await lab.join("a", room=4)
    await lab.join("b", room=6)
    await lab.start(a=(0, 4), b=(4, 6))
    for _ in range(12):
        lab.plan(a=(2, 6), b=(0, 2))
        await trio.sleep(1)
    assert [lab.nodes[name].told for name in "ab"] == [[(2, 6, "ready")], [(0, 2, "ready")]]
    assert lab.uncovered == set()


@in_a_lab
async def test_a_node_whose_memory_shrank_takes_a_part_of_its_range(lab: Lab) -> None:
    ada = await lab.join("a", room=6)
    await lab.join("b", room=6)
    await lab.start(a=(0, 6))
    await ada.swarm.update(memory_cap_bytes=room_for(4))
    lab.plan(a=(3, 6), b=(0, 3))
    await trio.sleep(10)
    assert [lab.nodes[name].told for name in "ab"] == [[(3, 6, "ready")], [(0, 3, "ready")]]
    assert lab.uncovered == set()


@pytest.mark.parametrize("route", ["whole", "part"])
def test_what_is_on_its_way_out_counts_until_it_is_gone(route: str) -> None:
    @in_a_lab
    async def run(lab: Lab) -> None:
        ada = await lab.join("a", room=4, step_s=0.1)
        await lab.join("b")
        await lab.start(a=(0, 2), b=(0, 6))
        end = 2 if route == "whole" else 1
        lab.nursery.start_soon(lab.lose, "b", ("a", 0, end), ("b", end, 6))
        await trio.sleep(0.2)
        lab.plan(a=(2, 4), b=(0, 6))
        await trio.sleep(6)
        assert len(ada.engine.layers_held()) > 2, "the sequence goes on"
        lab.plan(a=(4, 6), b=(0, 6))
        await trio.sleep(FINISH_S + 2 * LOAD_S)
        assert ada.told == [(4, 6, "ready")]
        assert ada.engine.most_layers == 4

    run()


@in_a_lab
async def test_another_plan_while_layers_make_room_does_not_overdraw_memory(lab: Lab) -> None:
    ada = await lab.join("a", room=3, step_s=0.1)
    await lab.join("b")
    await lab.start(a=(0, 3), b=(0, 6))
    lab.nursery.start_soon(lab.lose, "b", ("a", 0, 3), ("b", 3, 6))
    await trio.sleep(0.2)
    lab.plan(a=(3, 6), b=(0, 6))
    await trio.sleep(3)
    assert ada.told == []
    lab.plan(a=(3, 5), b=(0, 6))
    await trio.sleep(FINISH_S + 2 * LOAD_S)
    assert ada.told == [(3, 5, "ready")]
    assert ada.engine.most_layers == 3


@in_a_lab
async def test_what_is_kept_of_a_range_that_makes_room_stays_until_others_have_it(lab: Lab) -> None:
    ada = await lab.join("a", room=6)
    for name in "bc":
        await lab.join(name, room=6)
    await lab.start(a=(0, 5), c=(5, 6))
    ada.engine.part_s = 0.8
    lab.plan(b=(2, 3), c=(5, 6))
    await trio.sleep(6)
    await ada.swarm.update(memory_cap_bytes=room_for(5))
    lab.plan(a=(4, 6), b=(2, 3), c=(5, 6))
    await trio.sleep(10)
    assert ada.serves == (4, 6)
    assert {(0, 2, "draining"), (3, 5, "draining")} <= set(ada.told), "layers that nobody else has"
    assert lab.uncovered == set()


@in_a_lab
async def test_another_range_is_tried_at_once_after_one_that_failed(lab: Lab) -> None:
    ada = await lab.join("a")
    await lab.join("b")
    await lab.start(b=(0, 6))
    ada.files.missing = True
    for attempt in range(5):
        lab.plan(a=(0, 3), b=(0, 6))
        await trio.sleep(RETRY_S * 2**attempt + 1)
    ada.files.missing = False
    lab.plan(b=(0, 6))
    await trio.sleep(LOAD_S + 1)
    assert ada.swarm.record.state == "failed", "a plan made around its failure"
    lab.plan(a=(3, 6), b=(0, 6))
    await trio.sleep(LOAD_S + 1)
    assert ada.serves == (3, 6)


# --- room for sequences -----------------------------------------------------------------------------------------------


@in_a_lab
async def test_room_that_other_layers_and_their_sequences_take_is_told_as_used(lab: Lab) -> None:
    ada = await lab.join("a", room=100, step_s=0.1)
    await lab.join("b")
    await lab.start(a=(0, 3), b=(0, 6))
    assert ada.supervisor.kv_tokens_used == 0
    token_bytes = 3 * KV_BYTES_PER_TOKEN_LAYER
    lab.nursery.start_soon(partial(lab.ask, "b", ("a", 0, 3), ("b", 3, 6), count=97))
    await trio.sleep(0.2)
    begun = tokens_to_begin(3, 100)
    assert ada.supervisor.kv_tokens_used == begun
    lab.plan(a=(3, 6), b=(0, 6))
    await trio.sleep(LOAD_S / 2)
    assert ada.serves == (0, 3)
    assert ada.supervisor.kv_tokens_used == begun + ceil(4 * MIB / token_bytes), "three layers and the LM head are read"
    await trio.sleep(LOAD_S)
    assert ada.serves == (3, 6)
    assert ada.supervisor.kv_tokens_used == begun + ceil(4 * MIB / token_bytes), "layers and embedding are left"
    await trio.sleep(12)
    assert ada.supervisor.kv_tokens_used == 0


@in_a_lab
async def test_a_cap_by_hand_binds_a_range_that_stays_and_its_sequences_go_on(lab: Lab) -> None:
    ada = await lab.join("a", room=500, step_s=0.1)
    await lab.start(a=(0, 6))
    room, got = ada.supervisor.kv_tokens, list[int]()

    async def request() -> None:
        got.extend(await lab.ask("a", ("a", 0, 6), count=50))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(request)
        await trio.sleep(0.2)
        plan = lab.plan(a=(0, 6))
        cap = PlanSettings(overrides=(Override(ada.swarm.node_id, memory_bytes=room_for(100)),))
        lab.follow(msgspec.structs.replace(plan, epoch=lab.epoch + 1, settings=cap))
        await trio.sleep(1)
        assert ada.told == [(0, 6, "ready")]
        assert ada.supervisor.kv_tokens * LAYERS * KV_BYTES_PER_TOKEN_LAYER <= room_for(100) - 8 * MIB
    assert got == answer(50)
    await trio.sleep(3)
    assert [stage.info.kv_tokens for stage in ada.engine.stages] == [ada.supervisor.kv_tokens]
    lab.plan(a=(0, 6))
    await trio.sleep(1)
    assert ada.supervisor.kv_tokens == room, "the cap is lifted"
    loads = len(ada.engine.loads)
    lab.plan(a=(0, 6))
    await trio.sleep(1)
    assert len(ada.engine.loads) == loads
    assert lab.uncovered == set()


# --- what is no longer wanted -----------------------------------------------------------------------------------------


@in_a_lab
async def test_a_node_that_drains_serves_until_others_have_its_layers_and_its_sequences_have_ended(lab: Lab) -> None:
    await lab.join("a", step_s=0.1)
    await lab.start(a=(0, 6))
    await lab.join("b")
    got: list[int] = []

    async def long_request() -> None:
        got.extend(await lab.ask("b", ("a", 0, 6), count=120))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(long_request)
        await trio.sleep(0.5)
        lab.plan(b=(0, 6))
        await trio.sleep(LOAD_S)
        assert lab.nodes["a"].told == [(0, 6, "draining")]
        assert lab.nodes["a"].swarm.record.state == "standby"
        await trio.sleep(2)
        assert lab.nodes["a"].told == [], "nothing new goes there"
    await trio.sleep(2)
    assert got == answer(120)
    assert lab.nodes["a"].engine.stages == []
    assert lab.nodes["a"].swarm.record.problem == ""
    assert lab.uncovered == set()


@in_a_lab
async def test_layers_that_nobody_else_has_are_kept_by_a_node_that_shall_drain(lab: Lab) -> None:
    await lab.join("a")
    await lab.start(a=(0, 6))
    await lab.join("b")
    lab.plan(b=(0, 3))
    await trio.sleep(30)
    assert lab.nodes["a"].told == [(0, 6, "draining")]
    assert await lab.ask("b", ("b", 0, 3), ("a", 3, 6)) == answer()


@in_a_lab
async def test_of_two_ranges_that_stand_in_for_one_another_one_is_kept(lab: Lab) -> None:
    for name in "ab":
        await lab.join(name)
    await lab.start(a=(0, 4), b=(4, 6))
    lab.plan(a=(0, 3), b=(4, 6))
    await trio.sleep(5)
    assert lab.nodes["a"].told == [(0, 3, "ready"), (0, 4, "draining")], "nobody else has layer 3"
    lab.plan(a=(4, 6), b=(3, 4))
    await trio.sleep(10)
    assert lab.uncovered == set()


@in_a_lab
async def test_a_route_chosen_a_moment_ago_still_finds_a_range_that_just_left(lab: Lab) -> None:
    await lab.join("a")
    await lab.join("b")
    await lab.start(a=(0, 6))
    lab.plan(b=(0, 6))
    await trio.sleep(LOAD_S + 0.6)
    assert lab.nodes["a"].told == []
    assert await lab.ask("b", ("a", 0, 6)) == answer()


@in_a_lab
async def test_sequences_on_layers_that_make_room_get_a_while_to_end(lab: Lab) -> None:
    await lab.join("a", room=3, step_s=0.1)
    await lab.join("b", room=3)
    await lab.start(a=(0, 3), b=(3, 6))
    first = min("ab", key=lab.id_of)
    ended: list[object] = []

    async def request(count: int) -> None:
        try:
            ended.append(await lab.ask("b", ("a", 0, 3), ("b", 3, 6), count=count) == answer(count))
        except HopLost as error:
            ended.append(str(error))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(request, 40)
        nursery.start_soon(request, 4000)
        await trio.sleep(0.2)
        lab.plan(a=(3, 6), b=(0, 3))
    assert ended[0] is True
    assert "needed here no longer" in str(ended[1])
    await trio.sleep(FINISH_S + 10)
    assert (lab.nodes["a"].serves, lab.nodes["b"].serves) == ((3, 6), (0, 3)), first
    assert [len(lab.nodes[name].engine.stages) for name in "ab"] == [1, 1]


@in_a_lab
async def test_a_range_is_never_closed_under_a_sequence_that_is_being_opened(lab: Lab) -> None:
    await lab.join("a")
    await lab.join("b")
    await lab.start(a=(0, 6))
    lab.nodes["a"].engine.reserve_s = 3 * LOAD_S  # of the next reservation alone
    got: list[int] = []

    async def request() -> None:
        got.extend(await lab.ask("b", ("a", 0, 6)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(request)
        await trio.sleep(0.1)
        lab.plan(b=(0, 6))
    assert got == answer()
    await trio.sleep(3)
    assert lab.nodes["a"].engine.stages == []


# --- parts ------------------------------------------------------------------------------------------------------------


@in_a_lab
async def test_routes_over_parts_of_a_range_load_nothing(lab: Lab) -> None:
    await lab.join("a")
    await lab.start(a=(0, 6))
    async with trio.open_nursery() as nursery:
        for end in (1, 2, 3, 4, 5):
            nursery.start_soon(partial(lab.ask, "a", ("a", 0, end), ("a", end, 6), count=20))
    assert await lab.ask("a", ("a", 0, 2), ("a", 2, 4), ("a", 4, 6)) == answer()
    assert len(lab.nodes["a"].engine.loads) == 1


@in_a_lab
async def test_a_sequence_on_a_part_takes_room_for_its_layers_only(lab: Lab) -> None:
    ada = await lab.join("a", step_s=0.1)
    await lab.join("b", step_s=0.1)
    await lab.start(a=(0, 6), b=(0, 6))
    lab.nursery.start_soon(partial(lab.ask, "a", ("a", 0, 2), ("b", 2, 6), count=97))
    await trio.sleep(0.3)
    begun = tokens_to_begin(3, 100)
    assert ada.pipeline.stage.reserved_bytes == begun * 2 * KV_BYTES_PER_TOKEN_LAYER
    assert lab.nodes["b"].pipeline.stage.reserved_bytes == begun * 4 * KV_BYTES_PER_TOKEN_LAYER
    assert ada.supervisor.kv_tokens_used == ceil(begun * 2 / 6)
    await trio.sleep(14)
    assert ada.pipeline.stage.reserved_bytes > begun * 2 * KV_BYTES_PER_TOKEN_LAYER, "it grows with the answer"


@in_a_lab
async def test_another_model_takes_the_place_of_what_was_served(lab: Lab) -> None:
    ada = await lab.join("a", room=6)
    await lab.start(a=(0, 6))
    plan = msgspec.structs.replace(lab.plan(a=(0, 6)), epoch=9, dtype="bfloat16")
    ada.supervisor.follow(plan)
    await trio.sleep(0.2)
    assert ada.serves is None
    await trio.sleep(6)
    assert [stage.spec.dtype for stage in ada.engine.stages] == ["bfloat16"]
    assert ada.engine.most_layers == 6
