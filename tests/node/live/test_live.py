"""Planner and holder over an in-memory swarm and toy engines: who plans, what is loaded, what stays in between."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import msgspec
import pytest
import trio
import trio.testing

from node.engine.base import GoesOn, StageSpec
from node.errors import FetchFailed, LoadFailed, PlanChanged, WorkerDied
from node.live import planner
from node.live.engine_supervisor import EngineSupervisor
from node.live.leaving import Leaving
from node.live.mover import RETRY_S
from node.live.planner import ONE_MACHINE_S, REVIEW_S, REVIEWS_AGREED, SET_ASIDE_S, Planner
from node.live.remembered import Remembered
from node.live.served_ranges import ServedRanges
from node.pipeline.dispatch import Dispatcher
from node.pipeline.generation import Generation
from node.pipeline.pipeline import Pipeline
from node.plan.live.decide import RETURN_MOST_S
from node.swarm.base import LinkLost, MemberGone, MemberSeen, PlanHeard
from node.wire.events import Event, ModelProgress, Notice, PlanImpossible
from node.wire.frames import Sampling
from node.wire.ids import NodeId
from node.wire.models import Dtype, ModelFacts, ModelRef
from node.wire.plans import Assignment, Override, Plan, PlanSettings, most_epoch
from node.wire.records import LayerLatency
from tests.fakes.engine import HEAD_SHARE, FakeEngine, FakeStage, expected_tokens
from tests.fakes.jumping_clock import on_a_jumping_clock
from tests.fakes.swarm import FakeNetwork, FakeSwarm, fake_node_id

T = TypeVar("T")

LAYERS = 6
MIB, GIB = 1024**2, 1024**3
FACTS = ModelFacts(LAYERS, MIB, MIB, MIB, 8, 4, 251, 4096)
LARGE = msgspec.structs.replace(FACTS, layer_bytes=1024 * MIB)
"""So large that a member which vanishes is waited for as long as any."""
SHARE = PlanSettings("share")
MODEL = ModelRef("toy", "test", "toy")


class ToyDesk:
    """Has the model's files, unless told otherwise."""

    def __init__(self, facts: ModelFacts) -> None:
        self.missing = self.unreadable = self.faulty = False
        self.lacks: set[ModelRef] = set()
        self._facts = facts

    async def metadata(self, ref: ModelRef) -> ToyDesk:
        await trio.lowlevel.checkpoint()
        if self.missing or self.unreadable or ref in self.lacks:
            raise FetchFailed("toy", "no network")
        return self

    def facts(self, dtype: Dtype) -> ModelFacts:
        if self.faulty:
            raise RuntimeError("a fault of ours")
        return self._facts

    async def weights(self, ref: ModelRef, start: int, end: int) -> Path:
        await trio.lowlevel.checkpoint()
        if self.missing or ref in self.lacks:
            raise FetchFailed("toy", "no network")
        return Path("toy")


class SlowEngine(FakeEngine):
    """Takes a second to load."""

    load_s = 1.0

    async def load(self, spec: StageSpec, goes_on: GoesOn = lambda share: None) -> FakeStage:
        await trio.sleep(self.load_s)
        return await super().load(spec, goes_on)


@dataclass
class Peer:
    swarm: FakeSwarm
    planner: Planner
    supervisor: EngineSupervisor
    pipeline: Pipeline
    dispatcher: Dispatcher
    desk: ToyDesk
    engines: list[SlowEngine]
    scope: trio.CancelScope
    leaving: Leaving
    failing_starts: int = 0
    out_of_memory: bool = False
    """Every load kills the worker."""
    events: list[Event] = field(default_factory=list)

    @property
    def range(self) -> tuple[int, int] | None:
        ready = self.swarm.record.ready_range()
        return (ready.start, ready.end) if ready else None

    async def ask(self, count: int = 5) -> list[int]:
        assert self.planner.plan is not None
        generation = Generation((1, 2, 3), count, (), Sampling(), self.planner.plan.weights)
        async with self.dispatcher.generate(generation, "a request", lambda chain: None) as tokens:
            return [step.token async for step in tokens]

    async def keep_asking(self, answered: list[int]) -> None:
        """One request after another, each of which must be answered rightly; notes how many tokens each had."""
        while True:
            tokens = await self.ask()
            assert tokens == expected_tokens([1, 2, 3], LAYERS, 5)
            answered.append(len(tokens))
            await trio.sleep(0.05)


