"""Brings this node from what it holds to what the plan gives it: fetches, waits for its turn, loads, then lets go.

What is new is loaded beside what is held. Where both do not fit, the members take turns (`turn.py`), so that no layer
is left by all of them while it could stay covered; layers in both ranges serve all the time.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Awaitable, Callable

import trio
from msgspec.structs import replace

from node.engine.base import Engine, GoesOn, Stage, StageInfo, StageSpec
from node.errors import LoadFailed, ParallaxError, WorkerDied
from node.live.load_progress import load_progress
from node.live.model_store import ModelStore
from node.live.retiring import Retiring
from node.live.served_ranges import MOST_TOLD, ServedRange, ServedRanges
from node.live.turn import Patience, View, next_turn
from node.plan.costs.model import cost_of_plan
from node.plan.moving.node_layers import NodeLayers, runs, weights_of
from node.swarm.base import Swarm
from node.swarm.record_changes import RecordChanges
from node.wire.events import Event, ModelProgress, Notice
from node.wire.ids import NodeId
from node.wire.layer_range import layer_range
from node.wire.models import Quantise
from node.wire.plans import Assignment, Plan
from node.wire.records import DRIFT_CLASS_LIMIT, QUANTISATION_LIMIT, HeldRange, NodeRecord

log = logging.getLogger(__name__)

RETRY_S, RETRY_MOST_S = 15.0, 600.0
"""After a load that failed: long enough to free memory or disk, short enough to notice. Doubled while it goes on, since
each new try moves the others' layers too."""

FINISH_S = 10.0
"""Sequences on layers that make room for others may go on for so long; then they end."""

MIN_KV_BYTES = 64 * 1024 * 1024

SAME_ROOM = 0.05
"""A KV cache is left as it is where its room changes by no more than this share of it."""

Goal = tuple[int, int, str]
"""Layers [start, end) of these weights."""


