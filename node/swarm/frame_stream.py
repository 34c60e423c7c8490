"""What a link needs below it: bytes of one lane, in order, in one direction each. Knows no frames and no libp2p.

Implementations: a libp2p stream (`muxed_stream`). A direct TLS connection is another; `lanes` chooses.
"""

from __future__ import annotations

from typing import Protocol


class FrameStream(Protocol):
    """Has one reader and, at a time, one writer."""

    async def read_exactly(self, n: int) -> bytes:
        """`n` bytes; the caller has checked that it wants that many. Raises EOFError where the stream ends before."""

    async def read_into(self, target: memoryview) -> None:
        """Fill `target`. Raises EOFError where the stream ends before."""

    async def write_some(self, data: memoryview) -> int:
        """Write a piece from the beginning of `data`, which is not empty; how many bytes that was.

        Waits for the peer's credit and the connection's turn. A cancelled call has written nothing.

        Raises:
            Exception: the stream is broken, or the peer took nothing for too long.
        """

    async def close(self) -> None:
        """Give it up in both directions, and tell the peer so. Cannot be cancelled; never raises."""
