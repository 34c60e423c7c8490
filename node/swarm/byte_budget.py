"""How many bytes one neighbour may make us hold: what has come from it and is still in use, wherever that is.

A body is counted when it is announced and given back when nobody holds it any more: the count follows the object, so no
queue that it passes through has to be trusted with it. While the budget is used up, nothing more is read, and the
sender waits for credit.
"""

from __future__ import annotations

from collections import deque

import trio

LOOK_AGAIN_S = 0.005
"""While a budget is used up: bodies may end in any thread, and an event of trio's cannot be set from there."""


class ByteBudget:
    """Counts bytes up to `limit_bytes`; one that is larger than that alone is let in when nothing else is held."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._taken_bytes = 0
        self._given: deque[int] = deque()  # appended to from any thread, which is atomic where -= is not

    @property
    def used_bytes(self) -> int:
        """In use now."""
        while self._given:
            self._taken_bytes -= self._given.popleft()
        return self._taken_bytes

    def fits(self, length_bytes: int) -> bool:
        """Whether `take` would not wait."""
        used_bytes = self.used_bytes
        return not used_bytes or used_bytes + length_bytes <= self._limit_bytes

    async def take(self, length_bytes: int) -> None:
        """Wait until there is room, and count."""
        while not self.fits(length_bytes):  # noqa: ASYNC110  no event can be set from another thread
            await trio.sleep(LOOK_AGAIN_S)
        self._taken_bytes += length_bytes

    def give(self, length_bytes: int) -> None:
        """Count back. From any thread."""
        self._given.append(length_bytes)


class CountedBody(bytearray):
    """A body that is counted for as long as anything refers to it."""

    def __init__(self, budget: ByteBudget, counted_bytes: int) -> None:
        super().__init__()
        self._budget, self._counted_bytes = budget, counted_bytes

    def __del__(self) -> None:
        self._budget.give(self._counted_bytes)