class Mover:
    """Follows plans on one engine at a time."""

    def __init__(
        self,
        swarm: Swarm,
        store: ModelStore,
        emit: Callable[[Event], object],
        ranges: ServedRanges,
        in_use: Callable[[Stage], bool],
        close: Callable[[ServedRange, str], Awaitable[None]],
        loaded: Callable[[StageInfo, str], None],
        quantise: Quantise = "auto",
    ) -> None:
        self.plan: Plan | None = None
        self._swarm, self._store, self._emit, self._ranges, self._loaded = swarm, store, emit, ranges, loaded
        self._retiring = Retiring(ranges, swarm, lambda: self.plan, in_use, close, self._tell)
        self._quantise: Quantise = quantise
        self._engine: Engine | None = None
        self._goal: Goal | None = None
        """Layers and weights that are being moved to."""
        self._failed = False
        """It could not be done, and is tried again after a pause."""
        self._loading: tuple[int, int] | None = None
        """As the record tells it: from the moment that its files are fetched."""
        self._reading: frozenset[int] = frozenset()
        """Layers that come into memory now."""
        self._wake = trio.Event()
        self._transition = trio.CancelScope()
        self._retry_s = RETRY_S
        self._entrusted: StageSpec | None = None
        """What the engine loads now."""
        self._crash: tuple[Goal, LoadFailed] | None = None
        """A load that ended the worker before this one."""

    def follow(self, plan: Plan) -> None:
        """A new plan is in force. What is being done for an older one is given up unless it is still wanted.

        One that gives other layers ends the pause after a failure too; one made around that failure does not.
        """
        goal = _goal_of(plan, plan.range_of(self._swarm.node_id))
        if self._goal not in (None, goal) and not (self._failed and goal is None):
            self._transition.cancel()
        self.plan = plan
        self._wake.set()

    def engine_died(self) -> None:
        """The engine's process has ended, before `run` has been cancelled for that."""
        spec, self._entrusted = self._entrusted, None
        if spec is not None and self._goal is not None:
            reason = "the engine worker died of it, as it does where memory runs out; assign fewer layers"
            self._crash = self._goal, LoadFailed(layer_range(spec.start, spec.end), reason)

    async def run(self, engine: Engine) -> None:
        """Follow plans with this engine until it dies, or until cancelled."""
        self._engine = engine
        self._wake.set()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._retiring.run)
                while True:
                    await self._wake.wait()
                    self._wake = trio.Event()
                    if self.plan is not None:
                        await self._try_to_move(engine, self.plan)
        finally:
            self._engine = self._goal = self._loading = None
            self._failed = False

    async def _try_to_move(self, engine: Engine, plan: Plan) -> None:
        with trio.CancelScope() as self._transition:
            try:
                self._own_up(plan)
                await self._move_to(engine, plan)
            except WorkerDied:
                await trio.sleep_forever()  # who runs the worker notices, and cancels
            except (ParallaxError, OSError) as error:
                await self._tell_failure(error)
                await trio.sleep(self._retry_s)
                self._retry_s = min(RETRY_MOST_S, 2 * self._retry_s)
                self._wake.set()
        self._goal = self._loading = None
        self._failed = False

    def _own_up(self, plan: Plan) -> None:
        """A load that has killed the former worker is a failed one: this one would fare no better.

        Raises:
            LoadFailed: the plan still asks for the same.
        """
        crash, self._crash = self._crash, None
        if crash is not None and crash[0] == _goal_of(plan, plan.range_of(self._swarm.node_id)):
            self._goal, error = crash
            raise error

    async def _move_to(self, engine: Engine, plan: Plan) -> None:
        target = plan.range_of(self._swarm.node_id)
        self._goal = _goal_of(plan, target)
        foreign = [held for held in self._ranges if held.weights != plan.weights]  # other model or arithmetic
        for held in foreign:
            held.leave(trio.current_time(), FINISH_S)
        self._retiring.wake()
        if target is None:
            for held in self._ranges.whole():
                held.state = "draining"
            self._retiring.wake()
            await self._swarm.update(held=self._told(), plan_epoch=plan.epoch, state="standby", problem="")
            return
        serving = self._ranges.exact(target.start, target.end, plan.weights)
        if serving is None:
            folder = await self._fetch(plan, target)
            await self._retiring.all_gone(foreign)
            await self._make_room(engine, plan, target, folder)
            serving = await self._load(engine, plan, target.start, target.end, folder)
        else:
            serving = await self._resize(engine, plan, serving)
        serving.come_back()
        for held in self._ranges.whole():
            held.state = "ready" if held is serving else "draining"
        serving.epoch = plan.epoch
        served: RecordChanges = {"plan_epoch": plan.epoch, "state": "serving", "problem": ""}
        await self._swarm.update(**(self._holding() | served))
        self._retiring.wake()
        self._emit(ModelProgress(plan.model.name, "ready", text=f"layers {layer_range(target.start, target.end)}"))

    async def _fetch(self, plan: Plan, target: Assignment) -> str:
        """Have the files here first: nothing is dropped for a range that cannot be had, or only after an hour."""
        self._loading = (target.start, target.end)
        await self._swarm.update(held=self._told(), plan_epoch=plan.epoch)
        return str(await self._store.weights(plan.model, target.start, target.end))

    async def _make_room(self, engine: Engine, plan: Plan, target: Assignment, folder: str) -> None:
        """Wait until the new range fits beside the old ones; when it is this node's turn, load what fits already or
        drop what it has to."""
        if not self._ranges.whole():
            return
        self._loading = None  # two nodes that lack room must not wait for one another's loads
        await self._tell()
        patience = Patience()
        while (turn := await next_turn(self._swarm.node_id, self._view, patience)) is not None:
            kind, layers = turn
            log.info("%s layers %d–%d first, for [%d, %d)", kind, min(layers), max(layers), target.start, target.end)
            if kind == "load":
                await self._load_piece(engine, plan, layers, folder)
            else:
                await self._drop(engine, layers)

    async def _load_piece(self, engine: Engine, plan: Plan, layers: frozenset[int], folder: str) -> None:
        """Load neighbouring layers beside what is held, in one range with what adjoins them: it shares their tensors,
        and routes need not go from one range to the next."""
        held = layers.union(*(held.layers for held in self._ranges.whole()))
        together = next(run for run in runs(held) if layers <= run)
        piece = await self._load(engine, plan, min(together), max(together) + 1, folder)
        for each in self._ranges.whole():
            if each is not piece and piece.covers(each.start, each.end):
                each.state = "draining"
        await self._tell()

    async def _drop(self, engine: Engine, layers: frozenset[int]) -> None:
        for held in self._ranges.whole():
            if held.layers & layers:
                await self._narrow(engine, held, layers)
        await self._see_off([held for held in self._ranges if held.layers & layers])

    async def _narrow(self, engine: Engine, wider: ServedRange, without: frozenset[int]) -> None:
        """Have the rest of `wider` serve in its own right: its tensors are shared, nothing is read."""
        rest = [await self._part(engine, wider, min(run), max(run) + 1) for run in runs(wider.layers - without)]
        # All at once, with no await between: beside `wider` each of them is needless, without them it is not.
        for part in rest:
            if part not in self._ranges:
                self._ranges.add(part)
            part.come_back()
            part.state = wider.state
        wider.leave(trio.current_time(), FINISH_S)

    async def _part(self, engine: Engine, wider: ServedRange, start: int, end: int) -> ServedRange:
        assert self.plan is not None
        part = self._ranges.exact(start, end, wider.weights)
        if part is None:
            spec = self._spec(self.plan, wider.folder, start, end)
            stage = await self._loaded_by(engine, spec)
            part = ServedRange(stage, wider.folder, start, end, wider.weights, spec.kv_bytes, wider.epoch, wider.state)
        return part

    async def _let_what_leaves_go(self, plan: Plan, coming: frozenset[int]) -> None:
        """Wait for layers that nobody is told of any more, where those to be loaded do not fit beside them."""
        staying = frozenset[int]().union(*(held.layers for held in self._ranges.whole()))
        leaving = [held for held in self._ranges if held.weights == plan.weights and not held.layers <= staying]
        layers = staying.union(*(held.layers for held in leaving))
        view = View.of(plan, self._records())
        holding = dataclasses.replace(self._own(view), held=layers)
        if not layers <= coming and not holding.has_room_for(view.model, coming, view.cache_tokens):
            await self._see_off(leaving)

    async def _see_off(self, leaving: list[ServedRange]) -> None:
        """Have these closed, their sequences too after a while."""
        for held in leaving:
            held.leave(trio.current_time(), FINISH_S)
        await self._retiring.all_gone(leaving)

    async def _load(self, engine: Engine, plan: Plan, start: int, end: int, folder: str) -> ServedRange:
        self._loading = (start, end)
        await self._tell()
        await self._let_what_leaves_go(plan, frozenset(range(start, end)))
        spec = self._spec(plan, folder, start, end)
        self._reading = frozenset(range(start, end))
        goes_on = load_progress(plan, start, end, self._emit)
        goes_on(0.0)
        try:
            stage = await self._loaded_by(engine, spec, goes_on)
        finally:
            self._reading = frozenset()
        held = ServedRange(stage, folder, start, end, plan.weights, spec.kv_bytes, plan.epoch)
        self._ranges.add(held)
        self._loaded(stage.info, plan.weights)
        self._loading = None
        self._retry_s = RETRY_S
        log.info("layers [%d, %d) are ready after %.1f s", start, end, stage.info.load_s)
        return held

    async def _loaded_by(self, engine: Engine, spec: StageSpec, goes_on: GoesOn = lambda share: None) -> Stage:
        self._entrusted = spec
        try:
            stage = await engine.load(spec, goes_on)
        except WorkerDied:
            raise  # `engine_died` is told, and asks of what
        except BaseException:
            self._entrusted = None
            raise
        self._entrusted = None
        return stage

    async def _resize(self, engine: Engine, plan: Plan, held: ServedRange) -> ServedRange:
        """`held` with the KV cache that the node's memory has room for now, which a cap or another node on the machine
        may have changed. Tensors are shared, and sequences go on where they are."""
        spec = self._spec(plan, held.folder, held.start, held.end)
        if abs(spec.kv_bytes - held.kv_bytes) <= SAME_ROOM * held.kv_bytes:
            return held
        stage = await self._loaded_by(engine, spec)
        resized = ServedRange(stage, held.folder, held.start, held.end, held.weights, spec.kv_bytes, plan.epoch)
        for old in self._ranges:  # what lies in it too: it was made for the same memory
            if held.covers(old.start, old.end):
                old.leave(trio.current_time())
        self._ranges.add(resized)
        self._retiring.wake()
        return resized

    def bytes_beside(self, serving: ServedRange) -> int:
        """Weights of other layers, on their way in or out, that take from the room of `serving`."""
        if self.plan is None or self.plan.weights != serving.weights:
            return 0
        same = (held.layers for held in self._ranges if held.weights == serving.weights)
        cost = cost_of_plan(self.plan)
        return weights_of(cost, serving.layers.union(self._reading, *same)) - weights_of(cost, serving.layers)

    def _spec(self, plan: Plan, folder: str, start: int, end: int) -> StageSpec:
        """What to load, with all the KV cache that the node's memory has room for beside these layers."""
        memory_bytes = self._own(View.of(plan, self._records())).memory_bytes
        kv_bytes = max(MIN_KV_BYTES, memory_bytes - weights_of(cost_of_plan(plan), frozenset(range(start, end))))
        return StageSpec(folder, start, end, plan.dtype, kv_bytes, quantise=self._quantise)

    def _own(self, view: View) -> NodeLayers:
        return next(holding for holding in view.holdings if holding.node_id == self._swarm.node_id)

    async def _view(self, silent: frozenset[str]) -> View:
        """What all members hold and shall hold; they shall know that we have the newest plan."""
        assert self.plan is not None
        if self._swarm.members()[self._swarm.node_id].plan_epoch != self.plan.epoch:
            await self._swarm.update(plan_epoch=self.plan.epoch)
        return View.of(self.plan, self._records(), silent)

    def _records(self) -> dict[NodeId, NodeRecord]:
        """The members', our own as it will be told: measured, and ready to act, also after a load that failed."""
        records = dict(self._swarm.members())
        if self._engine is not None:
            own = records[self._swarm.node_id]
            records[self._swarm.node_id] = replace(own, hardware=self._engine.hardware, state="starting")
        return records

    def _told(self) -> tuple[HeldRange, ...]:
        told = self._ranges.told()
        if self._loading is not None and self.plan is not None:
            told = [*told[: MOST_TOLD - 1], HeldRange(*self._loading, "loading", self.plan.epoch, self.plan.weights)]
        return tuple(told)

    def _holding(self) -> RecordChanges:
        """What is held, and what runs it."""
        if (serving := self._ranges.serving()) is None:
            return {"held": self._told()}
        info = serving.stage.info
        return {
            "held": self._told(),
            "backend": info.backend,
            "quantisation": info.quantisation[:QUANTISATION_LIMIT],
            "drift_class": info.drift_class[:DRIFT_CLASS_LIMIT],
        }

    async def _tell(self) -> None:
        self._retiring.wake()
        await self._swarm.update(**self._holding())

    async def _tell_failure(self, error: ParallaxError | OSError) -> None:
        self._failed, self._loading = True, None
        self._emit(Notice.of("error", str(error)))
        self._emit(ModelProgress(self.plan.model.name if self.plan else "", "failed", text=str(error)))
        await self._swarm.update(held=self._told(), state="failed", problem=str(error)[:500])
        log.error("%s; next try in %.0f s", error, self._retry_s)


def _goal_of(plan: Plan, target: Assignment | None) -> Goal | None:
    return (target.start, target.end, plan.weights) if target is not None else None
