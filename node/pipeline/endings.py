"""How sequences leave this node: ended, suspended for a while in the hope of a new route, or closed by their head."""

from __future__ import annotations

from math import inf
from typing import Literal

import trio

from node.engine.base import Stage
from node.pipeline.credit import Credits
from node.pipeline.engine_loop import EngineLoop
from node.pipeline.outbox import Outbox
from node.pipeline.prefix import bound_to
from node.pipeline.sessions import Sessions
from node.pipeline.stage_session import StageSession
from node.wire.frames import Failed, Route
from node.wire.ids import NodeId

SUSPENDED_S = 10.0
"""The KV of a sequence whose chain broke is kept for so long: a head knows of the break within the same second, and
finds another way or a new link within a few."""

MOST_SUSPENDED = 32
"""Then the oldest goes; and any of them where another sequence needs its room."""

Kind = Literal["lost", "link", "overloaded", "preempted", "refused", "wrong", "forgotten", "unfit"]


class Endings:
    """Drops sequences, tells their heads, and frees what they had in the engine."""

    def __init__(self, self_id: NodeId, sessions: Sessions, loop: EngineLoop, credits: Credits, outbox: Outbox) -> None:
        self._self_id, self._sessions, self._loop = self_id, sessions, loop
        self._credits, self._outbox = credits, outbox
        self._to_close: list[StageSession] = []
        self._closing = trio.Lock()
        self._news = trio.Event()

    @property
    def is_closing(self) -> bool:
        """Whether the engine still has something of a sequence that has ended here."""
        return bool(self._to_close) or self._closing.locked()

    async def run(self) -> None:
        """Free what has ended, and what has been suspended for too long, until cancelled."""
        while True:
            await self.close_ended()
            with trio.move_on_at(self._next_expiry_s()):
                await self._news.wait()
            self._news = trio.Event()
            for session in self._suspended():
                assert session.suspended_s is not None
                if trio.current_time() >= session.suspended_s + SUSPENDED_S:
                    self.drop(session)

    async def close_ended(self) -> None:
        """Have the engine forget all that has ended: what is opened next shall not miss its room."""
        async with self._closing:
            while self._to_close:
                session = self._to_close[0]
                await session.stage.close(session.engine_key, session.keep)
                self._to_close.pop(0)
            self._loop.room_freed()

    def wake(self) -> None:
        """Look for what is to be freed, and have what waits for room try again."""
        self._news.set()

    def closing_bytes(self, stage: Stage) -> int:
        """KV that the engine is about to have free again there."""
        return sum(session.reserved_bytes for session in self._to_close if session.stage is stage)

    def drop(self, session: StageSession, keep: tuple[bytes, ...] = ()) -> None:
        """It is gone: nobody is told. The engine may keep the blocks that are named so, while there is room."""
        if self._sessions.remove(session):
            session.keep = bound_to(session.head, keep) if session.stage.info.keeps_prefixes else ()
            self.discard(session)

    def discard(self, session: StageSession) -> None:
        """One that is open in the engine, and not listed here."""
        self._loop.forget(session)
        self._credits.take_back(session)
        self._to_close.append(session)
        self._news.set()

    def end(self, session: StageSession, reason: str, kind: Kind = "lost", suspect: NodeId | None = None) -> None:
        """It cannot go on here."""
        if session in self._sessions:
            self.drop(session)
            self.tell(session.route, reason, kind, suspect)

    def suspend(self, session: StageSession, reason: str, suspect: NodeId) -> None:
        """Its chain is broken: tell the head, and keep its KV for a while.

        Where it is the head that cannot be reached, the neighbours in the chain are told, who may reach it.
        """
        if session.suspended_s is not None:
            return
        session.suspended_s = trio.current_time()
        self._loop.forget(session)
        self._sessions.note()
        self._news.set()
        self.tell(session.route, reason, "link", suspect)
        if suspect == session.head:
            for neighbour in {session.upstream, session.downstream, session.first} - {session.head, self._self_id}:
                if neighbour is not None:
                    self._outbox.post(neighbour, _failed(session.route, reason, "link", None))
        for oldest in self._suspended()[:-MOST_SUSPENDED]:
            self.drop(oldest)

    def tell(self, route: Route, reason: str, kind: Kind, suspect: NodeId | None = None) -> None:
        """The head that a route of its does not go through here."""
        self._outbox.post(NodeId(route.sequence.head), _failed(route, reason, kind, suspect))

    def _suspended(self) -> list[StageSession]:
        """Oldest first."""
        found = [session for session in self._sessions if session.suspended_s is not None]
        return sorted(found, key=lambda session: session.suspended_s or 0.0)

    def _next_expiry_s(self) -> float:
        oldest = next(iter(self._suspended()), None)
        return inf if oldest is None or oldest.suspended_s is None else oldest.suspended_s + SUSPENDED_S


def _failed(route: Route, reason: str, kind: Kind, suspect: NodeId | None) -> Failed:
    session, attempt, reason = route.sequence.session, route.attempt, reason[:1000]
    if kind == "preempted":
        return Failed(session, attempt, reason, "overloaded", suspect, preempted=True)
    return Failed(session, attempt, reason, kind, suspect)
