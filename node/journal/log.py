"""The numbered log in memory, and its readers.

A reader that falls behind the kept window gets a `Gap` and must take a fresh snapshot: it never makes the log grow.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import trio
from msgspec.structs import replace

from node.journal.apply import apply
from node.journal.state import State
from node.wire.events import Event, NodeSeen, Numbered
from node.wire.ids import NodeId
from node.wire.records import NodeRecord

KEPT_EVENTS = 4096
KEPT_BYTES = 4 * 1024 * 1024
"""Of events as they are sent, whichever of the two is reached first. As objects they take about three times that."""

UNREACHABLE_TOLD = 16
"""Of each member's peers, as screens are told of them."""


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
        self._events: list[Numbered] = []
        """Their numbers are one apart. Those before `_dropped` are gone, but not moved up at each one."""
        self._sizes: list[int] = []
        self._dropped = 0
        self._kept_bytes = 0
        self._news = trio.Event()

    @property
    def kept_bytes(self) -> int:
        """Of the kept events as JSON."""
        return self._kept_bytes

    def append(self, event: Event) -> Numbered:
        """Number the event, fold it in, wake the readers."""
        if isinstance(event, NodeSeen):
            event = NodeSeen(_for_screens(event.record, self.state.self_id))
        numbered = Numbered(self.state.seq + 1, self._clock(), event)
        self.state = apply(self.state, numbered)
        self._keep(numbered)
        self.stir()
        return numbered

    async def news(self) -> None:
        """The next event, or something else that readers look for (`stir`)."""
        await self._news.wait()

    def stir(self) -> None:
        """Something that is no event has changed: whoever waits for `news` looks again."""
        self._news.set()
        self._news = trio.Event()

    def after(self, since: int) -> list[Numbered]:
        """The kept events with a number above `since`.

        Raises:
            Gap: some of them are no longer kept, or `since` lies in the future (the node was started anew).
        """
        oldest = self._events[self._dropped].seq if self._events else self.state.seq + 1
        if since + 1 < oldest or since > self.state.seq:
            raise Gap(since, oldest)
        return self._events[self._dropped + since + 1 - oldest :]

    async def next_after(self, since: int, patience_s: float) -> list[Numbered]:
        """The events after `since`, as soon as there are any; an empty list after `patience_s` without.

        Raises:
            Gap: the reader was too slow, or `since` is not in the log.
        """
        with trio.move_on_after(patience_s):
            while since == self.state.seq:
                await self._news.wait()
        return self.after(since)

    def _keep(self, numbered: Numbered) -> None:
        size_bytes = len(msgspec.json.encode(numbered))
        self._events.append(numbered)
        self._sizes.append(size_bytes)
        self._kept_bytes += size_bytes
        last = len(self._events) - 1
        while self._dropped < last and (
            len(self._events) - self._dropped > KEPT_EVENTS or self._kept_bytes > KEPT_BYTES
        ):
            self._kept_bytes -= self._sizes[self._dropped]
            self._events[self._dropped] = self._events[last]  # holds on to nothing that is gone
            self._dropped += 1
        if self._dropped > KEPT_EVENTS:
            del self._events[: self._dropped], self._sizes[: self._dropped]
            self._dropped = 0


def _for_screens(record: NodeRecord, self_id: NodeId) -> NodeRecord:
    """A member's record with the ways between it and this node alone: those between all others are a matrix, most of
    what a large swarm's records hold, and for planning."""
    if record.id == self_id:
        return record
    return replace(
        record,
        rtt_ms={self_id: record.rtt_ms[self_id]} if self_id in record.rtt_ms else {},
        mbps={self_id: record.mbps[self_id]} if self_id in record.mbps else {},
        unreachable=record.unreachable[:UNREACHABLE_TOLD],
    )
