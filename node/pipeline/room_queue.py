"""Requests of this head that wait for room, in the order in which they came; first those whose answers have begun.

A large one must not hold up all that come after it, nor be overtaken for ever. So it lets smaller ones go before it
until they have taken as much room, all together, as it needs itself. One that needs as much as one before it would find
no room either, and does not look, but where the other one keeps away from nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf

import trio


@dataclass(slots=True, eq=False)
class Place:
    """Of one request in the line."""

    kv_tokens: int
    """Room that it needs."""
    gives_way_tokens: int
    """Room that those behind it may still take before it."""
    began: int | None = None
    """Of an answer that made room for others in the middle: the older, the smaller. It stands before all that have not
    begun, and gives way to none of them."""
    avoid: frozenset[str] = frozenset()
    """Nodes whose room it does not want."""
    called: trio.Event = field(default_factory=trio.Event)


class RoomQueue:
    """Who looks for room, one after another. The first looks when there are news, the others when it has."""

    def __init__(self) -> None:
        self._places: list[Place] = []
        self.moved_s = -inf
        """When a request found room last."""

    @contextmanager
    def place(self, kv_tokens: int, avoid: frozenset[str], began: int | None = None) -> Iterator[Place]:
        """A place for as long as the block runs: at the end, or among the answers that have begun."""
        place = Place(kv_tokens, kv_tokens if began is None else 0, began, avoid)
        place.called.set()
        older = sum(each.began is not None and (began is None or each.began <= began) for each in self._places)
        self._places.insert(len(self._places) if began is None else older, place)
        try:
            yield place
        finally:
            at = self._places.index(place)
            del self._places[at]
            self._call(at)

    def __len__(self) -> int:
        return len(self._places)

    def ahead(self, place: Place) -> int:
        """How many stand before it."""
        return self._places.index(place)

    async def turn(self, place: Place, again_at_s: float) -> None:
        """Until it may look: now, when those before it have, and for the first at `again_at_s` at the latest."""
        while True:
            at = self._places.index(place)
            self._call(at + 1)
            with trio.move_on_at(again_at_s if at == 0 else inf):
                await place.called.wait()
            place.called = trio.Event()
            rivals = (before for before in self._before(place) if before.avoid <= place.avoid)
            if all(place.kv_tokens < rival.gives_way_tokens for rival in rivals):
                return

    def goes(self, place: Place) -> None:
        """It has found room, before those that still stand before it."""
        self.moved_s = trio.current_time()
        for before in self._before(place):
            before.gives_way_tokens -= place.kv_tokens

    def look_again(self) -> None:
        """Something has changed: room may have come free."""
        self._call(0)

    def _before(self, place: Place) -> list[Place]:
        return self._places[: self._places.index(place)]

    def _call(self, at: int) -> None:
        if at < len(self._places):
            self._places[at].called.set()
