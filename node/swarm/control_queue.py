"""What waits to be written on one control stream. Bounded by what it holds: of each node only the newest statement."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import trio

from node.wire.control import CONTROL_LIMIT_BYTES, Told
from node.wire.records import Envelope

BATCH_BYTES = CONTROL_LIMIT_BYTES // 2
ANSWERS_LIMIT = 16
"""Pings that wait for their answer; a flood of them gets no more."""


@dataclass(frozen=True, slots=True)
class Due:
    """All that is to be written now."""

    ping: bool
    answers: tuple[tuple[int, float], ...]
    """(number of the ping, when it came by our clock)."""
    told: tuple[Told, ...]


class ControlQueue:
    """Filled without waiting, emptied by one writer."""

    def __init__(self) -> None:
        self._ping = False
        self._answers: deque[tuple[int, float]] = deque(maxlen=ANSWERS_LIMIT)
        self._statements: dict[tuple[str, str], Envelope] = {}
        self._welcome: tuple[tuple[Envelope, ...], int] | None = None
        self._wake = trio.Event()

    def ping(self) -> None:
        """A ping is due."""
        self._ping = True
        self._stir()

    def answer(self, number: int, received_s: float) -> None:
        """A ping came."""
        self._answers.append((number, received_s))
        self._stir()

    def welcome(self, envelopes: tuple[Envelope, ...], your_seq: int) -> None:
        """The first things to say; `your_seq` is for the receiver's own record."""
        self._welcome = (envelopes, your_seq)
        self._stir()

    def tell(self, envelope: Envelope) -> None:
        """A statement is to be passed on; an older one of the same node is not needed any more."""
        subject = ("plan", "") if envelope.kind == "plan" else ("node", envelope.node_id)
        self._statements[subject] = envelope
        self._stir()

    async def take(self) -> Due:
        """Wait until something is due, and take it all."""
        await self._wake.wait()
        self._wake = trio.Event()
        told: list[Told] = []
        if self._welcome is not None:
            envelopes, your_seq = self._welcome
            told += [Told(batch, True, your_seq) for batch in _batches(envelopes)] or [Told((), True, your_seq)]
        told += [Told(batch) for batch in _batches(self._statements.values())]
        due = Due(self._ping, tuple(self._answers), tuple(told))
        self._ping, self._welcome = False, None
        self._answers.clear()
        self._statements.clear()
        return due

    def _stir(self) -> None:
        self._wake.set()


def _batches(envelopes: Iterable[Envelope]) -> Iterator[tuple[Envelope, ...]]:
    """Groups that stay well below what a control message may hold."""
    batch: list[Envelope] = []
    size_bytes = 0
    for envelope in envelopes:
        length = len(envelope.payload) + 256
        if batch and size_bytes + length > BATCH_BYTES:
            yield tuple(batch)
            batch, size_bytes = [], 0
        batch.append(envelope)
        size_bytes += length
    if batch:
        yield tuple(batch)
