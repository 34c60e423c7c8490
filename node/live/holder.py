"""Holds the layers that the plan gives this node: starts the engine, loads the new range before it drops the old one.

A crash of the engine worker is an event that the node survives: sequences on it end, another worker is started, the
range is loaded again.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

import trio
from msgspec.structs import replace

from node.engine.base import Engine, Stage, StageSpec
from node.errors import EngineError, ParallaxError, WorkerDied
from node.live.desk import ModelDesk
from node.pipeline.pipeline import Pipeline
from node.plan.decide import memory_for_model, siblings_of
from node.swarm.base import Swarm
from node.wire.events import Event, ModelProgress, Notice
from node.wire.models import ModelFacts
from node.wire.plans import Plan
from node.wire.records import HeldRange

log = logging.getLogger(__name__)

RETRY_S, RETRY_MOST_S = 15.0, 600.0
"""After a load that failed: long enough to free memory or disk, short enough to notice. Doubled while it goes on, since
each new try moves the others' layers too."""

RESTART_FIRST_S, RESTART_MOST_S = 0.5, 30.0
"""Pause before another worker is started; doubled each time one dies young."""

MIN_KV_BYTES = 64 * 1024 * 1024

MAX_PARTS = 4
"""Parts of a range that routes may ask for; each gets that share of the KV memory."""


class MortalEngine(Engine, Protocol):
    """An engine whose end can be awaited."""

    died: trio.Event


OpenEngine = Callable[[int], AbstractAsyncContextManager[MortalEngine]]
"""Starts a worker with that many threads."""


@dataclass(slots=True)
class _Held:
    """A loaded range."""

    stage: Stage
    start: int
    end: int
    weights: str
    """Which model in which arithmetic; a plan for another one cannot use it."""
    epoch: int
    state: Literal["ready", "draining"] = "ready"
    part: bool = False
    """Made for a route that uses only a part of a wider range; shares its tensors, and goes when that goes."""

    def covers(self, start: int, end: int) -> bool:
        return self.start <= start and end <= self.end