async def while_the_clock_stands(function: Callable[..., T], /, *arguments: Any) -> T:
    """In a thread, as a node does; the test's clock, which jumps when all tasks wait, waits too."""
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, trio.testing.MockClock)
    working.add(arguments[0])
    clock.autojump_threshold = float("inf")
    try:
        return await trio.to_thread.run_sync(function, *arguments)
    finally:
        working.discard(arguments[0])
        if not working:
            clock.autojump_threshold = 0


working: set[object] = set()
"""Nodes that make a plan now."""


@dataclass
class Lab:
    network: FakeNetwork
    nursery: trio.Nursery
    facts: ModelFacts = FACTS
    settings: PlanSettings = SHARE

    async def join(
        self,
        name: str,
        *,
        wants: bool = False,
        min_nodes: int = 1,
        joins: bool = False,
        remembers: tuple[int, PlanSettings] | None = None,
        **record: Any,
    ) -> Peer:
        epoch, settings = remembers or (0, self.settings)
        swarm = self.network.add(name, **{"machine_id": name, "plan_epoch": epoch, **record})
        events: list[Event] = []
        engines: list[SlowEngine] = []
        desk = ToyDesk(self.facts)

        @asynccontextmanager
        async def open_engine(threads: int) -> AsyncIterator[FakeEngine]:
            await trio.sleep(0.5)
            if peer.failing_starts:
                peer.failing_starts -= 1
                raise WorkerDied(1, "no memory")
            engines.append(SlowEngine(LAYERS, memory_bytes=64 * 1024 * MIB, step_s=0.001))
            engines[-1].dies_loading = peer.out_of_memory
            yield engines[-1]

        ranges = ServedRanges()
        pipeline = Pipeline(swarm, ranges, lambda error: None)
        supervisor = EngineSupervisor(swarm, desk, ranges, pipeline.stage, open_engine, events.append, cores=4)  # type: ignore[arg-type]
        planner = Planner(
            swarm,
            desk.metadata,  # type: ignore[arg-type]
            supervisor.follow,
            events.append,
            min_nodes=min_nodes,
            knows_peers=False,
            joins=joins,
            last_epoch=epoch,
            settings=settings,
            in_thread=while_the_clock_stands,
        )
        dispatcher = Dispatcher(swarm.node_id, pipeline.head, lambda: planner.plan, swarm.members)
        leaving = Leaving(
            swarm, ranges, lambda: planner.plan, lambda: bool(pipeline.head.requests + pipeline.stage.sessions)
        )
        scope = trio.CancelScope()
        peer = Peer(swarm, planner, supervisor, pipeline, dispatcher, desk, engines, scope, leaving, events=events)
        if wants:
            await swarm.update(wanted_model=MODEL)
        self.nursery.start_soon(self._run, peer)
        return peer

    async def _run(self, peer: Peer) -> None:
        with peer.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(peer.pipeline.run)
                nursery.start_soon(peer.planner.run)
                nursery.start_soon(peer.supervisor.run)
                async for news in peer.swarm.news:
                    match news:
                        case MemberGone() as gone:
                            peer.pipeline.member_gone(gone.node_id, gone.why)
                            peer.dispatcher.changed()
                            peer.planner.member_gone(gone)
                        case LinkLost(node_id=lost, reason=reason):
                            peer.pipeline.link_lost(lost, reason)
                        case MemberSeen(record=record):
                            peer.dispatcher.heard(record)
                        case PlanHeard(plan=plan):
                            peer.planner.heard(plan)
                    peer.planner.wake()

    def kill(self, peer: Peer) -> None:
        peer.scope.cancel()
        self.network.kill(peer.swarm)


