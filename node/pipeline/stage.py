"""The stage's side of every sequence that passes through this node: joins its door, its engine's loop and its sender.

`handle` never waits: it checks, queues and returns.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

import trio

from node.engine.base import Stage
from node.errors import WorkerDied
from node.pipeline.admission import Admission
from node.pipeline.credit import Credits
from node.pipeline.endings import Endings
from node.pipeline.engine_loop import EngineLoop
from node.pipeline.idle_probe import IdleProbe
from node.pipeline.intake import Intake
from node.pipeline.latency import StepTimes
from node.pipeline.openings import Openings
from node.pipeline.outbox import Outbox
from node.pipeline.preemption import Preemption
from node.pipeline.sender import Sender
from node.pipeline.sessions import Sessions
from node.pipeline.stage_session import StageSession
from node.pipeline.stages import Stages
from node.pipeline.work import Done, Incoming, Work
from node.swarm.base import LANES, Arrival, Lane
from node.wire.frames import Close, Failed, Probe, ProbeReply, Route, Sampled, Step
from node.wire.ids import NodeId

log = logging.getLogger(__name__)

IDLE_LIMIT_S = 600.0
"""A sequence without a frame for this long is freed: its head lost its way to us without dying."""


class StageRunner:
    """Runs the sequences that pass through this node."""

    def __init__(
        self,
        self_id: NodeId,
        stages: Stages,
        outbox: Outbox,
        worker_failed: Callable[[WorkerDied], None],
        is_member: Callable[[NodeId], bool],
    ) -> None:
        self.times = StepTimes()
        self.idle_probe = IdleProbe(self.times, lambda: self.idle)
        self._self_id, self._outbox = self_id, outbox
        self._sessions, self._openings, self._credits = Sessions(), Openings[Incoming](), Credits()
        self._loop = EngineLoop(self._sessions, self.times, self._ran, self._failed, self._starved, worker_failed)
        self._endings = Endings(self_id, self._sessions, self._loop, self._credits, outbox)
        self._preemption = Preemption(self._sessions, self._endings)
        self._intake = Intake(self._sessions, self._openings, self._loop, self._endings, self._credits)
        self._sender = Sender(outbox, self._failed)
        self._admission = Admission(
            self_id,
            stages,
            self._sessions,
            self._openings,
            self._intake,
            self._loop,
            self._endings,
            self._credits,
            outbox,
            self.idle_probe,
            is_member,
            worker_failed,
        )
        self._nursery: trio.Nursery | None = None

    @property
    def sessions(self) -> int:
        """Sequences open at this node."""
        return self._sessions.count

    @property
    def load(self) -> float:
        """Of them: how many are here at a time when each is spread evenly over its chain."""
        return self._sessions.load

    @property
    def load_changed(self) -> trio.Event:
        """Set, and replaced, when a sequence begins or ends here."""
        return self._sessions.changed

    @property
    def queue_depth(self) -> int:
        """Steps that wait for the engine."""
        return len(self._loop)

    @property
    def reserved_bytes(self) -> int:
        """KV cache that is taken, over all sequences and hops, each on its own range."""
        return self._sessions.reserved_bytes

    @property
    def idle(self) -> bool:
        """Whether no sequence is open, comes or goes; a step of one that was closed meanwhile counts too."""
        busy = self._admission.is_busy or self._endings.is_closing or self._loop.is_running
        return not (len(self._sessions) or busy)

    def uses(self, stage: Stage) -> bool:
        """Whether a sequence still runs on `stage`, or is about to."""
        return bool(self._sessions.on(stage)) or self._admission.uses(stage)

    async def run(self) -> None:
        """Run queued work until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._endings.run)
            try:
                await self._loop.run()
            finally:
                self._nursery = None

    # --- frames in: never waits -------------------------------------------------------------------------------------

    def handle(self, arrival: Arrival) -> None:
        """Take one frame that concerns a stage. Bad or unknown ones are dropped or answered, never raised."""
        frame = arrival.frame
        match frame:
            case Route():
                opening = self._admission.take(arrival.peer, frame) if self._nursery is not None else None
                if opening is not None and self._nursery is not None:
                    # In a task of its own: the engine opens it after what it does now.
                    self._nursery.start_soon(self._admission.open, opening)
            case Step():
                self._intake.step(arrival, frame)
            case Sampled():
                self._intake.sampled(arrival, frame)
            case Probe():
                self._answer(arrival.peer, frame)
            case Failed():
                self._pass_on(arrival.peer, frame)
            case Close():
                self._openings.close(frame.session, arrival.peer, frame.attempt)
                for session in self._sessions.of(frame.session):
                    if arrival.peer == session.head and session.route.attempt <= frame.attempt:
                        self._endings.drop(session, frame.keep)
            case _:
                log.debug("a %s frame is nothing for a stage", type(frame).__name__)

    def _answer(self, peer: NodeId, probe: Probe) -> None:
        """How far the head's sequence is here."""
        for opening in self._openings.all():
            route = opening.route
            if (route.sequence.session, route.sequence.head) == (probe.session, peer):
                self._outbox.post(
                    peer, ProbeReply(probe.session, probe.attempt, route.hop, 0, 1 + len(opening.held_back))
                )
        for session in self._sessions.of(probe.session):
            if session.head == peer and session.route.attempt == probe.attempt:
                hop, waiting = session.route.hop, session.waiting_steps
                self._outbox.post(peer, ProbeReply(probe.session, probe.attempt, hop, session.done, waiting))

    def _pass_on(self, peer: NodeId, frame: Failed) -> None:
        """A neighbour in a chain cannot reach the head, and says so to us, who may."""
        for session in self._sessions.of(frame.session):
            if session.head == self._self_id:
                return
            neighbours = (session.upstream, session.downstream, NodeId(session.route.chain[-1].node_id))
            if session.route.attempt == frame.attempt and peer in neighbours and peer != session.head:
                reason = f"it cannot reach the head: {frame.reason}"[:1000]
                told = Failed(frame.session, frame.attempt, reason, "link", peer, session.head)
                self._outbox.post(session.head, told)
                return

    # --- what becomes of sequences ----------------------------------------------------------------------------------

    def fail_session(self, session_id: str, reason: str) -> None:
        """A sequence cannot go on at this node."""
        for session in self._sessions.of(session_id):
            self._endings.end(session, reason)

    def member_gone(self, peer: NodeId, reason: str) -> None:
        """A member is gone: sequences that need it keep their KV for another way, those that it is head of end.

        Heads are told even where they are gone themselves: it may be that only we cannot reach one that others see.
        """
        for session in self._sessions:
            if peer in session.members():
                self._endings.suspend(session, reason, peer)
                if peer == session.head:
                    self._endings.drop(session)

    def link_lost(self, peer: NodeId, reason: str, lanes: Collection[Lane] = LANES) -> None:
        """Lanes of the link with a member broke: frames of sequences that use them may be lost."""
        for session in self._sessions:
            if session.needs_link(peer) and ("steps" in lanes or session.needs_bulk):
                self._endings.suspend(session, reason, peer)

    def drop_all_on(self, stage: Stage, reason: str) -> None:
        """A stage is gone: every sequence on it ends with `reason`."""
        for session in self._sessions.on(stage):
            self._endings.end(session, reason)

    def drop_idle(self) -> None:
        """Free sequences that nobody has touched for `IDLE_LIMIT_S`."""
        for session in self._sessions:
            if trio.current_time() - session.last_active_s > IDLE_LIMIT_S:
                self._endings.end(session, f"no frame for {IDLE_LIMIT_S:.0f} s")

    def _failed(self, session: StageSession, reason: str) -> None:
        self._endings.end(session, reason)

    def _starved(self, works: list[Work], free_tokens: int) -> None:
        self._preemption.make_room(works, free_tokens)

    def _ran(self, results: list[Done]) -> None:
        self._sender.send(results)
