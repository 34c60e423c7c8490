"""Planner and holder over an in-memory swarm and toy engines: who plans, what is loaded, what stays in between."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from node.engine.base import StageSpec
from node.errors import FetchFailed, LoadFailed, RequestError, WorkerDied
from node.live.holder import RETRY_S, Holder
from node.live.planner import RETURN_GRACE_S, Planner
from node.live.remembered import Remembered
from node.pipeline.head import Generation
from node.pipeline.pipeline import Pipeline
from node.plan.walk import walk
from node.swarm.base import LinkLost, MemberGone, PlanHeard
from node.wire.events import Event, ModelProgress, Notice, PlanImpossible
from node.wire.frames import Sampling
from node.wire.ids import NodeId
from node.wire.models import Dtype, ModelFacts, ModelRef
from node.wire.plans import Assignment, Plan
from tests.fakes.engine import FakeEngine, FakeStage, expected_tokens
from tests.fakes.swarm import FakeNetwork, FakeSwarm, fake_node_id, open_fake_network

LAYERS = 6
MIB = 1024**2
FACTS = ModelFacts(LAYERS, MIB, MIB, MIB, 8, 4, 251, 4096)
MODEL = ModelRef("toy", "test", "toy")


class ToyDesk:
    """Has the model's files, unless told otherwise."""

    def __init__(self) -> None:
        self.missing = False

    async def metadata(self, ref: ModelRef) -> ToyDesk:
        await trio.lowlevel.checkpoint()
        return self

    def facts(self, dtype: Dtype) -> ModelFacts:
        return FACTS

    async def weights(self, ref: ModelRef, start: int, end: int) -> Path:
        await trio.lowlevel.checkpoint()
        if self.missing:
            raise FetchFailed("toy", "no network")
        return Path("toy")


class SlowEngine(FakeEngine):
    """Takes a second to load."""

    async def load(self, spec: StageSpec) -> FakeStage:
        await trio.sleep(1.0)
        return await super().load(spec)


@dataclass
class Peer:
    swarm: FakeSwarm
    planner: Planner
    holder: Holder
    pipeline: Pipeline
    desk: ToyDesk
    engines: list[FakeEngine]
    scope: trio.CancelScope
    failing_starts: int = 0
    events: list[Event] = field(default_factory=list)

    @property
    def range(self) -> tuple[int, int] | None:
        ready = self.swarm.record.ready_range()
        return (ready.start, ready.end) if ready else None

    async def ask(self, count: int = 5) -> list[int]:
        assert self.planner.plan is not None
        chain = walk(LAYERS, self.swarm.members().values())
        generation = Generation((1, 2, 3), count, (), Sampling(), self.planner.plan.weights)
        async with self.pipeline.head.generate(generation, chain, self.planner.plan.epoch) as tokens:
            return [step.token async for step in tokens]


@dataclass
class Lab:
    network: FakeNetwork
    nursery: trio.Nursery

    async def join(
        self, name: str, *, wants: bool = False, min_nodes: int = 1, joins: bool = False, **record: Any
    ) -> Peer:
        swarm = self.network.add(name, **{"machine_id": name, **record})
        events: list[Event] = []
        engines: list[FakeEngine] = []
        desk = ToyDesk()

        @asynccontextmanager
        async def open_engine(threads: int) -> AsyncIterator[FakeEngine]:
            await trio.sleep(0.5)
            if peer.failing_starts:
                peer.failing_starts -= 1
                raise WorkerDied(1, "no memory")
            engines.append(SlowEngine(LAYERS, memory_bytes=64 * 1024 * MIB, step_s=0.001))
            yield engines[-1]

        holder = Holder(swarm, desk, open_engine, events.append, cores=4)  # type: ignore[arg-type]
        pipeline = Pipeline(swarm, holder.lookup, lambda error: None)
        holder.pipeline = pipeline
        planner = Planner(
            swarm,
            desk.metadata,  # type: ignore[arg-type]
            holder.follow,
            events.append,
            min_nodes=min_nodes,
            knows_peers=False,
            joins=joins,
            last_epoch=0,
        )
        peer = Peer(swarm, planner, holder, pipeline, desk, engines, trio.CancelScope(), events=events)
        if wants:
            await swarm.update(wanted_model=MODEL)
        self.nursery.start_soon(self._run, peer)
        return peer

    async def _run(self, peer: Peer) -> None:
        with peer.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(peer.pipeline.run)
                nursery.start_soon(peer.planner.run)
                nursery.start_soon(peer.holder.run)
                async for news in peer.swarm.news:
                    match news:
                        case MemberGone() as gone:
                            peer.pipeline.lost(gone.node_id, gone.why)
                            peer.planner.member_gone(gone)
                        case LinkLost(node_id=lost, reason=reason):
                            peer.pipeline.lost(lost, reason)
                        case PlanHeard(plan=plan):
                            peer.planner.heard(plan)
                    peer.planner.wake()

    def kill(self, peer: Peer) -> None:
        peer.scope.cancel()
        self.network.kill(peer.swarm)


