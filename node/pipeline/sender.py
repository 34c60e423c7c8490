"""Results to frames: one for each neighbour and lane, whatever number of sequences it carries.

What a batch gave leaves together; nothing waits here for anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from node.pipeline.outbox import Outbox
from node.pipeline.stage_session import StageSession
from node.pipeline.work import Done
from node.swarm.base import Lane
from node.wire.frames import (
    BODY_LIMIT_BYTES,
    HEADER_LIMIT_BYTES,
    MOST_PARTS,
    Buffer,
    Progress,
    Sampled,
    SampledPart,
    Step,
    StepPart,
)
from node.wire.ids import NodeId
from node.wire.models import Dtype

PART_BYTES, TIMING_BYTES, TOKEN_BYTES = 128, 40, 5
"""Of a part's header at most: itself, each hop's times, each token."""

P = TypeVar("P", StepPart, SampledPart)
Way = tuple[NodeId, Lane, int, Dtype]
"""To whom, on which lane, in rows of which width and dtype."""


@dataclass(slots=True)
class _Rows:
    """What goes one way."""

    parts: list[StepPart] = field(default_factory=list)
    bodies: list[Buffer] = field(default_factory=list)


class Sender:
    """Posts what steps gave."""

    def __init__(self, outbox: Outbox, failed: Callable[[StageSession, str], None]) -> None:
        self._outbox, self._failed = outbox, failed

    def send(self, results: list[Done]) -> None:
        """To the next stages, and what tails sampled to their rings' first stages and to the heads."""
        onward: dict[Way, _Rows] = {}
        sampled: dict[NodeId, list[SampledPart]] = {}
        for done in results:
            session, work = done.work.session, done.work
            session.done += 1
            if session.downstream is not None:
                lane: Lane = "steps" if work.is_decode else "bulk"
                info = session.stage.info
                rows = onward.setdefault((session.downstream, lane, info.hidden_size, info.dtype), _Rows())
                rows.parts.append(_onward(done))
                rows.bodies.append(done.data)
            elif work.want == "nothing":
                end = work.position + work.count
                self._outbox.post(session.head, Progress(session.session, work.attempt, end))
            elif len(done.slot.tokens) != (work.count if work.want == "each" else 1):
                self._failed(session, f"the last stage gave {len(done.slot.tokens)} tokens")
            else:
                for peer, part in _sampled(done):
                    sampled.setdefault(peer, []).append(part)
        for (peer, lane, width, dtype), rows in onward.items():
            for parts, body in _frames(rows):
                self._outbox.post(peer, Step(parts, width, dtype, 0.0), body, lane)
        for peer, answers in sampled.items():
            for some in _within(answers, lambda part: TOKEN_BYTES * len(part.tokens)):
                self._outbox.post(peer, Sampled(tuple(some), 0.0))


def _onward(done: Done) -> StepPart:
    work, route = done.work, done.work.session.route
    timings = (*work.timings, done.timing)
    session, hop = route.sequence.session, route.hop + 1
    step, position, count = work.step, work.position, work.count
    return StepPart(session, work.attempt, hop, step, position, count, work.want, timings, work.replay)


def _sampled(done: Done) -> Iterator[tuple[NodeId, SampledPart]]:
    """Who is told what the tail has sampled."""
    work, session = done.work, done.work.session
    tokens, timings = done.slot.tokens, (*work.timings, done.timing)
    position = work.position + (1 if work.want == "each" else work.count)
    finish = session.finish_after(tokens[0], position) if work.want == "token" else None
    part = SampledPart(session.session, work.attempt, work.step, position, tokens, finish, timings)
    if finish is None and session.route.sequence.feed == "ring" and session.first != session.head:
        yield session.first, part
    yield session.head, part


def _frames(rows: _Rows) -> Iterator[tuple[tuple[StepPart, ...], Buffer]]:
    """Parts and bodies, cut where a frame would be larger than the wire takes."""
    if len(rows.parts) == 1:
        yield tuple(rows.parts), rows.bodies[0]
        return
    body_of = {id(part): body for part, body in zip(rows.parts, rows.bodies, strict=True)}
    for some in _within(rows.parts, lambda part: 0, lambda part: len(body_of[id(part)])):
        yield tuple(some), b"".join(body_of[id(part)] for part in some)


def _within(
    parts: Iterable[P], header_of: Callable[[P], int], body_of: Callable[[P], int] = lambda part: 0
) -> Iterator[list[P]]:
    some: list[P] = []
    header_bytes = body_bytes = 0
    for part in parts:
        header, body = PART_BYTES + TIMING_BYTES * len(part.timings) + header_of(part), body_of(part)
        full = header_bytes + header > HEADER_LIMIT_BYTES // 2 or body_bytes + body > BODY_LIMIT_BYTES
        if some and (full or len(some) == MOST_PARTS):
            yield some
            some, header_bytes, body_bytes = [], 0, 0
        some.append(part)
        header_bytes, body_bytes = header_bytes + header, body_bytes + body
    if some:
        yield some
