"""One node's rooms joined: news from the swarm goes to the planner, plans to the engine, all of it into the journal."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import trio
from msgspec.structs import replace

from node.api.service import Service
from node.config import Settings
from node.engine.backends import installed_on
from node.engine.machine import core_count
from node.errors import ParallaxError
from node.home import Home
from node.journal.log import Journal
from node.live.engine_supervisor import EngineSupervisor, OpenEngine
from node.live.leaving import Leaving
from node.live.model_store import ModelStore
from node.live.planner import Planner
from node.live.remembered import Remembered
from node.live.remembering import Remembering
from node.live.served_ranges import ServedRanges
from node.models import ChatModel
from node.pipeline.dispatch import Dispatcher
from node.pipeline.pipeline import Pipeline
from node.plan.live.propose import Proposal
from node.swarm.base import LinkLost, MemberGone, MemberSeen, Misbehaved, PlanHeard, Swarm
from node.wire.events import Event, NodeGone, NodeSeen, Notice, PlanAdopted
from node.wire.layer_range import layer_range
from node.wire.models import ModelRef
from node.wire.plans import MOST_NODES, Plan, PlanSettings
from node.wire.records import NodeRecord

log = logging.getLogger(__name__)

LAST_WORDS_S = 0.5
"""For the ends of answers to reach their clients."""

REPORT_EVERY_S, REPORT_SOON_S = 1.0, 0.2
"""Sooner where a request comes or goes: other heads shall not send theirs to a node that is busy by now."""


class Member:
    """This node as a member of its swarm. Also what the HTTP service knows of it (`node.api.service.NodeControl`)."""

    def __init__(
        self, settings: Settings, home: Home, swarm: Swarm, remembered: Remembered, open_engine: OpenEngine
    ) -> None:
        self._settings, self._home, self._swarm, self._remembered = settings, home, swarm, remembered
        self.journal = Journal(swarm.node_id)
        self.model_store = ModelStore(
            home.models,
            self.emit,
            quantise=settings.quantize,
            backends=[backend.name for backend in installed_on("cpu")],
        )
        ranges = ServedRanges()
        self.pipeline = Pipeline(swarm, ranges, lambda error: log.error("%s", error))
        self.engine_supervisor = EngineSupervisor(
            swarm,
            self.model_store,
            ranges,
            self.pipeline.stage,
            open_engine,
            self.emit,
            core_count(),
            settings.threads,
            settings.quantize,
        )
        self.planner = Planner(
            swarm,
            self.model_store.metadata,
            self._adopt,
            self.emit,
            min_nodes=settings.min_nodes,
            knows_peers=remembered.epoch > 0,
            joins=bool(settings.join),
            last_epoch=remembered.epoch,
            settings=_first_settings(settings, remembered),
        )
        self.dispatcher = Dispatcher(swarm.node_id, self.pipeline.head, self.plan, swarm.members, self.emit)
        self.remembering = Remembering(remembered, self.plan, swarm.members, self._ask_for)
        self.service = Service(self, self.dispatcher, self.journal)
        self._leaving = Leaving(swarm, ranges, self.plan, self._busy)
        self._wanted: ModelRef | None = None
        self._learning: ModelRef | None = None
        self._names: dict[str, str] = {}
        self._nursery: trio.Nursery | None = None

    # --- what the HTTP service asks ---------------------------------------------------------------------------------

    def plan(self) -> Plan | None:
        return self.planner.plan

    def chat_model(self) -> ChatModel | None:
        metadata = self.model_store.known(self.planner.plan.model) if self.planner.plan is not None else None
        return metadata.chat if metadata is not None else None

    def records(self) -> Iterable[NodeRecord]:
        return self._swarm.members().values()

    def names(self) -> dict[str, str]:
        """Of all nodes seen in this run, by id."""
        return dict(self._names)

    def invitation(self) -> str:
        return self._swarm.invitation()

    def models_folder(self) -> Path:
        return self._home.models

    @property
    def leaving(self) -> bool:
        return self._leaving.begun

    async def propose(self, settings: PlanSettings | None = None) -> Proposal:
        return await self.planner.propose(settings)

    async def apply(self, settings: PlanSettings | None = None, epoch: int | None = None) -> Proposal:
        return await self.planner.apply(settings, epoch)

    def waiting_for(self) -> str:
        """Why nothing can be served now, in a sentence."""
        if self.leaving:
            return "this node is leaving the swarm; ask another one"
        state = self.journal.state
        if state.plan_problem:
            return state.plan_problem
        if state.plan is None:
            waiting = self.planner.waiting or "the nodes measure themselves, or none has named a model"
            return f"no plan yet: {waiting}; try again in a moment"
        if state.model.phase in ("fetch", "convert", "load", "failed"):
            return f"model {state.plan.model.name}: {state.model.phase} {state.model.text}".strip()
        gaps = ", ".join(layer_range(start, end) for start, end in state.uncovered())
        return f"layers {gaps} have no ready node; see `parallax status`" if gaps else "the tokenizer is being fetched"

    # --- running ----------------------------------------------------------------------------------------------------

    async def leave(self) -> None:
        """Let what runs here end and others take over what it holds, while `run` goes on; returns when it may end."""
        await self._leaving.run()
        self.dispatcher.close("this node was asked to end before the answer was whole; ask another one to go on")
        if self.pipeline.head.requests:
            await trio.sleep(LAST_WORDS_S)

    def _busy(self) -> bool:
        return self.pipeline.head.requests > 0 or self.pipeline.stage.sessions > 0

    def emit(self, event: Event) -> None:
        """Into the journal."""
        self.journal.append(event)

    async def run(self) -> None:
        """Everything but HTTP, until cancelled."""
        for problem in self._remembered.problems:
            self.emit(Notice.of("warning", problem))
        await self._swarm.update(plan_epoch=self._remembered.epoch)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(self.pipeline.run)
            nursery.start_soon(self._read_news)
            nursery.start_soon(self.engine_supervisor.run)
            nursery.start_soon(self.planner.run)
            nursery.start_soon(self._report)
            nursery.start_soon(self.remembering.run)
            await self._name_model()

    async def _name_model(self) -> None:
        """Say which model this node would serve, if it is one that may say so."""
        choice = self._settings.model
        ref: ModelRef | None = None
        if not choice and self._remembered.model is not None:
            ref = self._remembered.model
        elif choice or not self._settings.join:
            ref = await self.model_store.identify(choice)
        if ref is not None:
            self._wanted = ref
            await self._swarm.update(wanted_model=ref, wanted_dtype=self._settings.dtype)
            self.planner.wake()

    async def _read_news(self) -> None:
        async for news in self._swarm.news:
            match news:
                case MemberSeen(record=record):
                    self._note_name(record)
                    self.emit(NodeSeen(record))
                    self.dispatcher.heard(record)
                case MemberGone() as gone:
                    log.info("%s is gone: %s", gone.name, gone.why)
                    self.emit(NodeGone(gone.node_id, gone.name, gone.why))
                    self.pipeline.member_gone(gone.node_id, gone.why)
                    self.dispatcher.changed()
                    self.planner.member_gone(gone)
                case LinkLost(node_id=peer, reason=reason, lanes=lanes):
                    self.pipeline.link_lost(peer, f"the link broke: {reason}", lanes)
                case Misbehaved(what=what):
                    self.emit(Notice.of("warning", what))
                case PlanHeard(plan=plan):
                    self.planner.heard(plan)
            self.planner.wake()
            self.remembering.stir()

    async def _ask_for(self, model: ModelRef) -> None:
        """From the moment that a model is served this node asks for it, as it would after a start."""
        if not self._settings.model:
            await self._swarm.update(wanted_model=model)

    def _note_name(self, record: NodeRecord) -> None:
        self._names.pop(record.node_id, None)
        self._names[record.node_id] = record.name
        if len(self._names) > MOST_NODES:
            del self._names[next(iter(self._names))]

    def _adopt(self, plan: Plan) -> None:
        self.emit(PlanAdopted(plan))
        self.remembering.stir()
        if self._settings.model and self._wanted is not None and self._wanted != plan.model:
            text = f"the swarm serves {plan.model.name}; --model {self._settings.model} applies to a swarm of your own"
            log.warning(text)
            self.emit(Notice.of("warning", text))
        self.engine_supervisor.follow(plan)
        self.dispatcher.changed()
        if self._nursery is not None and self._learning != plan.model:
            self._learning = plan.model
            self._nursery.start_soon(self._learn, plan.model)

    async def _learn(self, model: ModelRef) -> None:
        """Fetch what a head needs: config and tokenizer."""
        while (
            self.planner.plan is not None and self.planner.plan.model == model and self.model_store.known(model) is None
        ):
            try:
                await self.model_store.metadata(model)
                self.journal.stir()
            except (ParallaxError, OSError) as error:
                log.error("%s", error)
                self.emit(Notice.of("error", str(error)))
                await trio.sleep(15)

    async def _report(self) -> None:
        """Tell the swarm and our own journal how this node is."""
        threads = 0
        told: NodeRecord | None = None
        while True:
            stage = self.pipeline.stage
            changed = stage.load_changed
            await self._swarm.update(
                kv_tokens_total=self.engine_supervisor.kv_tokens,
                kv_tokens_used=self.engine_supervisor.kv_tokens_used,
                sessions=stage.sessions,
                load=stage.load,
                queue_depth=stage.queue_depth,
                layer_latency=stage.times.layer(),
                head_ms=stage.times.head_ms,
                overhead_ms=stage.times.overhead_ms,
                prompt_row_ms=stage.times.prompt_row_ms,
                mbps=self.pipeline.link_rates.told(self._swarm.members()),
            )
            record = self._swarm.members()[self._swarm.node_id]
            if record != told:
                told = record
                self.emit(NodeSeen(record))
            if threads != (threads := self.engine_supervisor.threads()):
                await self.engine_supervisor.use_threads()
            with trio.move_on_after(REPORT_EVERY_S):
                await changed.wait()
                await trio.sleep(REPORT_SOON_S)


def _first_settings(settings: Settings, remembered: Remembered) -> PlanSettings:
    """Of a swarm that this node starts or restarts; one that is there already has its own."""
    if settings.objective is None:
        return remembered.settings
    return replace(remembered.settings, objective=settings.objective)