def in_a_lab(test: Callable[[Lab], Awaitable[None]]) -> Callable[[], None]:
    """Run on a clock that jumps."""

    async def run() -> None:
        async with open_fake_network() as network, trio.open_nursery() as nursery:
            await test(Lab(network, nursery))
            nursery.cancel_scope.cancel()

    def sync() -> None:
        trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))

    sync.__name__, sync.__doc__ = test.__name__, test.__doc__
    return sync


@in_a_lab
async def test_one_node_plans_for_itself_and_answers(lab: Lab) -> None:
    ada = await lab.join("ada", wants=True)
    await trio.sleep(5)
    assert ada.range == (0, 6)
    assert await ada.ask() == expected_tokens([1, 2, 3], LAYERS, 5)


@in_a_lab
async def test_members_that_start_together_get_one_plan_whoever_names_the_model(lab: Lab) -> None:
    peers = [await lab.join(name, wants=name == "b") for name in ("c", "a", "b")]
    await trio.sleep(8)
    assert sorted(peer.range for peer in peers if peer.range) == [(0, 2), (2, 4), (4, 6)]
    assert {peer.planner.plan.epoch for peer in peers if peer.planner.plan} == {1}
    for peer in peers:
        assert await peer.ask() == expected_tokens([1, 2, 3], LAYERS, 5)


@in_a_lab
async def test_without_a_named_model_nothing_is_planned(lab: Lab) -> None:
    ada = await lab.join("ada")
    await trio.sleep(60)
    assert ada.planner.plan is None


@in_a_lab
async def test_a_node_that_shall_join_never_plans_before_it_has_met_its_swarm(lab: Lab) -> None:
    ada = await lab.join("ada", wants=True, joins=True)
    await trio.sleep(60)
    assert ada.planner.plan is None
    await lab.join("bob")
    await trio.sleep(10)
    assert ada.range is not None


@in_a_lab
async def test_min_nodes_holds_the_first_plan_back(lab: Lab) -> None:
    ada = await lab.join("ada", wants=True, min_nodes=2)
    await trio.sleep(30)
    assert ada.planner.plan is None
    bob = await lab.join("bob")
    await trio.sleep(8)
    assert {ada.range, bob.range} == {(0, 3), (3, 6)}


@in_a_lab
async def test_a_newcomer_takes_layers_over_without_a_moment_in_which_nothing_is_served(lab: Lab) -> None:
    ada = await lab.join("ada", wants=True)
    await trio.sleep(5)
    answered = 0

    async def keep_asking() -> None:
        nonlocal answered
        while True:
            assert await ada.ask() == expected_tokens([1, 2, 3], LAYERS, 5)
            answered += 1
            await trio.sleep(0.05)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_asking)
        bob = await lab.join("bob")
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert {ada.range, bob.range} == {(0, 3), (3, 6)}
    assert answered > 50
    await trio.sleep(2)
    assert len(ada.engines[0].stages) == 1, "the old range is dropped in the end"


@in_a_lab
async def test_a_crashed_member_finds_its_place_kept_and_nobody_moves(lab: Lab) -> None:
    ada = await lab.join("ada", wants=True, min_nodes=3)
    bob, cy = await lab.join("bob"), await lab.join("cy")
    await trio.sleep(8)
    before = {peer.swarm.node_id: peer.range for peer in (ada, bob, cy)}
    lab.kill(cy)
    await trio.sleep(RETURN_GRACE_S - 20)
    back = await lab.join("cy", node_id=fake_node_id("cy"))
    await trio.sleep(8)
    assert {peer.swarm.node_id: peer.range for peer in (ada, bob, back)} == before
    assert [len(peer.engines[0].loads) for peer in (ada, bob)] == [1, 1]
    assert back.planner.plan is not None
    assert back.planner.plan.epoch == 1


@in_a_lab
async def test_a_member_that_stays_away_is_replaced_after_its_grace(lab: Lab) -> None:
    ada = await lab.join("ada", wants=True, min_nodes=2)
    bob = await lab.join("bob")
    await trio.sleep(8)
    lab.kill(bob)
    await trio.sleep(RETURN_GRACE_S - 5)
    assert ada.range in ((0, 3), (3, 6))
    await trio.sleep(15)
    assert ada.range == (0, 6)


