"""A TCP connection as py-libp2p's Noise reads and writes it, with the bounds that a stranger needs.

py-libp2p 0.8.1's own wrapper hands out whatever piece has come, and its `read_exactly` gives up after 100 pieces: small
segments break an honest connection, and a length that a stranger names is collected in memory. This one reads whole
and refuses more than a Noise message at once.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress

import trio
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError, IOException

READ_LIMIT_BYTES = 65536
"""A Noise message is at most 65,535 bytes; nothing below Noise reads more at once."""

PIECE_BYTES = 65536

USER_TIMEOUT_MS = 10_000
"""Linux gives an unacknowledged connection up after this; our heartbeat does so earlier, this ends forgotten ones."""

WRITE_S = 15.0
"""For one piece of at most 64 KiB. Who takes less, reads nothing."""


class SocketStream(ReadWriteCloser):  # type: ignore[misc]  # libp2p is not typed for us
    """Owns the socket: closing this closes it, at once and for good."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = bytearray()
        self._writing = trio.Lock()
        self.heard_s = trio.current_time()
        """When the last byte came (trio's clock): any byte shows that the peer lives, also in a long transfer."""
        set_patience(stream)

    async def read(self, n: int | None = None) -> bytes:
        """Exactly `n` bytes, fewer only where the peer hung up; without `n` what there is.

        Raises:
            IOException: more is asked for than any honest peer needs.
            ConnectionClosedError: the connection broke.
        """
        wanted = 1 if n is None else n
        if wanted > READ_LIMIT_BYTES:
            raise IOException(f"a message of {wanted} bytes is announced, at most {READ_LIMIT_BYTES} are taken")
        while len(self._buffer) < wanted:
            try:
                piece = await self._stream.receive_some(PIECE_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise ConnectionClosedError("the connection broke", transport="tcp") from error
            if not piece:
                break
            self.heard_s = trio.current_time()
            self._buffer += piece
        taken = len(self._buffer) if n is None else wanted
        data = bytes(memoryview(self._buffer)[:taken])
        del self._buffer[:taken]
        return data

    async def write(self, data: bytes) -> None:
        """Raises ConnectionClosedError: the connection broke, also where we closed it ourselves, or took nothing."""
        async with self._writing:
            try:
                with trio.move_on_after(WRITE_S) as patience:
                    await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise ConnectionClosedError("the connection broke", transport="tcp") from error
            if patience.cancelled_caught:
                self.close_now()  # half a message is written: nothing can follow it
                raise ConnectionClosedError(f"it took nothing for {WRITE_S:.0f} s", transport="tcp")

    async def close(self) -> None:
        """Ends every read and write that waits here."""
        await self._stream.aclose()

    def close_now(self, *, abruptly: bool = False) -> None:
        """The same without a checkpoint, for clean-up in a cancelled task.

        `abruptly` tells the other end by a reset, which is not kept waiting behind what it does not acknowledge: where
        only the way from it is dead, it knows at once too.
        """
        if abruptly:
            with suppress(OSError):
                self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._stream.socket.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        """(ip, port), or None once the socket is closed."""
        return remote_address(self._stream)


def remote_address(stream: trio.SocketStream) -> tuple[str, int] | None:
    """(ip, port) of the other end, or None where it is gone already."""
    try:
        host, port = stream.socket.getpeername()[:2]
    except OSError:
        return None
    return str(host), int(port)


def set_patience(stream: trio.SocketStream) -> None:
    """Have the kernel give up on a connection that nothing comes through, where it can.

    macOS refuses to change a socket whose peer has hung up already; the first read tells of that soon enough.
    """
    with suppress(OSError):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
