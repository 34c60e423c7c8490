"""Who writes next where several want to write to one connection: the more urgent first, equals in order.

Whoever writes holds the connection for one piece. So what a frame waits for is the piece under way, never a whole body
of somebody else's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import IntEnum

import trio

SLOWEST_PIECE_S = 0.012
"""A piece that takes longer is too large for the link: a decode frame may wait for it and for what the kernel holds."""

FASTEST_PIECE_S = 0.003
SMALLEST_PIECE_BYTES = 8 * 1024
LARGEST_PIECE_BYTES = 64 * 1024 - 12
"""One yamux frame."""

FIRST_PIECE_BYTES = 16 * 1024
"""13 ms at 10 Mbit/s."""


class Urgency(IntEnum):
    """What may overtake what."""

    SYSTEM = 0
    """Credit, pings, the begin and end of streams: a few bytes that others wait for."""
    STEPS = 1
    """Control messages and decode frames."""
    BULK = 2
    """Prompts, and what is carried for others."""


class Turns:
    """A lock with urgencies. Between equals it is fair."""

    def __init__(self) -> None:
        self._waiting: dict[Urgency, deque[trio.Event]] = {urgency: deque() for urgency in Urgency}
        self._taken = False

    @property
    def is_taken(self) -> bool:
        """Whether whoever comes now has to wait."""
        return self._taken

    @asynccontextmanager
    async def turn(self, urgency: Urgency) -> AsyncIterator[None]:
        """Hold the connection; may be cancelled while it waits."""
        await self._take(urgency)
        try:
            yield
        finally:
            self._give()

    async def _take(self, urgency: Urgency) -> None:
        if not self._taken:
            self._taken = True
            return
        mine = trio.Event()
        self._waiting[urgency].append(mine)
        try:
            await mine.wait()
        except BaseException:
            if mine.is_set():
                self._give()
            else:
                self._waiting[urgency].remove(mine)
            raise

    def _give(self) -> None:
        """Hand the turn on. It stays taken meanwhile, so that nobody gets in between."""
        for urgency in Urgency:
            if self._waiting[urgency]:
                self._waiting[urgency].popleft().set()
                return
        self._taken = False


class PieceSize:
    """How much to write at once, so that a piece holds a slow link for some milliseconds and costs a fast one little.

    Follows how long pieces took: one that waited for the link says how fast that is.
    """

    def __init__(self) -> None:
        self.piece_bytes = FIRST_PIECE_BYTES

    def wrote(self, length_bytes: int, took_s: float) -> None:
        """A piece was handed to the kernel. Short ones say nothing: they fit into its buffer."""
        if length_bytes < self.piece_bytes // 2:
            return
        if took_s > SLOWEST_PIECE_S:
            self.piece_bytes = max(SMALLEST_PIECE_BYTES, self.piece_bytes // 2)
        elif took_s < FASTEST_PIECE_S:
            self.piece_bytes = min(LARGEST_PIECE_BYTES, self.piece_bytes * 2)
