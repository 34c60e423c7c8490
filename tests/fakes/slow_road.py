"""A connection of so many bits per second between two muxers, with the little that a kernel keeps unsent. Trio's clock.

In place of Noise over TCP: what is written leaves at the rate of the road, in order, and is read at the other end.
"""

from __future__ import annotations

import trio

KERNEL_BYTES = 16 * 1024
"""TCP_NOTSENT_LOWAT, as trio sets it: a writer waits while more than this has not been sent."""


class SlowRoad:
    """One end. `pair` makes both."""

    def __init__(self, mbit_per_s: float, delay_s: float, *, is_initiator: bool) -> None:
        self.is_initiator = is_initiator
        self.is_stopped = False
        """Whether this end reads nothing any more, without hanging up."""
        self._bytes_per_s, self._delay_s = mbit_per_s * 1e6 / 8, delay_s
        self._free_s = 0.0
        """When all that was written has left."""
        self._arrived = bytearray()
        self._stirred = trio.Event()
        self._closed = False
        self._on_the_way, self._leaving = trio.open_memory_channel[tuple[float, bytes]](10_000)
        self.other: SlowRoad

    @classmethod
    def pair(cls, mbit_per_s: float, delay_s: float = 0.0) -> tuple[SlowRoad, SlowRoad]:
        one, other = cls(mbit_per_s, delay_s, is_initiator=True), cls(mbit_per_s, delay_s, is_initiator=False)
        one.other, other.other = other, one
        return one, other

    async def carry(self) -> None:
        """Bring what this end writes to the other; runs beside both."""
        async for due_s, data in self._leaving:
            await trio.sleep_until(due_s)
            self.other._arrived += data
            self.other._stir()

    async def write(self, data: bytes) -> None:
        if self._closed:
            raise trio.BrokenResourceError
        now = trio.current_time()
        self._free_s = max(self._free_s, now) + len(data) / self._bytes_per_s
        self._on_the_way.send_nowait((self._free_s + self._delay_s, data))
        await trio.sleep_until(self._free_s - KERNEL_BYTES / self._bytes_per_s)

    async def read(self, n: int | None = None) -> bytes:
        wanted = 1 if n is None else n
        while len(self._arrived) < wanted or self.is_stopped:
            if self._closed:
                return b""
            await self._stirred.wait()
        taken = bytes(self._arrived[:wanted])
        del self._arrived[:wanted]
        return taken

    async def close(self) -> None:
        await trio.lowlevel.checkpoint()
        self._closed = True
        self._stir()

    def get_remote_address(self) -> tuple[str, int] | None:
        return None

    def _stir(self) -> None:
        self._stirred.set()
        self._stirred = trio.Event()
