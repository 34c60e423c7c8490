"""What waits to be written on one control stream. Bounded by what it holds: of each node only the newest of each kind.

And bounded in bytes: a neighbour that does not read loses what others say, the longest waiting first, and asks for it
when it reads again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import trio
from msgspec.structs import replace

from node.wire.control import CONTROL_LIMIT_BYTES, MOST_KNOWN, Ask, Envelopes, Welcome
from node.wire.peer_figures import unpack_marks
from node.wire.statements import Envelope

BATCH_BYTES = CONTROL_LIMIT_BYTES // 2
ANSWERS_LIMIT = 16
"""Pings that wait for their answer; a flood of them gets no more."""

QUEUE_LIMIT_BYTES = 4 * 1024 * 1024
"""A newcomer to a swarm of 1,000 is told 4 MB once; in steady state a neighbour that reads has next to nothing here."""

FRAMING_BYTES = 160
"""Of an envelope beside its payload, at most."""


@dataclass(frozen=True, slots=True)
class ControlBatch:
    """All that is to be written now."""

    ping: bool
    answers: tuple[tuple[int, float], ...]
    """(number of the ping, when it came by our clock)."""
    messages: tuple[Welcome | Envelopes | Ask, ...]


class ControlQueue:
    """Filled without waiting, emptied by one writer."""

    def __init__(self, own_id: str = "") -> None:
        self._own_id = own_id
        self._ping = False
        self._answers: deque[tuple[int, float]] = deque(maxlen=ANSWERS_LIMIT)
        self._statements: dict[tuple[str, str], Envelope] = {}
        self._size_bytes = 0
        self._welcome: Welcome | None = None
        self._asked: Ask | None = None
        self._wake = trio.Event()

    @property
    def size_bytes(self) -> int:
        """Of the statements that wait."""
        return self._size_bytes

    def ping(self) -> None:
        """A ping is due."""
        self._ping = True
        self._stir()

    def answer(self, number: int, received_s: float) -> None:
        """A ping came."""
        self._answers.append((number, received_s))
        self._stir()

    def welcome(self, welcome: Welcome) -> None:
        """The first thing to say."""
        self._welcome = welcome
        self._stir()

    def ask(self, ask: Ask) -> None:
        """Something that we lack; the newest question is the one that counts."""
        self._asked = ask if self._asked is None else _both(self._asked, ask)
        self._stir()

    def tell(self, envelope: Envelope) -> None:
        """A statement is to be passed on; an older one of the same kind and node is not needed any more."""
        subject = ("plan", "") if envelope.kind == "plan" else (envelope.kind, envelope.node_id)
        self._size_bytes += _size(envelope) - _size(self._statements.pop(subject, None))
        self._statements[subject] = envelope
        while self._size_bytes > QUEUE_LIMIT_BYTES:
            oldest = next(key for key in self._statements if key[0] != "plan" and key[1] != self._own_id)
            self._size_bytes -= _size(self._statements.pop(oldest))
        self._stir()

    async def take(self) -> ControlBatch:
        """Wait until something is due, and take it all."""
        await self._wake.wait()
        self._wake = trio.Event()
        messages: list[Welcome | Envelopes | Ask] = [self._welcome] if self._welcome is not None else []
        if self._asked is not None:
            messages.append(self._asked)
        messages += [Envelopes(batch) for batch in _batches(self._shortened(self._statements.values()))]
        batch = ControlBatch(self._ping, tuple(self._answers), tuple(messages))
        self._ping, self._welcome, self._asked, self._size_bytes = False, None, None, 0
        self._answers.clear()
        self._statements.clear()
        return batch

    def _shortened(self, envelopes: Iterable[Envelope]) -> Iterator[Envelope]:
        for envelope in envelopes:
            yield replace(envelope, node_id="") if envelope.node_id == self._own_id else envelope

    def _stir(self) -> None:
        self._wake.set()


def _both(one: Ask, other: Ask) -> Ask:
    """Nothing is asked for twice; a question that grew too long is asked again by its need."""
    marks = dict.fromkeys(unpack_marks(one.marks) + unpack_marks(other.marks))
    return Ask(b"".join(list(marks)[:MOST_KNOWN]), one.plan or other.plan)


def _size(envelope: Envelope | None) -> int:
    return len(envelope.payload) + FRAMING_BYTES if envelope is not None else 0


def _batches(envelopes: Iterable[Envelope]) -> Iterator[tuple[Envelope, ...]]:
    """Groups that stay well below what a control message may hold."""
    batch: list[Envelope] = []
    size_bytes = 0
    for envelope in envelopes:
        length = _size(envelope)
        if batch and size_bytes + length > BATCH_BYTES:
            yield tuple(batch)
            batch, size_bytes = [], 0
        batch.append(envelope)
        size_bytes += length
    if batch:
        yield tuple(batch)
