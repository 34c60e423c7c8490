"""The stage's side of every sequence that passes through this node.

One step runs at a time. Decode steps go before prompt chunks, so that a long prompt never delays an answer that
streams; prompts come in chunks for the same reason. `handle` never waits: it checks, queues and returns.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import trio
from msgspec.structs import replace

from node.engine.base import Stage, Step, StepResult
from node.errors import EngineError, OutOfKV, Overloaded, ParallaxError, WorkerDied
from node.pipeline.idle_probe import IdleProbe
from node.pipeline.latency import StepTimes
from node.pipeline.openings import Openings
from node.pipeline.outbox import Outbox
from node.pipeline.stage_session import StageSession, timing
from node.pipeline.work_queue import WorkQueue
from node.swarm.base import Arrival, Buffer
from node.wire.frames import Activations, Close, Failed, Frame, Hop, Open, Progress, Sampled, Tokens
from node.wire.ids import NodeId

log = logging.getLogger(__name__)

MAX_SESSIONS = 256
"""A bound on what peers can make us remember, far above what KV memory admits."""

IDLE_LIMIT_S = 600.0
"""A sequence without a frame for this long is freed: its head lost its way to us without dying."""

StageLookup = Callable[[int, int, str], Awaitable[Stage | None]]
"""The ready stage for layers [start, end) of these weights, or None where this node does not hold them."""


@dataclass(frozen=True, slots=True)
class _Work:
    """A step that waits for the engine."""

    session: StageSession
    arrival: Arrival


class StageRunner:
    """Runs the sequences that pass through this node."""

    def __init__(
        self,
        self_id: NodeId,
        lookup: StageLookup,
        failed: Callable[[WorkerDied], None],
        is_member: Callable[[NodeId], bool],
    ) -> None:
        self.times = StepTimes()
        self.idle_probe = IdleProbe(self.times, lambda: self.idle)
        self._self_id, self._lookup, self._worker_failed, self._is_member = self_id, lookup, failed, is_member
        self._sessions: dict[tuple[str, int], StageSession] = {}
        self._openings = Openings()
        self._reserving: list[StageSession] = []
        self._running: StageSession | None = None
        self._work: WorkQueue[_Work] = WorkQueue()
        self._to_free: list[StageSession] = []
        self.load_changed = trio.Event()
        """Set, and replaced, when a sequence begins or ends here."""
        self._outbox: Outbox | None = None
        self._nursery: trio.Nursery | None = None

    def attach(self, outbox: Outbox) -> None:
        """Tell where results go; before `run`."""
        self._outbox = outbox

    @property
    def sessions(self) -> int:
        """Sequences open at this node."""
        return len({session for session, _ in self._sessions})

    @property
    def load(self) -> float:
        """Of them: how many are here at a time when each is spread evenly over its chain."""
        return sum(1 / len(session.opened.chain) for session in self._sessions.values())

    def _note_load(self) -> None:
        self.load_changed.set()
        self.load_changed = trio.Event()

    @property
    def queue_depth(self) -> int:
        """Steps that wait for the engine."""
        return len(self._work)

    @property
    def reserved_bytes(self) -> int:
        """KV cache set aside, over all sequences and hops, each on its own range."""
        return sum(s.opened.max_tokens * s.stage.info.kv_bytes_per_token for s in self._sessions.values())

    @property
    def idle(self) -> bool:
        """Whether no sequence is open, comes or goes; a step of one that was closed meanwhile counts too."""
        return not (self._sessions or self._openings or self._reserving or self._to_free or self._running)

    def uses(self, stage: Stage) -> bool:
        """Whether a sequence still runs on `stage`, or is about to."""
        return any(session.stage is stage for session in (*self._sessions.values(), *self._reserving))

    # --- frames in: never waits -------------------------------------------------------------------------------------

    def handle(self, arrival: Arrival) -> None:
        """Take one frame that concerns a stage. Bad or unknown ones are dropped or answered, never raised."""
        frame = arrival.frame
        match frame:
            case Open():
                self._open(arrival.peer, frame)
            case Tokens():
                self._step(arrival, frame, (frame.session, 0), decode=False)
            case Activations():
                self._step(arrival, frame, (frame.session, frame.hop), decode=frame.count == 1 and frame.position > 0)
            case Sampled():
                self._step(arrival, frame, (frame.session, 0), decode=True)
            case Close():
                self._openings.close(frame.session, arrival.peer)
                for session in self._of(frame.session):
                    if arrival.peer == session.head:
                        self._drop(session)
            case _:
                log.debug("a %s frame is nothing for a stage", type(frame).__name__)

    def fail_session(self, session_id: str, reason: str) -> None:
        """A sequence cannot go on at this node."""
        for session in self._of(session_id):
            self._fail(session, reason)

    def drop_all_with(self, peer: NodeId, reason: str) -> None:
        """A member is gone: free every sequence that needs it, and tell the heads.

        Heads that are gone themselves are told too: it may be that only we cannot reach a node that others still see.
        """
        for session in list(self._sessions.values()):
            if peer in session.needs():
                self._fail(session, reason, unreachable=peer)

    def drop_all_on(self, stage: Stage, reason: str) -> None:
        """A stage is gone: every sequence on it ends with `reason`."""
        for session in list(self._sessions.values()):
            if session.stage is stage:
                self._fail(session, reason)

    def drop_idle(self) -> None:
        """Free sequences that nobody has touched for `IDLE_LIMIT_S`."""
        for session in list(self._sessions.values()):
            if trio.current_time() - session.last_active_s > IDLE_LIMIT_S:
                self._fail(session, f"no frame for {IDLE_LIMIT_S:.0f} s")

    def _of(self, session_id: str) -> list[StageSession]:
        return [session for (name, _), session in self._sessions.items() if name == session_id]

    def _open(self, peer: NodeId, frame: Open) -> None:
        key = (frame.session, frame.hop)
        if key in self._sessions or key in self._openings:
            return  # repeated
        problem = self._problem_with(peer, frame)
        if problem:
            log.info("refused a sequence from %s: %s", peer, problem)
            self._post(NodeId(frame.head), Failed(frame.session, frame.epoch, problem, "refused"))
        elif self._nursery is not None and self._openings.begin(frame):
            # In a task of its own: finding the stage may mean loading one, and the engine's loop must not wait for it.
            self._nursery.start_soon(self._run_open, frame)

    def _problem_with(self, peer: NodeId, frame: Open) -> str:
        """Why an `Open` cannot be taken; empty where it can."""
        if frame.hop >= len(frame.chain) or frame.chain[frame.hop].node_id != self._self_id:
            return "its chain does not name this node at that hop"
        if peer != (frame.head if frame.hop == 0 else frame.chain[frame.hop - 1].node_id):
            return "it did not come from the hop before"
        if not _tiles(frame.chain):
            return "its chain leaves out or repeats layers"
        if len(self._sessions) + len(self._openings) >= MAX_SESSIONS:
            return f"{MAX_SESSIONS} sequences are open already"
        return ""

    def _step(
        self, arrival: Arrival, frame: Tokens | Activations | Sampled, key: tuple[str, int], *, decode: bool
    ) -> None:
        if key in self._openings:
            if not self._openings.hold_back(key, arrival, frame):
                opened = self._openings.give_up(key)
                assert opened is not None
                self._post(NodeId(opened.head), Failed(opened.session, opened.epoch, "a frame out of turn", "refused"))
            return
        session = self._sessions.get(key)
        if session is None:
            return  # closed meanwhile, or never ours
        match session.judge(arrival.peer, frame, len(arrival.body)):
            case "run":
                session.last_active_s = trio.current_time()
                self._work.push(_Work(session, arrival), decode=decode)
            case "refuse":
                self._fail(session, f"a frame at position {frame.position} where {session.due} was due", "refused")
            case "ignore":
                log.debug("ignored a frame at position %d", frame.position)

    # --- the engine's loop ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run queued work until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                while True:
                    await self._free_dropped()
                    work = self._work.pop()
                    if work is None:
                        await self._work.wait()
                    elif self._sessions.get(work.session.key) is work.session:
                        self._running = work.session
                        await self._run_step(work.session, work.arrival)
                        self._running = None
            finally:
                self._nursery = None

    async def _free_dropped(self) -> None:
        while self._to_free:
            session = self._to_free.pop()
            try:
                await session.stage.free(_engine_key(session))
            except WorkerDied as error:
                self._worker_failed(error)

    async def _run_open(self, frame: Open) -> None:
        key, hop = (frame.session, frame.hop), frame.chain[frame.hop]
        failure: Failed | None = None
        session: StageSession | None = None
        try:
            stage = await self._lookup(hop.start, hop.end, frame.weights)
            if stage is None:
                reason = f"layers {hop.start}–{hop.end - 1} are not ready on this node"
                failure = Failed(frame.session, frame.epoch, reason, "refused")
            else:
                session = StageSession(frame, stage, trio.current_time())
                await self._free_dropped()  # what was closed before this one came must not stand in its way
                await self._reserve(session)
        except (OutOfKV, Overloaded) as error:
            failure = Failed(frame.session, frame.epoch, str(error), "overloaded")
        except (ParallaxError, OSError) as error:  # a part of a range is loaded: files may be gone by now
            failure = Failed(frame.session, frame.epoch, str(error)[:1000])
            if isinstance(error, WorkerDied):
                self._worker_failed(error)
        held_back = self._openings.finish(key)
        if failure is not None:
            self._post(NodeId(frame.head), failure)
            return
        assert session is not None
        if held_back is None:  # closed while it was being opened
            self._to_free.append(session)
            self._work.wake()
            return
        self._sessions[key] = session
        self._note_load()
        gone = next((node for node in session.needs() if not self._is_member(node)), None)
        if gone is not None:  # it left while the sequence was being opened: its farewell came too early for it
            self.drop_all_with(gone, "it is gone")
            return
        if session.downstream is not None:
            self._post(session.downstream, replace(frame, hop=frame.hop + 1))
        for arrival in held_back:
            self.handle(arrival)

    async def _reserve(self, session: StageSession) -> None:
        self._reserving.append(session)
        try:
            await self.idle_probe.over()
            await session.stage.reserve(_engine_key(session), session.opened.max_tokens)
        finally:
            self._reserving.remove(session)

    async def _run_step(self, session: StageSession, arrival: Arrival) -> None:
        started_s = perf_counter()
        frame = arrival.frame
        assert isinstance(frame, Tokens | Activations | Sampled)
        step = _step_of(session, frame, arrival.body)
        try:
            result = await session.stage.run(step)
        except WorkerDied as error:
            self._worker_failed(error)
            return
        except EngineError as error:
            self._fail(session, str(error))
            return
        if self._sessions.get(session.key) is not session:
            return  # closed while it ran
        queue_ms = max(0.0, (started_s - arrival.received_s) * 1e3)
        stamp = timing(
            session,
            self._self_id,
            wire_ms=arrival.wire_ms,
            queue_ms=queue_ms,
            compute_ms=result.compute_ms,
            total_ms=(perf_counter() - arrival.received_s) * 1e3,
        )
        if step.count == 1 and step.position:
            self.times.add(stamp.end - stamp.start, result, stamp.serialise_ms)
        earlier = frame.timings if isinstance(frame, Activations) else ()
        self._send_result(session, frame, step, result, (*earlier, stamp))

    def _send_result(
        self,
        session: StageSession,
        frame: Tokens | Activations | Sampled,
        step: Step,
        result: StepResult,
        timings: tuple[object, ...],
    ) -> None:
        opened = session.opened
        final = True if isinstance(frame, Sampled) else frame.final
        if session.downstream is not None:
            onward = Activations(
                opened.session,
                opened.epoch,
                step.position,
                step.count,
                session.stage.info.hidden_size,
                session.stage.info.dtype,
                opened.hop + 1,
                final,
                0.0,
                timings,  # type: ignore[arg-type]
            )
            self._post(session.downstream, onward, result.data)
        elif not final:
            self._post(session.head, Progress(opened.session, opened.epoch, step.position + step.count))
        elif result.token is None:
            self._fail(session, "the last stage gave no token")
        else:
            finish = session.finish_after(result.token)
            position = step.position + step.count
            sampled = Sampled(opened.session, opened.epoch, position, result.token, finish, 0.0, timings)  # type: ignore[arg-type]
            if finish is None and session.first != session.head:
                self._post(session.first, sampled)
            self._post(session.head, sampled)

    # --- endings ----------------------------------------------------------------------------------------------------

    def _fail(
        self,
        session: StageSession,
        reason: str,
        kind: Literal["lost", "refused"] = "lost",
        unreachable: NodeId | None = None,
    ) -> None:
        opened = session.opened
        self._drop(session)
        self._post(session.head, Failed(opened.session, opened.epoch, reason[:1000], kind, unreachable))

    def _drop(self, session: StageSession) -> None:
        if self._sessions.pop(session.key, None) is not None:
            self._note_load()
            self._to_free.append(session)
            self._work.wake()

    def _post(self, peer: NodeId, frame: Frame, body: Buffer = b"") -> None:
        assert self._outbox is not None
        self._outbox.post(peer, frame, body)


def _engine_key(session: StageSession) -> str:
    """The engine's name for the sequence at this hop: one node may be two hops of a chain."""
    return f"{session.opened.session}/{session.opened.hop}"


def _tiles(chain: tuple[Hop, ...]) -> bool:
    ends = [0, *(hop.end for hop in chain)]
    return all(hop.start == ends[index] and hop.end > hop.start for index, hop in enumerate(chain))


def _step_of(session: StageSession, frame: Tokens | Activations | Sampled, body: Buffer) -> Step:
    """The engine's step for a frame."""
    key = _engine_key(session)
    if isinstance(frame, Sampled):
        sampling = session.opened.sampling if session.is_tail else None
        return Step(key, frame.position, 1, frame.token.to_bytes(4, "little"), None, sampling)
    sampling = session.opened.sampling if session.is_tail and frame.final else None
    dtype = frame.dtype if isinstance(frame, Activations) else None
    return Step(key, frame.position, frame.count, body, dtype, sampling)
