"""The numbered log in memory, and its readers.

A reader that falls behind the kept window gets a `Gap` and must take a fresh snapshot: it never makes the log grow.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import trio

from node.journal.apply import apply
from node.journal.state import State
from node.wire.events import Event, Numbered
from node.wire.ids import NodeId

KEPT_EVENTS = 4096
"""About half an hour of a quiet swarm of three, a minute of a busy one; 4 MB at most."""


class Gap(Exception):
    """The events after `since` are no longer kept; read the state at `seq` and go on from there."""

    def __init__(self, since: int, oldest: int) -> None:
        self.since, self.oldest = since, oldest
        super().__init__(f"events after {since} are gone, the oldest kept is {oldest}; read /v1/state again")


class Journal:
    """Appends events, folds them into `state`, wakes readers. Not thread-safe: one trio loop owns it.

    Numbers begin at the wall clock in ms, so that a reader of a node's former life finds a gap, never other events
    under the numbers that it knows.
    """

    def __init__(self, self_id: NodeId, clock: Callable[[], float] = time.time) -> None:
        self.state = State(self_id=self_id, seq=int(clock() * 1000))
        self._clock = clock
        self._events: deque[Numbered] = deque(maxlen=KEPT_EVENTS)
        self._news = trio.Event()

    def append(self, event: Event) -> Numbered:
        """Number the event, fold it in, wake the readers."""
        numbered = Numbered(self.state.seq + 1, self._clock(), event)
        self.state = apply(self.state, numbered)
        self._events.append(numbered)
        self._news.set()
        self._news = trio.Event()
        return numbered

    def after(self, since: int) -> list[Numbered]:
        """The kept events with a number above `since`.

        Raises:
            Gap: some of them are no longer kept, or `since` lies in the future (the node was started anew).
        """
        oldest = self._events[0].seq if self._events else self.state.seq + 1
        if since + 1 < oldest or since > self.state.seq:
            raise Gap(since, oldest)
        skip = since + 1 - oldest
        return [numbered for index, numbered in enumerate(self._events) if index >= skip]

    async def next_after(self, since: int, patience_s: float) -> list[Numbered]:
        """The events after `since`, as soon as there are any; an empty list after `patience_s` without.

        Raises:
            Gap: the reader was too slow, or `since` is not in the log.
        """
        with trio.move_on_after(patience_s):
            while since == self.state.seq:
                await self._news.wait()
        return self.after(since)
