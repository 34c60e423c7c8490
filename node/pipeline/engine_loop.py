"""Takes steps in, runs them in the batches that `schedule` chooses, hands on what came of them.

Knows no frames. Whatever becomes of a batch, no task of this loop ends the node: one sequence's problem ends that one,
a worker that is gone is told to whoever keeps it alive.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from math import ceil
from time import perf_counter

import trio

from node.engine.base import BATCHES_IN_FLIGHT, Batch, BatchResult, Slot
from node.errors import EngineError, WorkerDied
from node.pipeline.latency import BatchRates, StepTimes
from node.pipeline.schedule import Budget, Ready, Running, Turn, next_batch
from node.pipeline.sessions import Sessions
from node.pipeline.stage_session import StageSession
from node.pipeline.work import Done, Work
from node.wire.frames import Buffer, HopTiming, Want
from node.wire.models import DTYPE_BYTES


class EngineLoop:
    """The steps that wait for this node's engine, and the one or two batches that it has."""

    def __init__(
        self,
        sessions: Sessions,
        times: StepTimes,
        done: Callable[[list[Done]], None],
        failed: Callable[[StageSession, str], None],
        starved: Callable[[list[Work], int], None],
        worker_failed: Callable[[WorkerDied], None],
    ) -> None:
        """
        Args:
            starved: told of steps for which the engine had no KV room, and of the tokens that it has room for; they
                wait for `room_freed`, where their sequences are not ended.
        """
        self._sessions, self._rates = sessions, BatchRates()
        self._times, self._done, self._failed, self._worker_failed = times, done, failed, worker_failed
        self._starved_told = starved
        self._starved: set[StageSession] = set()
        """Sequences whose next step waits for KV room."""
        self._waiting: dict[StageSession, deque[tuple[int, Work]]] = {}
        self._batches: list[tuple[Work, ...]] = []
        self._turn = Turn()
        self._number = 0
        self._ended_s = 0.0
        """When the last batch ended, by `perf_counter`: one that lay ready waited until then."""
        self._news = trio.Event()

    def __len__(self) -> int:
        """Steps that wait."""
        return sum(len(steps) for steps in self._waiting.values())

    @property
    def is_running(self) -> bool:
        """Whether the engine has a batch; one of a sequence that was closed meanwhile counts too."""
        return bool(self._batches)

    def push(self, work: Work) -> None:
        """One more step, behind those of its sequence."""
        self._number += 1
        self._waiting.setdefault(work.session, deque()).append((self._number, work))
        self._wake()

    def forget(self, session: StageSession) -> None:
        """Drop what waits of a sequence."""
        self._waiting.pop(session, None)
        self._starved.discard(session)

    def room_freed(self) -> None:
        """The engine has forgotten something: what found no KV room may try again."""
        if self._starved:
            self._starved.clear()
            self._wake()

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                works = self._next()
                if works:
                    self._batches.append(works)
                    nursery.start_soon(self._run, works)
                else:
                    await self._news.wait()
                    self._news = trio.Event()

    def _wake(self) -> None:
        self._news.set()

    def _next(self) -> tuple[Work, ...]:
        if not self._waiting or len(self._batches) >= BATCHES_IN_FLIGHT:
            return ()  # as after every batch of a sequence that streams alone
        ready: list[Ready] = []
        budgets: dict[object, Budget] = {}
        for session, steps in self._waiting.items():
            if session in self._starved:
                continue
            number, work = steps[0]
            lot = (id(session.stage), session.own.start, session.own.end, work.dtype)
            if lot not in budgets:
                budgets[lot] = self._budget(session)
            whole = work.want == "each"
            ready.append(Ready(session, lot, work.left, work.is_decode, number, session.last_ran, work.replay, whole))
        busy = frozenset[object](work.session for works in self._batches for work in works)
        running = Running(busy, len(self._batches))
        chosen = next_batch(ready, running, budgets, self._turn, BATCHES_IN_FLIGHT, self._rates.rates)
        self._turn = chosen.turn
        return tuple(self._take(step) for step in chosen.steps)

    def _budget(self, session: StageSession) -> Budget:
        """Of the batches that its steps can be in."""
        info, share, streams = session.stage.info, 0.0, 0
        for other in self._sessions.on(session.stage):
            if other.streams and (other.own.start, other.own.end) == (session.own.start, session.own.end):
                share += 1 / other.stages
                streams += 1
        return Budget(info.max_batch_rows, info.max_sequences, max(1, ceil(share - 1e-9)), streams)

    def _take(self, step: Ready) -> Work:
        session = step.sequence
        assert isinstance(session, StageSession)
        number, work = self._waiting[session].popleft()
        if not self._waiting[session]:
            del self._waiting[session]
        session.last_ran, work.taken = number, step.rows
        return work

    async def _run(self, works: tuple[Work, ...]) -> None:
        started_s = perf_counter()
        ran: list[Work] = []
        result: BatchResult | None = None
        try:
            ran = [work for work in works if await self._is_in_place(work)]
            if ran:
                result = await ran[0].session.stage.run(_batch_of(ran))
                started_s, self._ended_s = max(started_s, self._ended_s), perf_counter()
        except WorkerDied as error:
            self._worker_failed(error)
            for work in works:
                self._fail(work, str(error))
        except EngineError as error:
            for work in ran or works:
                self._fail(work, str(error))
        finally:
            self._batches.remove(works)
            self._wake()
        if result is not None:
            self._hand_on(ran, result, started_s)

    async def _is_in_place(self, work: Work) -> bool:
        """Have the engine's cache end where the step begins."""
        session = work.session
        if work.at == session.kv_tokens:
            return True
        if work.at > session.kv_tokens:
            self._fail(work, f"rows at position {work.at} where {session.kv_tokens} tokens are in the KV cache")
            return False
        try:
            await session.stage.rewind(session.engine_key, work.at)
        except WorkerDied:
            raise
        except EngineError as error:
            self._fail(work, str(error))
            return False
        session.kv_tokens = work.at
        return True

    def _fail(self, work: Work, reason: str) -> None:
        if work.is_current:
            self._failed(work.session, reason)

    def _hand_on(self, works: list[Work], result: BatchResult, started_s: float) -> None:
        info = works[0].session.stage.info
        row_bytes = info.hidden_size * DTYPE_BYTES[info.dtype] if len(result.data) else 0
        rows, at, now_s = memoryview(result.data), 0, perf_counter()
        done: list[Done] = []
        starved: list[Work] = []
        for work, slot in zip(works, result.slots, strict=True):
            data: Buffer = result.data
            if len(works) > 1:  # one row that waits for a slow link must not keep a whole batch in memory
                data = rows[at : at + work.taken * row_bytes]
                data = bytes(data) if 2 * len(data) <= len(result.data) else data
            at += work.taken * row_bytes
            if slot.problem:
                self._fail(work, slot.problem)
                continue
            if slot.out_of_kv:
                if work.is_current:
                    self._put_back(work)
                    self._starved.add(work.session)
                    starved.append(work)
                continue
            work.session.kv_tokens = work.at + work.taken
            work.compute_ms += result.compute_ms
            work.queue_ms += max(0.0, (started_s - work.ready_s) * 1e3)
            last = work.is_last_piece
            work.ran, work.ready_s = work.ran + work.taken, now_s
            if not work.is_current:
                continue
            work.session.waiting_rows -= work.taken
            if last:
                work.session.waiting_steps -= 1
                done.append(Done(work, work.whole(data), slot, _timing(work, now_s)))
            else:
                work.pieces.append(data)
                self._put_back(work)
        self._note_times(works, result, done)
        self._done(done)
        if starved:
            self._starved_told(starved, result.free_kv_tokens)

    def _note_times(self, works: list[Work], result: BatchResult, done: list[Done]) -> None:
        decodes = sum(work.is_decode for work in works)
        if all(slot.problem == "" and not slot.out_of_kv for slot in result.slots):
            self._rates.add(result.compute_ms, decodes, sum(work.taken for work in works if not work.is_decode))
            if not decodes:
                own = works[0].session.own
                self._times.add_prompt(own.end - own.start, sum(work.taken for work in works), result)
        if decodes == len(works) == len(done):
            own = works[0].session.own
            self._times.add(own.end - own.start, result, done[0].timing.serialise_ms, len(works))

    def _put_back(self, work: Work) -> None:
        """Before what came of its sequence meanwhile."""
        self._waiting.setdefault(work.session, deque()).appendleft((work.session.last_ran, work))
        self._wake()


def _batch_of(works: Sequence[Work]) -> Batch:
    slots = tuple(Slot(work.session.engine_key, work.at, work.taken, _wanted(work), work.replay) for work in works)
    data: Buffer = works[0].rows() if len(works) == 1 else b"".join(work.rows() for work in works)
    return Batch(slots, data, works[0].dtype)


def _wanted(work: Work) -> Want:
    """Here: only a tail gives tokens, the others pass on what is wanted."""
    return work.want if work.session.is_tail and work.is_last_piece else "nothing"


def _timing(work: Work, now_s: float) -> HopTiming:
    """This hop's stamp: what the step took beyond queue and compute is serialising."""
    total_ms = (now_s - work.received_s) * 1e3
    rest_ms = max(0.0, total_ms - work.queue_ms - work.compute_ms)
    return HopTiming(work.wire_ms, work.queue_ms, work.compute_ms, rest_ms)