@in_a_lab
async def test_a_member_that_says_goodbye_is_replaced_at_once(lab: Lab) -> None:
    ada = await lab.join("ada", wants=True, min_nodes=2)
    bob = await lab.join("bob")
    await trio.sleep(8)
    bob.scope.cancel()
    lab.network.leave(bob.swarm)
    await trio.sleep(5)
    assert ada.range == (0, 6)


@in_a_lab
async def test_a_link_that_breaks_under_a_request_ends_it_at_once_and_the_next_one_works(lab: Lab) -> None:
    ada = await lab.join("ada", wants=True, min_nodes=2)
    bob = await lab.join("bob")
    await trio.sleep(8)
    failed: list[RequestError] = []

    async def ask() -> None:
        try:
            await ada.ask(2000)
        except RequestError as error:
            failed.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.sleep(0.5)
        lab.network.break_link(ada.swarm, bob.swarm)
        await trio.sleep(1)
        assert len(failed) == 1
    assert await ada.ask() == expected_tokens([1, 2, 3], LAYERS, 5)
    await trio.sleep(1)
    assert [engine.live_sessions for peer in (ada, bob) for engine in peer.engines] == [0, 0]


@in_a_lab
async def test_any_member_takes_over_as_planner(lab: Lab) -> None:
    peers = [await lab.join(name, wants=True, min_nodes=3) for name in ("a", "b", "c")]
    await trio.sleep(8)
    planner = min(peers, key=lambda peer: peer.swarm.node_id)
    assert planner.planner.plan is not None
    assert planner.planner.plan.author == planner.swarm.node_id
    rest = [peer for peer in peers if peer is not planner]
    planner.scope.cancel()
    lab.network.leave(planner.swarm)
    await trio.sleep(6)
    assert {peer.range for peer in rest} == {(0, 3), (3, 6)}
    assert {peer.planner.plan.author for peer in rest if peer.planner.plan} == {min(p.swarm.node_id for p in rest)}


@in_a_lab
async def test_two_halves_with_plans_of_their_own_agree_when_they_meet_again(lab: Lab) -> None:
    ada = await lab.join("ada", wants=True, min_nodes=2)
    bob = await lab.join("bob", wants=True)
    await trio.sleep(8)
    lab.network.partition(ada.swarm, bob.swarm)
    await trio.sleep(RETURN_GRACE_S + 15)
    assert (ada.range, bob.range) == ((0, 6), (0, 6))
    lab.network.heal(ada.swarm, bob.swarm)
    for one, other in ((ada, bob), (bob, ada)):
        assert one.planner.plan is not None
        other.planner.heard(one.planner.plan)
    await trio.sleep(10)
    assert ada.planner.plan == bob.planner.plan
    assert {ada.range, bob.range} == {(0, 3), (3, 6)}
    assert await ada.ask() == await bob.ask() == expected_tokens([1, 2, 3], LAYERS, 5)


@in_a_lab
async def test_a_dead_worker_is_replaced_and_the_node_serves_again(lab: Lab) -> None:
    ada = await lab.join("ada", wants=True)
    await trio.sleep(5)
    ada.engines[0].die()
    await trio.sleep(0.2)
    assert ada.range is None
    await trio.sleep(5)
    assert len(ada.engines) == 2
    assert await ada.ask() == expected_tokens([1, 2, 3], LAYERS, 5)
    assert any(isinstance(event, Notice) and "worker died" in event.text for event in ada.events)


@pytest.mark.parametrize("cause", ["files", "engine"])
def test_a_load_that_fails_is_told_planned_around_and_tried_again(cause: str) -> None:
    @in_a_lab
    async def run(lab: Lab) -> None:
        ada = await lab.join("ada", wants=True, min_nodes=2)
        bob = await lab.join("bob")
        bob.desk.missing = cause == "files"
        await trio.sleep(0.6)
        if cause == "engine":
            bob.engines[0].refuse_next(LoadFailed("0-3", "the file is damaged"))
        await trio.sleep(6)
        assert bob.swarm.record.state == "failed"
        assert bob.swarm.record.problem
        assert ada.range == (0, 6), "the others take its layers over"
        bob.desk.missing = False
        await trio.sleep(RETRY_S + 10)
        assert any(isinstance(event, ModelProgress) and event.phase == "failed" for event in bob.events)
        assert await bob.ask() == expected_tokens([1, 2, 3], LAYERS, 5)

    run()


@in_a_lab
async def test_a_pool_that_is_too_small_says_so_and_is_cured_by_another_member(lab: Lab) -> None:
    ada = await lab.join("ada", wants=True, memory_cap_bytes=4 * MIB)
    await trio.sleep(5)
    problems = [event.reason for event in ada.events if isinstance(event, PlanImpossible)]
    assert "missing" in problems[-1]
    await lab.join("bob")
    await trio.sleep(8)
    problems = [event.reason for event in ada.events if isinstance(event, PlanImpossible)]
    assert problems[-1] == "" or ada.planner.plan is not None


