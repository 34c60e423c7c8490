"""Reads a worker's replies from its pipe: a small reply, its header and its body together, in one read."""

from __future__ import annotations

import trio

from node.engine.messages import PREFIX, Reply, unpack_prefix, unpack_reply
from node.wire.frames import Buffer

READ_BYTES = 64 * 1024
"""A pipe's usual capacity."""


class ReplyReader:
    """Takes bytes as they come and gives messages."""

    def __init__(self, pipe: trio.abc.ReceiveStream) -> None:
        self._pipe = pipe
        self._read = b""
        """Read, and not given out yet."""

    async def next(self) -> tuple[Reply, Buffer]:
        """The next reply and its body, in memory that nobody else uses.

        Raises:
            EOFError: the pipe has ended, perhaps within a reply.
            BadWireData: that is no reply.
        """
        header_bytes, body_bytes = unpack_prefix(await self._take(PREFIX.size))
        reply = unpack_reply(await self._take(header_bytes))
        return reply, await self._take(body_bytes)

    async def _take(self, wanted: int) -> bytearray:
        data = bytearray(wanted)
        filled = 0
        while filled < wanted:
            if not self._read:
                self._read = await self._pipe.receive_some(max(READ_BYTES, min(wanted - filled, 1 << 20)))
                if not self._read:
                    raise EOFError
            part = self._read[: wanted - filled]
            data[filled : filled + len(part)] = part
            filled += len(part)
            self._read = self._read[len(part) :]
        return data
