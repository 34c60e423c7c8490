"""The few batches that a worker may have at a time, each at a place of its own."""

from __future__ import annotations

import trio


class Places:
    """Numbers from 0 on, which are taken and given back."""

    def __init__(self, count: int) -> None:
        self._free = list(reversed(range(count)))
        self._turns = trio.Semaphore(count, max_value=count)

    async def take(self) -> int:
        """The next free one, in the order of those who ask."""
        await self._turns.acquire()
        return self._free.pop()

    def give_back(self, place: int) -> None:
        """Let somebody else have it."""
        self._free.append(place)
        self._turns.release()
