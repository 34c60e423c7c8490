"""Takes routes: opens a sequence in the engine, or has one that is here already go another way.

Bounded by member as well as in all: no head takes every place or all KV of a node while another one asks (`seats.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio
from msgspec.structs import replace

from node.engine.base import BLOCK_TOKENS, Stage
from node.errors import OutOfKV, Overloaded, ParallaxError, TooLong, WorkerDied
from node.pipeline.credit import DECODE_ROWS, FIRST_ROWS, Credits
from node.pipeline.endings import Endings, Kind
from node.pipeline.engine_loop import EngineLoop
from node.pipeline.idle_probe import IdleProbe
from node.pipeline.intake import Intake
from node.pipeline.kv_room import tokens_to_begin
from node.pipeline.openings import Opening, Openings
from node.pipeline.outbox import Outbox
from node.pipeline.prefix import bound_to
from node.pipeline.seats import Taken, to_end
from node.pipeline.sessions import Sessions
from node.pipeline.stage_session import StageSession, upstream_of
from node.pipeline.stages import LoadedRange, Stages
from node.pipeline.work import Incoming
from node.plan.chain_time import CHUNK_TOKENS
from node.swarm.base import Lane
from node.wire.frames import Accepted, Hop, Route
from node.wire.ids import NodeId
from node.wire.layer_range import layer_range
from node.wire.models import DTYPE_BYTES

log = logging.getLogger(__name__)

MAX_SESSIONS = 256
"""A bound on what peers can make us remember, far above what KV memory admits."""

MOST_OPENING = 2 * MAX_SESSIONS
"""At a time, those included that were closed while they wait for the engine."""


class _Refusal(Exception):
    """A route cannot be taken."""

    def __init__(self, reason: str, kind: Kind) -> None:
        super().__init__(reason)
        self.reason, self.kind = reason, kind


class Admission:
    """This node's door for sequences."""

    def __init__(
        self,
        self_id: NodeId,
        stages: Stages,
        sessions: Sessions,
        openings: Openings[Incoming],
        intake: Intake,
        loop: EngineLoop,
        endings: Endings,
        credits: Credits,
        outbox: Outbox,
        idle_probe: IdleProbe,
        is_member: Callable[[NodeId], bool],
        worker_failed: Callable[[WorkerDied], None],
    ) -> None:
        self._self_id, self._stages, self._sessions, self._openings = self_id, stages, sessions, openings
        self._intake, self._loop, self._endings, self._credits = intake, loop, endings, credits
        self._outbox, self._idle_probe = outbox, idle_probe
        self._is_member, self._worker_failed = is_member, worker_failed
        self._reserving: list[Stage] = []
        self._opened = 0
        self._under_way = 0
        """Calls of `open`; those for sequences that were closed meanwhile wait for the engine all the same."""

    def uses(self, stage: Stage) -> bool:
        """Whether a sequence is about to be open on `stage`."""
        return any(each is stage for each in self._reserving)

    @property
    def is_busy(self) -> bool:
        """Whether a sequence is being opened, one that was given up meanwhile too."""
        return bool(self._openings or self._reserving)

    def take(self, peer: NodeId, route: Route) -> Opening[Incoming] | None:
        """Take a route; an opening, where a sequence is to be opened for it (`open`), which may wait."""
        key = (route.sequence.session, route.hop)
        known, opening = self._sessions.get(key), self._openings.get(key)
        former = known.route if known is not None else opening.route if opening is not None else None
        if former is not None and former.sequence.head == route.sequence.head and route.attempt <= former.attempt:
            return None  # repeated
        problem = self._problem_with(peer, route, former)
        if problem:
            log.info("refused a sequence from %s: %s", peer, problem)
            self._endings.tell(route, problem, "refused")
            return None
        if known is not None and self._go_on(known, route):
            return None
        begun = self._openings.begin(route)
        if begun is not None and route.position > 0:
            self._openings.give_up(begun)
            reason = f"no {route.position} tokens of the sequence are kept here any more"
            self._endings.tell(route, reason, "forgotten")
            return None
        if begun is not None and self._under_way >= MOST_OPENING:
            self._openings.give_up(begun)
            self._endings.tell(route, f"{MOST_OPENING} sequences are being opened here already", "overloaded")
            return None
        self._under_way += begun is not None
        return begun

    def _problem_with(self, peer: NodeId, route: Route, former: Route | None) -> str:
        """Why a route cannot be taken; empty where it can."""
        if route.hop >= len(route.chain) or route.chain[route.hop].node_id != self._self_id:
            return "its chain does not name this node at that hop"
        if peer != upstream_of(route):
            return "it did not come from the hop before"
        if not _tiles(route.chain):
            return "its chain leaves out or repeats layers"
        if former is not None and former.sequence.head != route.sequence.head:
            return "another head has a sequence of that name here"
        return ""

    def _go_on(self, session: StageSession, route: Route) -> bool:
        """Have a sequence that is here go another way; False where it has to be opened anew."""
        self._loop.forget(session)
        if session.route.sequence != route.sequence or not session.take(route):
            self._endings.drop(session)
            return False
        self._sessions.note()
        rows = self._credit(session, route, session.held)
        if not rows:
            self._endings.end(session, _NO_MEMORY, "overloaded")
            return True
        session.credit_rows, session.last_active_s = rows, trio.current_time()
        self._pass_on(session)
        return True

    async def open(self, opening: Opening[Incoming]) -> None:
        """Open a sequence that `take` gave in the engine, and take the rows that have come for it meanwhile."""
        try:
            session = await self._open(opening.route)
        except _Refusal as refusal:
            if self._openings.finish(opening) is not None:
                log.info("refused a sequence of %s: %s", opening.route.sequence.head, refusal.reason)
                self._endings.tell(opening.route, refusal.reason, refusal.kind)
            return
        finally:
            self._under_way -= 1
        held_back = self._openings.finish(opening)
        if held_back is None:  # closed while it was being opened, or sent another way
            self._endings.discard(session)
            return
        self._sessions.add(session)
        gone = next((node for node in session.members() if not self._is_member(node)), None)
        if gone is not None:  # it left while the sequence was being opened: its farewell came too early for it
            self._endings.end(session, "it is gone", "link", gone)
            return
        for incoming in held_back:
            self._intake.rows(incoming)
        self._pass_on(session)  # last: the head may be this node, and sends more as soon as it hears of it

    def _pass_on(self, session: StageSession) -> None:
        route = session.route
        accepted = Accepted(session.session, route.attempt, route.hop, session.credit_rows, session.kv_tokens)
        if session.downstream is not None:
            self._outbox.post(session.downstream, replace(route, hop=route.hop + 1), lane=lane_of(route))
        self._outbox.post(session.head, accepted)

    async def _open(self, route: Route) -> StageSession:
        own, sequence = route.chain[route.hop], route.sequence
        self._make_place(route)
        held = self._stages.find(own.start, own.end, sequence.weights)
        if held is None:
            foreign = self._stages.holds(own.start, own.end)
            state = "of other weights than the sequence's" if foreign else "not ready"
            raise _Refusal(f"layers {layer_range(own.start, own.end)} are {state} on this node", "refused")
        self._opened += 1
        now_s = trio.current_time()
        key = f"{sequence.session}/{route.hop}/{self._opened}"
        since_s = self._sessions.since_s(sequence.session)
        session = StageSession(route, held, key, now_s, since_s, now_s, position=route.position)
        session.first_tokens = tokens_to_begin(route.input_tokens, sequence.max_tokens)
        session.credit_rows = self._credit(session, route, held)
        if not session.credit_rows:
            raise _Refusal(_NO_MEMORY, "overloaded")
        self._reserving.append(held.stage)
        try:
            await self._reserve(session)
        except BaseException:
            self._credits.take_back(session)
            raise
        finally:
            self._reserving.remove(held.stage)
        return session

    async def _reserve(self, session: StageSession) -> None:
        try:
            await self._endings.close_ended()  # what was closed before this one came must not stand in its way
            await self._idle_probe.over()
            try:
                await _open_in(session)
            except OutOfKV as error:
                if not self._make_room(session, error):
                    raise
                await self._endings.close_ended()
                await _open_in(session)
        except (OutOfKV, Overloaded) as error:
            raise _Refusal(str(error), "overloaded") from error
        except TooLong as error:
            raise _Refusal(str(error), "unfit") from error
        except (ParallaxError, OSError) as error:
            if isinstance(error, WorkerDied):
                self._worker_failed(error)
            raise _Refusal(str(error), "lost") from error

    def _make_place(self, route: Route) -> None:
        """Have room for one more sequence, out of the member's fair share where the places are all taken."""
        head = route.sequence.head
        taken = [_taken(session, 1) for session in self._sessions]
        free = MAX_SESSIONS - len(self._sessions) - len(self._openings) + 1  # this one is among those that open
        if (ended := to_end(taken, head, 1, free, MAX_SESSIONS)) is None:
            own = sum(each.member == head for each in taken)
            reason = f"{MAX_SESSIONS} sequences are open here already, {own} of them are this head's"
            raise _Refusal(reason, "overloaded")
        self._end_for(head, ended)

    def _make_room(self, session: StageSession, error: OutOfKV) -> bool:
        """Have KV room for a sequence, of the member's fair share; False where it has that already."""
        info, stage = session.stage.info, session.stage
        taken = [_taken(each, each.reserved_bytes) for each in self._sessions.on(stage)]
        total, free = info.kv_tokens * info.kv_bytes_per_token, int(error.free_tokens * session.token_bytes)
        ended = to_end(taken, session.head, session.reserved_bytes, free, total)
        if ended is None:
            return False
        self._end_for(session.head, ended)
        return True

    def _end_for(self, head: str, ended: list[StageSession]) -> None:
        for each in ended:
            if each.suspended_s is not None:
                self._endings.drop(each)
            else:
                reason = f"it made room for a sequence of node {head[-8:]}: its head had more than a fair share"
                log.info("ended a sequence of %s: %s", each.head, reason)
                self._endings.end(each, reason, "preempted")

    def _credit(self, session: StageSession, route: Route, held: LoadedRange) -> int:
        """Rows that may be here at a time; 0 where there is no memory for them."""
        most = route.sequence.max_tokens
        info = held.stage.info
        row_bytes = 4 if route.hop == 0 else info.hidden_size * DTYPE_BYTES[info.dtype]
        # a chunk in each stage, one on each link, the way back included, and one that is ready
        wanted, least = min(most, (2 * len(route.chain) + 1) * CHUNK_TOKENS), min(most, FIRST_ROWS)
        rows = self._credits.give(session, wanted, row_bytes, least)
        if not rows and self._make_row_room(session, least * row_bytes):
            rows = self._credits.give(session, least, row_bytes, least)
        return rows

    def _make_row_room(self, session: StageSession, size_bytes: int) -> bool:
        """Have memory for a sequence's rows, of the member's fair share; what streams has next to none, and stays."""
        prompts = [each for each in self._sessions if each is not session and each.credit_rows > DECODE_ROWS]
        taken = [_taken(each, self._credits.bytes_of(each)) for each in prompts]
        ended = to_end(taken, session.head, size_bytes, self._credits.free_bytes, self._credits.budget_bytes)
        if ended is None:
            return False
        self._end_for(session.head, ended)
        return True


def lane_of(route: Route) -> Lane:
    """Of the rows that come first: they must not overtake it."""
    return "steps" if route.position else "bulk"


_NO_MEMORY = "the memory for rows that wait here is taken by other sequences' prompts"


async def _open_in(session: StageSession) -> None:
    own, route, stage = session.own, session.route, session.stage
    sampling = route.sequence.sampling if session.is_tail else None
    prefix = bound_to(session.head, route.prefix) if stage.info.keeps_prefixes else ()
    held_tokens = await stage.open(session.engine_key, own.start, own.end, sampling, session.first_tokens, prefix)
    session.kv_tokens = session.position = min(held_tokens, BLOCK_TOKENS * len(prefix))


def _taken(session: StageSession, amount: int) -> Taken[StageSession]:
    open_for_s = trio.current_time() - session.opened_s
    return Taken(session, session.head, amount, session.since_s, session.suspended_s is not None, open_for_s)


def _tiles(chain: tuple[Hop, ...]) -> bool:
    ends = [0, *(hop.end for hop in chain)]
    return all(hop.start == ends[index] and hop.end > hop.start for index, hop in enumerate(chain))
