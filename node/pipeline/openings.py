"""Sequences between their `Route` and the engine's word that there is room, and those that were closed already.

Frames go hop by hop, but a `Close` comes straight from the head: it may overtake the `Route` that it belongs to.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from node.wire.frames import Route
from node.wire.ids import NodeId

REMEMBERED_CLOSES = 4096
"""A `Route` that comes later than 4,096 other closings was on its way for longer than any head waits."""

HELD_BACK_BYTES = 64 * 1024 * 1024
"""Of rows that came before their sequence was open, over all sequences."""

Key = tuple[str, int]
T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Opening(Generic[T]):
    """One `Route` that waits for the engine, and the rows behind it."""

    route: Route
    held_back: list[T] = field(default_factory=list)
    rows: int = 0
    size_bytes: int = 0

    @property
    def key(self) -> Key:
        return self.route.sequence.session, self.route.hop


class Openings(Generic[T]):
    """What is being opened, and what must not be opened any more."""

    def __init__(self, held_back_bytes: int = HELD_BACK_BYTES) -> None:
        self._opening: dict[Key, Opening[T]] = {}
        self._closed: OrderedDict[tuple[str, NodeId], int] = OrderedDict()
        self._room_bytes = held_back_bytes

    def __len__(self) -> int:
        return len(self._opening)

    def get(self, key: Key) -> Opening[T] | None:
        return self._opening.get(key)

    def all(self) -> list[Opening[T]]:
        return list(self._opening.values())

    def begin(self, route: Route) -> Opening[T] | None:
        """Note a `Route`, in place of one with a lower attempt; None where its head has closed it already."""
        opening = Opening[T](route)
        closed = self._closed.get((route.sequence.session, NodeId(route.sequence.head)), 0)
        if route.attempt <= closed:
            return None
        self._opening[opening.key] = opening
        return opening

    def hold_back(self, opening: Opening[T], item: T, rows: int, size_bytes: int, credit_rows: int) -> bool:
        """Keep rows until their sequence is open; False where they are more than the head may send by now, or than
        there is room for."""
        held_bytes = sum(each.size_bytes for each in self._opening.values())
        if opening.rows + rows > credit_rows or held_bytes + size_bytes > self._room_bytes:
            return False
        opening.held_back.append(item)
        opening.rows += rows
        opening.size_bytes += size_bytes
        return True

    def finish(self, opening: Opening[T]) -> list[T] | None:
        """The rows held back; None where it was closed, given up or replaced meanwhile."""
        if self._opening.get(opening.key) is not opening:
            return None
        del self._opening[opening.key]
        return opening.held_back

    def close(self, session: str, head: NodeId, attempt: int) -> None:
        """The head has closed it, up to this attempt: forget it, and do not open it later."""
        for key, opening in list(self._opening.items()):
            route = opening.route
            if key[0] == session and route.sequence.head == head and route.attempt <= attempt:
                del self._opening[key]
        self._closed[session, head] = max(attempt, self._closed.pop((session, head), 0))
        while len(self._closed) > REMEMBERED_CLOSES:
            self._closed.popitem(last=False)

    def give_up(self, opening: Opening[T]) -> None:
        """Forget one."""
        self.finish(opening)