in_a_lab = on_a_jumping_clock(Lab)


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
    answered: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ada.keep_asking, answered)
        bob = await lab.join("bob")
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert {ada.range, bob.range} == {(0, 3), (3, 6)}
    assert len(answered) > 50
    await trio.sleep(2)
    assert len(ada.engines[0].stages) == 1, "the old range is dropped in the end"


@in_a_lab
async def test_a_member_that_is_back_at_once_finds_its_place_kept_and_nobody_moves(lab: Lab) -> None:
    lab.facts = LARGE
    ada = await lab.join("ada", wants=True, min_nodes=3)
    bob, cy = await lab.join("bob"), await lab.join("cy")
    await trio.sleep(8)
    before = {peer.swarm.node_id: peer.range for peer in (ada, bob, cy)}
    lab.kill(cy)
    await trio.sleep(RETURN_MOST_S - 1)
    back = await lab.join("cy", node_id=fake_node_id("cy"))
    await trio.sleep(8)
    assert {peer.swarm.node_id: peer.range for peer in (ada, bob, back)} == before
    assert [len(peer.engines[0].loads) for peer in (ada, bob)] == [1, 1]
    assert back.planner.plan is not None
    assert back.planner.plan.epoch == 1


@in_a_lab
async def test_a_member_that_stays_away_is_replaced_however_much_it_held(lab: Lab) -> None:
    lab.facts = LARGE
    ada = await lab.join("ada", wants=True, min_nodes=2)
    bob = await lab.join("bob")
    await trio.sleep(8)
    lab.kill(bob)
    await trio.sleep(5)
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
async def test_an_answer_outlives_a_link_that_breaks_and_leaves_nothing_behind(lab: Lab) -> None:
    ada = await lab.join("ada", wants=True, min_nodes=2)
    bob = await lab.join("bob")
    await trio.sleep(8)
    got: list[int] = []

    async def ask() -> None:
        got.extend(await ada.ask(1000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.sleep(0.5)
        lab.network.break_link(ada.swarm, bob.swarm)
    assert got == expected_tokens([1, 2, 3], LAYERS, 1000)
    await trio.sleep(1)
    assert [engine.live_sessions for peer in (ada, bob) for engine in peer.engines] == [0, 0]


@in_a_lab
async def test_an_answer_outlives_a_member_whose_layers_another_takes_over(lab: Lab) -> None:
    peers = [await lab.join(name, wants=True, min_nodes=3) for name in ("ada", "bob", "cy")]
    await trio.sleep(8)
    ada, _, cy = peers
    got: list[int] = []

    async def ask() -> None:
        got.extend(await ada.ask(1000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.sleep(0.5)
        lab.kill(cy)
    assert got == expected_tokens([1, 2, 3], LAYERS, 1000)


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
    await trio.sleep(15)
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
async def test_layers_whose_loading_kills_the_worker_go_to_others_and_are_tried_ever_more_rarely(lab: Lab) -> None:
    ada = await lab.join("ada", wants=True, min_nodes=2)
    bob = await lab.join("bob")
    bob.out_of_memory = True
    await trio.sleep(8)
    assert bob.swarm.record.state == "failed"
    assert "died" in bob.swarm.record.problem
    assert ada.range == (0, 6)
    assert await ada.ask() == expected_tokens([1, 2, 3], LAYERS, 5)
    await trio.sleep(600)
    assert len(bob.engines) < 10
    bob.out_of_memory = bob.engines[-1].dies_loading = False
    await trio.sleep(700)
    assert {ada.range, bob.range} == {(0, 3), (3, 6)}


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
async def test_a_range_tells_its_speed_before_the_first_request(lab: Lab) -> None:
    ada = await lab.join("ada", wants=True)
    await trio.sleep(5)
    times = ada.pipeline.stage.times
    layer = times.layer()
    assert layer is not None
    step_ms = 1.0
    assert layer.p50_ms == pytest.approx((1 - HEAD_SHARE) * step_ms / LAYERS)
    assert times.head_ms == pytest.approx(HEAD_SHARE * step_ms)
    assert times.overhead_ms is not None
    assert times.in_service == 0


@in_a_lab
async def test_a_part_of_a_held_range_serves_a_route_that_needs_no_more(lab: Lab) -> None:
    ada = await lab.join("ada", wants=True, min_nodes=2, pinned_layers=(0, 4))
    bob = await lab.join("bob", pinned_layers=(2, 6))
    await trio.sleep(8)
    assert (ada.range, bob.range) == ((0, 4), (2, 6))
    assert await ada.ask() == expected_tokens([1, 2, 3], LAYERS, 5)
    loaded = [[(spec.start, spec.end) for spec in peer.engines[0].loads] for peer in (ada, bob)]
    assert loaded == [[(0, 4)], [(2, 6)]]


@in_a_lab
async def test_cores_are_divided_among_the_nodes_of_one_machine(lab: Lab) -> None:
    ada = await lab.join("ada", wants=True, machine_id="desk")
    await trio.sleep(2)
    assert ada.supervisor.threads() == 4
    await lab.join("bob", machine_id="desk")
    await lab.join("cy", machine_id="other")
    assert ada.supervisor.threads() == 2
    await ada.supervisor.use_threads()
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


@pytest.mark.parametrize("epoch", [2**52, 2**53, 10**9])
def test_a_home_that_remembers_an_absurd_epoch_starts_without_it_but_with_its_model_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, epoch: int
) -> None:
    file = tmp_path / "model.json"
    settings = PlanSettings("throughput")
    trio.run(Remembered(file).remember, Plan(epoch, NodeId("b"), MODEL, "float32", FACTS, (), settings=settings))
    again = Remembered(file)
    assert (again.epoch, again.model, again.settings) == (0, MODEL, settings)
    assert f"no planning has led to epoch {epoch}" in caplog.text
    assert "what it says of the epoch cannot be; the rest of it is used" in again.problems[0]
    trio.run(again.remember, Plan(7, NodeId("b"), MODEL, "float32", FACTS, ()))
    assert b"throughput" in file.with_name("model.json.refused").read_bytes(), "kept beside what replaces it"
    assert Remembered(file).problems == []


@in_a_lab
async def test_where_somebody_has_used_up_the_epochs_the_next_plan_waits_for_the_clock(lab: Lab) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "time", SimpleNamespace(time=lambda: 1_790_000_000 + trio.current_time()))
        ada = await lab.join("ada", wants=True)
        await trio.sleep(5)
        assert ada.planner.plan is not None
        highest = most_epoch(planner.time.time())
        assert ada.planner.heard(msgspec.structs.replace(ada.planner.plan, epoch=highest, assignments=()))
        await trio.sleep(10)
        assert ada.planner.plan.epoch == highest + 1
        assert ada.planner.plan.assignments


def test_what_is_remembered_survives_a_damaged_file_and_a_full_disk(tmp_path: Path) -> None:
    file = tmp_path / "model.json"
    plan = Plan(7, NodeId("b"), MODEL, "float32", FACTS, ())
    trio.run(Remembered(file).remember, plan)
    assert (Remembered(file).model, Remembered(file).epoch) == (MODEL, 7)
    for damage in (b"", b"{", b"[]", b'{"model": 1, "epoch": 2}', b'{"epoch": 99999999999999999999}'):
        file.write_bytes(damage)
        assert (Remembered(file).model, Remembered(file).epoch) in ((None, 0), (None, 2))
        assert Remembered(file).problems
        assert file.with_name("model.json.refused").read_bytes() == damage
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    trio.run(Remembered(blocked / "model.json").remember, plan)  # its folder cannot be made: told in the log, no more


@pytest.mark.parametrize("facts", [FACTS, LARGE], ids=["small layers", "large layers"])
def test_a_planner_killed_at_any_moment_of_a_plan_is_followed_by_one_valid_plan_within_5_s(facts: ModelFacts) -> None:
    @in_a_lab
    async def run(lab: Lab) -> None:
        lab.facts = facts
        for round_, moment_s in enumerate((0.0, 0.3, 0.55, 0.7, 1.2)):
            names = [f"{name}{round_}" for name in "abcd"]
            peers = [await lab.join(name, wants=True, min_nodes=4) for name in names]
            await trio.sleep(8)
            planner = min(peers, key=lambda peer: peer.swarm.node_id)
            gone = next(peer for peer in peers if peer is not planner)
            gone.scope.cancel()
            lab.network.leave(gone.swarm)  # calls for a plan; the planner dies before, while or after it is told
            await trio.sleep(moment_s)
            lab.kill(planner)
            await trio.sleep(5)
            rest = [peer for peer in peers if peer not in (planner, gone)]
            plan = rest[0].planner.plan
            assert plan is not None
            assert [peer.planner.plan for peer in rest] == [plan, plan]
            assert {each.id for each in plan.assignments} == {peer.swarm.node_id for peer in rest}
            assert [(each.start, each.end) for each in plan.assignments] == [(0, 3), (3, 6)]
            for peer in rest:
                peer.scope.cancel()
                lab.network.leave(peer.swarm)
            await trio.sleep(1)

    run()


@in_a_lab
async def test_any_member_applies_a_change_by_hand_and_the_planner_goes_on_with_it(lab: Lab) -> None:
    peers = [await lab.join(name, wants=True, min_nodes=3) for name in ("a", "b", "c")]
    await trio.sleep(8)
    first, *_, last = sorted(peers, key=lambda peer: peer.swarm.node_id)
    drained = PlanSettings("share", (Override(last.swarm.node_id, duty="drain"),))
    dry = await last.planner.propose(drained)
    assert dry.changes
    assert last.planner.plan is not None
    assert last.planner.plan.epoch == 1, "a dry run changes nothing"
    done = await last.planner.apply(drained, epoch=1)
    assert done.plan.author == last.swarm.node_id
    await trio.sleep(5)
    assert last.range is None
    assert {peer.range for peer in peers if peer is not last} == {(0, 3), (3, 6)}
    assert not (await first.planner.apply(drained)).changes
    with pytest.raises(PlanChanged):
        await first.planner.apply(PlanSettings("share"), epoch=1)
    newcomer = await lab.join("d")
    await trio.sleep(8)
    plan = first.planner.plan
    assert plan is not None
    assert plan.settings == drained
    assert {each.id for each in plan.assignments} == {p.swarm.node_id for p in (*peers, newcomer) if p is not last}


@in_a_lab
async def test_a_node_that_slows_down_loses_layers_only_when_that_pays(lab: Lab) -> None:
    lab.settings = PlanSettings("latency")
    ada = await lab.join("ada", wants=True, min_nodes=2, memory_cap_bytes=6 * MIB)
    bob = await lab.join("bob", memory_cap_bytes=6 * MIB)
    await trio.sleep(10)
    assert ada.planner.plan is not None
    before = ada.planner.plan
    await bob.swarm.update(layer_latency=LayerLatency(1.0, 1.0, 1.0))
    await ada.swarm.update(layer_latency=LayerLatency(1.05, 1.05, 1.05))
    await trio.sleep(3 * REVIEW_S)
    assert ada.planner.plan.epoch == before.epoch, "a little slower is no reason to move"
    fastest = min(before.assignments, key=lambda each: (each.start - each.end, each.node_id))
    slow = next(peer for peer in (ada, bob) if peer.swarm.node_id == fastest.node_id)
    await slow.swarm.update(layer_latency=LayerLatency(400.0, 400.0, 400.0))
    await trio.sleep((REVIEWS_AGREED + 2) * REVIEW_S)
    assert ada.planner.plan.epoch > before.epoch
    assert ada.planner.plan.assignments != before.assignments


@in_a_lab
async def test_noise_in_what_nodes_measure_moves_layers_a_few_times_an_hour_at_most(lab: Lab) -> None:
    lab.settings = PlanSettings("latency")
    ada = await lab.join("ada", wants=True, min_nodes=2, memory_cap_bytes=6 * MIB)
    bob = await lab.join("bob", memory_cap_bytes=6 * MIB)
    await trio.sleep(10)
    assert ada.planner.plan is not None
    epoch = ada.planner.plan.epoch
    for minute in range(60):  # one is the slower now, then the other
        slow, fast = (ada, bob) if minute % 2 else (bob, ada)
        await slow.swarm.update(layer_latency=LayerLatency(400.0, 400.0, 400.0))
        await fast.swarm.update(layer_latency=LayerLatency(1.0, 1.0, 1.0))
        await trio.sleep(60)
    assert 1 <= ada.planner.plan.epoch - epoch <= 7


@in_a_lab
async def test_a_machine_that_comes_and_goes_ends_sharing_once_and_it_returns_when_that_one_stays_away(
    lab: Lab,
) -> None:
    lab.settings = PlanSettings()
    ada = await lab.join("ada", wants=True, min_nodes=2, memory_cap_bytes=8 * MIB)
    bob = await lab.join("bob", memory_cap_bytes=8 * MIB)
    for peer in (ada, bob):
        await peer.swarm.update(machine_id="one")
    await trio.sleep(10)

    def objective() -> str:
        assert ada.planner.plan is not None
        return ada.planner.plan.objective

    await trio.sleep(ONE_MACHINE_S + (REVIEWS_AGREED + 2) * REVIEW_S)
    assert objective() == "share"
    for _ in range(3):
        await bob.swarm.update(machine_id="another")
        await trio.sleep(ONE_MACHINE_S / 2)
        assert objective() == "balanced"
        await bob.swarm.update(machine_id="one")
        await trio.sleep(ONE_MACHINE_S / 2)
        assert objective() == "balanced", "it may be back soon"
    await trio.sleep(2 * ONE_MACHINE_S + (REVIEWS_AGREED + 3) * REVIEW_S)
    assert objective() == "share"


@in_a_lab
async def test_a_member_without_the_models_files_lets_another_one_plan(lab: Lab) -> None:
    peers = sorted([await lab.join(name, min_nodes=2) for name in ("a", "b")], key=lambda p: p.swarm.node_id)
    first, other = peers
    first.desk.missing = True  # it cannot even read the model's config
    await other.swarm.update(wanted_model=MODEL)
    await trio.sleep(12)
    assert other.planner.plan is not None
    assert other.planner.plan.author == other.swarm.node_id
    first.desk.missing = False
    await trio.sleep(40)
    assert {first.range, other.range} == {(0, 3), (3, 6)}, "later it takes its part"


@in_a_lab
async def test_a_planner_needs_no_files_for_a_model_that_is_planned_already(lab: Lab) -> None:
    peers = [await lab.join(name, wants=True, min_nodes=3) for name in ("a", "b", "c")]
    await trio.sleep(8)
    first, *_, last = sorted(peers, key=lambda peer: peer.swarm.node_id)
    for peer in peers:
        peer.desk.unreadable = True
    last.scope.cancel()
    lab.network.leave(last.swarm)
    await trio.sleep(5)
    assert first.planner.plan is not None
    assert {each.id for each in first.planner.plan.assignments} == {p.swarm.node_id for p in peers if p is not last}


@in_a_lab
async def test_settings_of_a_former_run_that_leave_no_plan_do_not_keep_the_swarm_from_starting(lab: Lab) -> None:
    lab.settings = PlanSettings("share", (Override(fake_node_id("ada"), duty="drain"),))
    ada = await lab.join("ada", node_id=fake_node_id("ada"), wants=True)
    await trio.sleep(SET_ASIDE_S - 1)
    assert ada.range is None, "others may still come with whom it can be kept"
    assert any(isinstance(event, PlanImpossible) and "drains" in event.reason for event in ada.events)
    await trio.sleep(6)
    assert ada.range == (0, 6)
    assert ada.planner.settings == lab.settings.all_set_aside(True)
    assert any(isinstance(event, Notice) and "is set aside" in event.text for event in ada.events)
    bob = await lab.join("bob")
    await trio.sleep(10)
    assert (ada.range, bob.range) == (None, (0, 6)), "it binds again as soon as it can"
    assert bob.planner.settings == lab.settings


@in_a_lab
async def test_settings_of_a_former_run_outlive_members_who_come_back_late(lab: Lab) -> None:
    lab.facts = msgspec.structs.replace(FACTS, layer_bytes=20 * GIB)
    settings = PlanSettings("balanced", (Override(fake_node_id("bob"), memory_bytes=GIB), Override("gone", (0, 3))))
    ids = {name: fake_node_id(name) for name in ("ada", "bob", "cy")}
    old = [await lab.join(name, node_id=ids[name], wants=True, remembers=(57, settings)) for name in ("ada", "bob")]
    await trio.sleep(12)
    old.append(await lab.join("cy", node_id=ids["cy"], wants=True, remembers=(57, settings)))
    old.append(await lab.join("dan", node_id=fake_node_id("dan")))
    await trio.sleep(30)
    assert [peer.planner.settings for peer in old] == [settings] * 4


@in_a_lab
async def test_a_fault_in_planning_is_told_and_the_node_goes_on(lab: Lab) -> None:
    ada = await lab.join("ada", wants=True)
    ada.desk.faulty = True
    await trio.sleep(5)
    assert any(isinstance(event, PlanImpossible) and "a fault of ours" in event.reason for event in ada.events)
    ada.desk.faulty = False
    await trio.sleep(10)
    assert ada.range == (0, 6)


@in_a_lab
async def test_left_to_itself_a_swarm_of_two_machines_does_not_split_what_one_holds_and_outlives_a_crash(
    lab: Lab,
) -> None:
    lab.settings = PlanSettings()
    ada = await lab.join("ada", wants=True)
    await trio.sleep(5)
    bob = await lab.join("bob")
    await trio.sleep(10)
    assert (ada.range, bob.range) == ((0, 6), (0, 6))
    plan = ada.planner.plan
    assert plan is not None
    assert plan.objective == "balanced"
    assert "not split" in plan.note
    lab.kill(bob)
    await trio.sleep(0.1)
    assert await ada.ask() == expected_tokens([1, 2, 3], LAYERS, 5)
    await trio.sleep(10)
    assert ada.range == (0, 6)
    assert len(ada.engines[0].loads) == 1, "nothing had to be loaded"


@in_a_lab
async def test_a_swarm_that_starts_again_keeps_its_settings_though_a_newcomer_is_first_in_line(lab: Lab) -> None:
    ids = sorted(fake_node_id(name) for name in ("a", "b", "c"))
    kept = PlanSettings("share", (Override(ids[2], duty="exclude"),))
    newcomer = await lab.join("new", node_id=ids[0], wants=True, min_nodes=3)
    old = [await lab.join(f"old{i}", node_id=ids[i], wants=True, min_nodes=3, remembers=(57, kept)) for i in (1, 2)]
    await trio.sleep(10)
    plan = newcomer.planner.plan
    assert plan is not None
    assert (plan.author, plan.epoch, plan.settings) == (ids[1], 58, kept)
    assert {newcomer.range, old[0].range, old[1].range} == {(0, 3), (3, 6), None}
