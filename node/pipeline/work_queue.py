"""Which step the engine runs next: decode steps before prompt chunks, but never so that a prompt waits for ever."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

import trio

DECODES_PER_CHUNK = 4
"""Decode steps that may go before a prompt chunk that waits. An answer that streams is slowed by a quarter of a chunk
per token at most, and a prompt goes on while others decode, however many they are."""

T = TypeVar("T")


class WorkQueue(Generic[T]):
    """Two queues in order of arrival, and the rule between them."""

    def __init__(self) -> None:
        self._decodes: deque[T] = deque()
        self._chunks: deque[T] = deque()
        self._decodes_in_a_row = 0
        self._news = trio.Event()

    def __len__(self) -> int:
        return len(self._decodes) + len(self._chunks)

    def push(self, item: T, *, decode: bool) -> None:
        (self._decodes if decode else self._chunks).append(item)
        self.wake()

    def wake(self) -> None:
        """Have `wait` return, for work that is not in the queue."""
        self._news.set()

    async def wait(self) -> None:
        """Until something was pushed, or `wake` was called, since the last wait."""
        await self._news.wait()
        self._news = trio.Event()

    def pop(self) -> T | None:
        """The next item; None where there is none."""
        if self._decodes and not (self._chunks and self._decodes_in_a_row >= DECODES_PER_CHUNK):
            self._decodes_in_a_row += 1
            return self._decodes.popleft()
        self._decodes_in_a_row = 0
        return self._chunks.popleft() if self._chunks else None