class Holder:
    """This node's engine and the ranges it holds."""

    def __init__(
        self, swarm: Swarm, desk: ModelDesk, open_engine: OpenEngine, emit: Callable[[Event], object], cores: int
    ) -> None:
        self._swarm, self._desk, self._open_engine, self._emit = swarm, desk, open_engine, emit
        self._cores = cores
        self._plan: Plan | None = None
        self._held: list[_Held] = []
        self._loading: tuple[int, int] | None = None
        self._engine: MortalEngine | None = None
        self._wake = trio.Event()
        self._transition = trio.CancelScope()
        self._load_lock = trio.Lock()
        self._retry_s = RETRY_S
        self.pipeline: Pipeline | None = None

    @property
    def kv_tokens(self) -> int:
        """Room of the range that serves now."""
        return next((held.stage.info.kv_tokens for held in self._held if held.state == "ready" and not held.part), 0)

    def follow(self, plan: Plan) -> None:
        """A new plan is in force. What is being loaded for an older one is given up unless it is still wanted."""
        target = plan.range_of(self._swarm.node_id)
        if self._loading is not None and (target is None or self._loading != (target.start, target.end)):
            self._transition.cancel()
        self._plan = plan
        self._wake.set()

    async def lookup(self, start: int, end: int, weights: str) -> Stage | None:
        """The stage for exactly [start, end): a held one, or a part of it that shares its tensors.

        Raises:
            ParallaxError: such a part cannot be loaded.
        """
        async with self._load_lock if self._exact(start, end, weights) is None else nullcontext():
            if (exact := self._exact(start, end, weights)) is not None:
                return exact
            wider = next((h for h in self._held if h.covers(start, end) and h.weights == weights and not h.part), None)
            engine, plan = self._engine, self._plan
            parts = sum(held.part for held in self._held)
            if wider is None or engine is None or plan is None or plan.weights != weights or parts >= MAX_PARTS:
                return None
            stage = await engine.load(await self._spec(engine, plan, start, end, share=MAX_PARTS))
            if wider not in self._held or self._engine is not engine:
                await stage.close()
                return None
            self._held.append(_Held(stage, start, end, weights, wider.epoch, part=True))
            return stage

    def _exact(self, start: int, end: int, weights: str) -> Stage | None:
        return next((h.stage for h in self._held if (h.start, h.end, h.weights) == (start, end, weights)), None)

    def ranges(self) -> tuple[HeldRange, ...]:
        """What the record says; parts of a wider range are nobody else's business."""
        told = [HeldRange(h.start, h.end, h.state, h.epoch) for h in self._held if not h.part]
        if self._loading is not None and self._plan is not None:
            told.append(HeldRange(*self._loading, "loading", self._plan.epoch))
        return tuple(told[:8])

    async def use_threads(self) -> None:
        """Divide the machine's cores among its nodes."""
        if self._engine is not None and not self._engine.died.is_set():
            try:
                await self._engine.set_threads(self.threads())
            except WorkerDied as error:
                log.warning("%s", error)

    def threads(self) -> int:
        """This node's share of the cores."""
        records = self._swarm.members()
        own = records[self._swarm.node_id]
        return max(1, self._cores // max(1, siblings_of(records)[own.machine_id]))

    async def run(self) -> None:
        """Keep an engine alive and the plan's range on it, until cancelled."""
        pause_s = RESTART_FIRST_S
        first = True
        while True:
            started_s = trio.current_time()
            try:
                async with self._worker() as engine:
                    await self._serve(engine)
            except (EngineError, OSError) as error:  # it did not even start
                if first:
                    raise
                log.error("%s", error)
            first = False
            if trio.current_time() - started_s > 60:
                pause_s = RESTART_FIRST_S
            self._emit(Notice("error", f"the engine worker died; another is started in {pause_s:.1f} s"))
            await self._swarm.update(state="starting", held=(), problem="the engine worker died and is started again")
            await trio.sleep(pause_s)
            pause_s = min(RESTART_MOST_S, pause_s * 2)

    @asynccontextmanager
    async def _worker(self) -> AsyncIterator[MortalEngine]:
        async with self._open_engine(self.threads()) as engine:
            self._engine = engine
            try:
                yield engine
            finally:
                self._engine = None
                for held in self._held:
                    if self.pipeline is not None:
                        self.pipeline.stage.drop_all_on(held.stage, "its engine worker died")
                self._held.clear()
                self._loading = None

    async def _serve(self, engine: MortalEngine) -> None:
        """Follow plans on one worker until it dies."""
        await self._swarm.update(hardware=engine.hardware)
        self._wake.set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_plans, engine)
            nursery.start_soon(self._retire)
            await engine.died.wait()
            nursery.cancel_scope.cancel()

    async def _follow_plans(self, engine: MortalEngine) -> None:
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            if self._plan is None:
                continue
            with trio.CancelScope() as self._transition:
                try:
                    await self._move_to(engine, self._plan)
                except (ParallaxError, OSError) as error:
                    if engine.died.is_set():
                        return
                    await self._tell_failure(error)
                    await trio.sleep(self._retry_s)
                    self._retry_s = min(RETRY_MOST_S, 2 * self._retry_s)
                    self._wake.set()
            self._loading = None

    async def _move_to(self, engine: MortalEngine, plan: Plan) -> None:
        target = plan.range_of(self._swarm.node_id)
        if target is None:
            for held in self._held:
                held.state = "draining"
            await self._swarm.update(held=self.ranges(), plan_epoch=plan.epoch, state="standby", problem="")
            return
        if any(held.weights != plan.weights for held in self._held):
            await self._drop_held("the swarm serves another model now")
        same = next((h for h in self._held if not h.part and (h.start, h.end) == (target.start, target.end)), None)
        if same is None:
            same = await self._load(engine, plan, target.start, target.end)
        for held in self._held:
            if not held.part:
                held.state = "ready" if held is same else "draining"
        same.epoch = plan.epoch
        await self._swarm.update(held=self.ranges(), plan_epoch=plan.epoch, state="serving", problem="")
        self._emit(ModelProgress(plan.model.name, "ready", text=f"layers {target.start}–{target.end - 1}"))

    async def _load(self, engine: MortalEngine, plan: Plan, start: int, end: int) -> _Held:
        self._loading = (start, end)
        await self._swarm.update(held=self.ranges(), plan_epoch=plan.epoch)
        if not self._both_fit(engine, plan.facts, start, end):
            await self._drop_held("its layers make room for the new plan's")
        spec = await self._spec(engine, plan, start, end)
        self._emit(ModelProgress(plan.model.name, "load", text=f"layers {start}–{end - 1}"))
        async with self._load_lock:
            stage = await engine.load(spec)
        held = _Held(stage, start, end, plan.weights, plan.epoch)
        self._held.append(held)
        self._loading = None
        self._retry_s = RETRY_S
        log.info("layers [%d, %d) are ready after %.1f s", start, end, stage.info.load_s)
        return held

    async def _spec(self, engine: Engine, plan: Plan, start: int, end: int, share: int = 1) -> StageSpec:
        """What to load; `share` divides the KV memory."""
        folder = await self._desk.weights(plan.model, start, end)
        kv_bytes = max(MIN_KV_BYTES, (self._budget_bytes(engine) - _weight_bytes(plan.facts, start, end)) // share)
        return StageSpec(str(folder), start, end, plan.dtype, kv_bytes)

    def _budget_bytes(self, engine: Engine) -> int:
        records = self._swarm.members()
        own = replace(records[self._swarm.node_id], hardware=engine.hardware)  # may not be published yet
        return memory_for_model(own, siblings_of(records)[own.machine_id])

    def _both_fit(self, engine: Engine, facts: ModelFacts, start: int, end: int) -> bool:
        """Whether old and new range fit side by side; layers in both are held once."""
        covered = {layer for held in self._held for layer in range(held.start, held.end)} | set(range(start, end))
        ends = facts.embedding_bytes + facts.head_bytes
        return len(covered) * facts.layer_bytes + ends + MIN_KV_BYTES <= self._budget_bytes(engine)

    async def _drop_held(self, reason: str) -> None:
        """Drop every range. Whatever interrupts it, nothing stays listed that has been closed."""
        while self._held:
            await self._close(self._held.pop(), reason)
        await self._swarm.update(held=self.ranges())

    async def _close(self, held: _Held, reason: str) -> None:
        """End the sequences on a range that is no longer listed, and free its weights."""
        if self.pipeline is not None:
            self.pipeline.stage.drop_all_on(held.stage, reason)
        with trio.CancelScope(shield=True):  # waits for the engine's present step at most
            await held.stage.close()

    async def _retire(self) -> None:
        """Drop ranges of older plans once the new plan's layers are all ready and no sequence runs on the old ones."""
        while True:
            await trio.sleep(0.5)
            done = next((held for held in self._held if self._is_done(held)), None)
            if done is not None:
                self._held.remove(done)
                await self._close(done, "its layers went to other nodes")
                await self._swarm.update(held=self.ranges())

    def _is_done(self, held: _Held) -> bool:
        in_use = self.pipeline is not None and self.pipeline.stage.uses(held.stage)
        return not in_use and (self._widow(held) if held.part else self._outdated(held))

    def _outdated(self, held: _Held) -> bool:
        if held.state != "draining" or self._plan is None:
            return False
        ready = (range_ for r in self._swarm.members().values() for range_ in r.held if range_.state == "ready")
        covered = {layer for range_ in ready for layer in range(range_.start, range_.end)}
        return covered.issuperset(range(self._plan.facts.layers))

    def _widow(self, part: _Held) -> bool:
        """Whether the range that the part was made from is gone."""
        return not any(not h.part and h.covers(part.start, part.end) for h in self._held)

    async def _tell_failure(self, error: ParallaxError | OSError) -> None:
        self._loading = None
        self._emit(Notice("error", str(error)))
        self._emit(ModelProgress(self._plan.model.name if self._plan else "", "failed", text=str(error)))
        await self._swarm.update(held=self.ranges(), state="failed", problem=str(error)[:500])
        log.error("%s; next try in %.0f s", error, self._retry_s)


def _weight_bytes(facts: ModelFacts, start: int, end: int) -> int:
    ends = (facts.embedding_bytes if start == 0 else 0) + (facts.head_bytes if end == facts.layers else 0)
    return (end - start) * facts.layer_bytes + ends