@in_a_lab
async def test_a_part_of_a_held_range_serves_a_route_that_needs_no_more(lab: Lab) -> None:
    ada = await lab.join("ada", wants=True, min_nodes=2, pinned_layers=(0, 4))
    bob = await lab.join("bob", pinned_layers=(2, 6))
    await trio.sleep(8)
    assert (ada.range, bob.range) == ((0, 4), (2, 6))
    assert await ada.ask() == expected_tokens([1, 2, 3], LAYERS, 5)
    assert [(s.spec.start, s.spec.end) for s in bob.engines[0].stages] == [(2, 6), (4, 6)]


@in_a_lab
async def test_cores_are_divided_among_the_nodes_of_one_machine(lab: Lab) -> None:
    ada = await lab.join("ada", wants=True, machine_id="desk")
    await trio.sleep(2)
    assert ada.holder.threads() == 4
    await lab.join("bob", machine_id="desk")
    await lab.join("cy", machine_id="other")
    assert ada.holder.threads() == 2
    await ada.holder.use_threads()
    assert ada.engines[0].threads == 2


def test_an_equal_epoch_is_settled_by_the_author() -> None:
    mine = Plan(3, NodeId("b"), MODEL, "float32", FACTS, ())
    theirs = Plan(3, NodeId("a"), MODEL, "float32", FACTS, ())
    assert theirs.outranks(mine)
    assert not mine.outranks(theirs)


@in_a_lab
async def test_ranges_of_another_model_are_dropped_before_the_new_ones_serve(lab: Lab) -> None:
    ada = await lab.join("ada", wants=True)
    await trio.sleep(5)
    assert ada.planner.plan is not None
    other = msgspec.structs.replace(ada.planner.plan, epoch=9, dtype="bfloat16", author="a smaller one")
    assert ada.planner.heard(other)
    await trio.sleep(0.5)
    assert ada.range is None, "what was loaded for the former plan serves no longer"
    await trio.sleep(5)
    assert [spec.dtype for spec in ada.engines[0].loads] == ["float32", "bfloat16"]
    assert [stage.spec.dtype for stage in ada.engines[0].stages] == ["bfloat16"]
    assert await ada.ask() == expected_tokens([1, 2, 3], LAYERS, 5)


@in_a_lab
async def test_a_plan_that_changes_while_room_is_made_leaves_no_closed_range_behind(lab: Lab) -> None:
    ada = await lab.join("ada", wants=True, memory_cap_bytes=20 * MIB)  # room for one range at a time
    await trio.sleep(5)
    before = ada.planner.plan
    assert before is not None
    half = msgspec.structs.replace(before, epoch=5, assignments=(Assignment(ada.swarm.node_id, 0, 3),))
    back = msgspec.structs.replace(before, epoch=6)
    for delay_s in (0.0, 0.3):
        ada.planner.heard(half)
        await trio.sleep(delay_s)
        ada.planner.heard(back)
        await trio.sleep(5)
        assert ada.range == (0, 6)
        assert await ada.ask() == expected_tokens([1, 2, 3], LAYERS, 5)
        half, back = (msgspec.structs.replace(plan, epoch=plan.epoch + 10) for plan in (half, back))


@in_a_lab
async def test_a_worker_that_cannot_start_again_is_tried_again(lab: Lab) -> None:
    ada = await lab.join("ada", wants=True)
    await trio.sleep(5)
    ada.failing_starts = 2
    ada.engines[0].die()
    await trio.sleep(20)
    assert ada.failing_starts == 0
    assert await ada.ask() == expected_tokens([1, 2, 3], LAYERS, 5)


@in_a_lab
async def test_an_epoch_from_nowhere_is_ignored(lab: Lab) -> None:
    ada = await lab.join("ada", wants=True)
    await trio.sleep(5)
    assert ada.planner.plan is not None
    assert not ada.planner.heard(msgspec.structs.replace(ada.planner.plan, epoch=2**52))
    assert ada.planner.heard(msgspec.structs.replace(ada.planner.plan, epoch=2))


def test_what_is_remembered_survives_a_damaged_file_and_a_full_disk(tmp_path: Path) -> None:
    file = tmp_path / "model.json"
    plan = Plan(7, NodeId("b"), MODEL, "float32", FACTS, ())
    Remembered(file).remember(plan)
    assert (Remembered(file).model, Remembered(file).epoch) == (MODEL, 7)
    for damage in (b"", b"{", b"[]", b'{"model": 1, "epoch": 2}', b'{"epoch": 99999999999999999999}'):
        file.write_bytes(damage)
        assert Remembered(file).epoch == 0
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    Remembered(blocked / "model.json").remember(plan)  # its folder cannot be made: told in the log, no more
