"""Rows in: judges whether they are due, and queues them for the engine. Never waits.

Rows that cannot be (a gap, too many, too wide, beyond the credit) end their sequence alone, and name the hop that sent
them. A hop whose frames fail their checks is not asked again soon.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import trio

from node.pipeline.credit import DECODE_ROWS, FIRST_ROWS, Credits
from node.pipeline.endings import Endings
from node.pipeline.engine_loop import EngineLoop
from node.pipeline.openings import Openings
from node.pipeline.sessions import Sessions
from node.pipeline.stage_session import StageSession, Verdict, upstream_of
from node.pipeline.work import Incoming, Work
from node.swarm.base import Arrival
from node.wire.frames import Sampled, SampledPart, Step
from node.wire.ids import NodeId
from node.wire.models import DTYPE_BYTES

log = logging.getLogger(__name__)


class Intake:
    """What comes for sequences that are open here, or about to be."""

    def __init__(
        self, sessions: Sessions, openings: Openings[Incoming], loop: EngineLoop, endings: Endings, credits: Credits
    ) -> None:
        self._sessions, self._openings, self._loop = sessions, openings, loop
        self._endings, self._credits = endings, credits

    def step(self, arrival: Arrival, frame: Step) -> None:
        """Rows of several sequences."""
        for incoming in _split(arrival, frame):
            opening = self._openings.get((incoming.part.session, incoming.part.hop))
            if opening is None:
                self.rows(incoming)
            elif incoming.peer == upstream_of(opening.route) and incoming.part.attempt == opening.route.attempt:
                credit_rows = min(FIRST_ROWS, opening.route.sequence.max_tokens)
                count, size_bytes = incoming.part.count, len(incoming.data)
                if not self._openings.hold_back(opening, incoming, count, size_bytes, credit_rows):
                    self._openings.give_up(opening)
                    self._endings.tell(opening.route, "more rows than there is room for yet", "overloaded")

    def rows(self, incoming: Incoming) -> None:
        """Of one sequence."""
        part = incoming.part
        session = self._sessions.get((part.session, part.hop))
        if session is None:
            return  # closed meanwhile, or never ours
        verdict = session.judge(incoming.peer, part)
        if verdict == "run" and not _fits(session, incoming):
            verdict = "refuse"
        if verdict != "run":
            self._turn_away(session, verdict, incoming.peer, f"step {part.step} at position {part.position}")
            return
        work = Work(
            session,
            part.attempt,
            part.step,
            part.position,
            part.count,
            part.want,
            incoming.data,
            incoming.dtype,
            part.timings,
            incoming.received_s,
            incoming.wire_ms,
            part.replay,
        )
        self._queue(work)

    def sampled(self, arrival: Arrival, frame: Sampled) -> None:
        """Tokens from tails, for the sequences whose rings begin here."""
        for part in frame.parts:
            session = self._sessions.get((part.session, 0))
            if session is None:
                continue
            verdict = session.judge_sampled(arrival.peer, part)
            if verdict == "run":
                self._queue(_next_in_ring(session, part, arrival))
            else:
                self._turn_away(session, verdict, arrival.peer, f"a token at position {part.position}")

    def _queue(self, work: Work) -> None:
        session = work.session
        session.last_active_s = trio.current_time()
        if work.want != "nothing" and session.credit_rows > DECODE_ROWS:  # the prompt is through
            session.credit_rows = max(work.count, self._credits.shrink(session, max(work.count, DECODE_ROWS)))
        self._loop.push(work)

    def _turn_away(self, session: StageSession, verdict: Verdict, peer: NodeId, what: str) -> None:
        if verdict == "ignore":
            log.debug("ignored %s", what)
            return
        at = f"step {session.due} at position {session.position} was due"
        suspect = peer if peer != session.head else None
        self._endings.end(session, f"{what} cannot be: {at}", "wrong", suspect)


def _split(arrival: Arrival, frame: Step) -> Iterator[Incoming]:
    """The parts, each with its rows."""
    row_bytes = frame.width * (DTYPE_BYTES[frame.dtype] if frame.dtype is not None else 4)
    whole = sum(part.count for part in frame.parts) * row_bytes == len(arrival.body)
    rows, at = memoryview(arrival.body), 0
    several = len(frame.parts) > 1
    for part in frame.parts:
        end = at + part.count * row_bytes
        # copied: a row that waits must not keep a whole frame in memory, of which only the row is counted
        data = bytes(rows[at:end]) if several else arrival.body
        yield Incoming(arrival.peer, part, data, frame.width, frame.dtype, whole, arrival.received_s, arrival.wire_ms)
        at = end


def _fits(session: StageSession, incoming: Incoming) -> bool:
    """Whether the rows are of the kind, width and size that the hop takes."""
    ids = session.route.hop == 0
    width = 1 if ids else session.stage.info.hidden_size
    return incoming.whole and incoming.width == width and (incoming.dtype is None) == ids


def _next_in_ring(session: StageSession, part: SampledPart, arrival: Arrival) -> Work:
    token = part.tokens[0].to_bytes(4, "little")
    return Work(
        session,
        part.attempt,
        part.step + 1,
        part.position,
        1,
        "token",
        token,
        None,
        (),
        arrival.received_s,
        arrival.wire_ms,
    )
