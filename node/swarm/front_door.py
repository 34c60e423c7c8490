"""Where strangers knock: accepts TCP connections, and bounds how many may be on their way to admission at once.

When too many are half open, the oldest of whoever has the most goes, not the newest: an honest handshake takes
milliseconds and gets through a crowd of idle ones, also where all of them share one address (several nodes on one
machine, a whole house behind one router). py-libp2p's listener has no such bound, and shares its port with any other
process of the same user (SO_REUSEPORT), which would hand half of our connections to another node.
"""

from __future__ import annotations

import errno
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import trio

from node.errors import UsageError
from node.swarm.addresses import Address
from node.swarm.quiet import LogLimiter
from node.swarm.socket_stream import SocketStream, remote_address

log = logging.getLogger(__name__)

HALF_OPEN_LIMIT = 128
"""File descriptors that strangers may hold; with 50 ms for an honest handshake, 2,500 new ones per second fit."""

ADMISSION_S = 5.0
"""From the accepted socket to the proof; slow-loris and half-open connections end here."""


NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
NO_ROOM_S = 0.5
"""Half-open connections end within `ADMISSION_S` and make room."""

Listener = trio.SocketListener


@dataclass(eq=False, slots=True)
class _HalfOpen:
    ip: str
    scope: trio.CancelScope


class PendingConnections:
    """Who has knocked and is not yet admitted. Oldest first."""

    def __init__(self, limit: int = HALF_OPEN_LIMIT) -> None:
        self._limit = limit
        self._waiting: dict[_HalfOpen, None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def enter(self, ip: str, scope: trio.CancelScope) -> Callable[[], None]:
        """Take a place, for which `scope` is cancelled if it goes to somebody else. Call the result to give it back."""
        if len(self._waiting) >= self._limit:
            self._evict()
        guest = _HalfOpen(ip, scope)
        self._waiting[guest] = None

        def leave() -> None:
            self._waiting.pop(guest, None)

        return leave

    def _evict(self) -> None:
        crowd, _ = Counter(guest.ip for guest in self._waiting).most_common(1)[0]
        oldest = next(guest for guest in self._waiting if guest.ip == crowd)
        del self._waiting[oldest]
        oldest.scope.cancel()


EVERYWHERE = (Address("ip4", "0.0.0.0", 0), Address("ip6", "::", 0))
"""Listened on where nothing else is asked for: all that this machine has of it."""


async def open_listeners(wanted: Sequence[Address], remembered: dict[str, int]) -> list[tuple[Address, Listener]]:
    """Listen on each address, or on `EVERYWHERE`; which of them got which listener.

    Port 0 tries the port of last time first, so that others find us where we were, then that of the other family.

    Raises:
        UsageError: an address is not this machine's, or its port is taken.
    """
    opened: list[tuple[Address, Listener]] = []
    try:
        for address in wanted or EVERYWHERE:
            last_port = remembered.get(str(address), 0)
            if not wanted and opened:
                last_port = int(opened[0][1].socket.getsockname()[1])
            try:
                opened += [(address, listener) for listener in await _open(address, last_port)]
            except UsageError as error:
                if wanted or (address is EVERYWHERE[-1] and not opened):
                    raise
                log.info("%s", error)
    except BaseException:
        for _, listener in opened:
            listener.socket.close()
        raise
    return opened


async def _open(address: Address, last_port: int) -> Sequence[Listener]:
    if address.port == 0 and last_port:
        try:
            return await trio.open_tcp_listeners(last_port, host=address.host)
        except OSError:
            log.info("port %d of last time is taken; another one is used", last_port)
    try:
        return await trio.open_tcp_listeners(address.port, host=address.host)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(
            f"--listen {address}: cannot listen there ({reason}); choose another address or port"
        ) from error


async def answer(
    listeners: Sequence[Listener],
    vestibule: PendingConnections,
    admit: Callable[[SocketStream, Callable[[], None]], Awaitable[None]],
) -> None:
    """Accept forever. `admit` serves one connection to its end, and calls its second argument once it is admitted.

    Error handling: what `admit` raises is its own bug and is not caught here.
    """

    async def knock(stream: trio.SocketStream) -> None:
        remote = remote_address(stream)
        if remote is None:
            stream.socket.close()
            return
        with trio.CancelScope() as scope:
            leave = vestibule.enter(remote[0], scope)
            try:
                await admit(SocketStream(stream), leave)
            finally:
                leave()
                stream.socket.close()

    async with trio.open_nursery() as nursery:
        log_limiter = LogLimiter()
        for listener in listeners:
            nursery.start_soon(_accept, listener, knock, nursery, log_limiter)


async def _accept(
    listener: Listener,
    knock: Callable[[trio.SocketStream], Awaitable[None]],
    nursery: trio.Nursery,
    log_limiter: LogLimiter,
) -> None:
    """Accept forever. Where the system has no room for another file, whoever knocks waits in its queue."""
    while True:
        try:
            stream = await listener.accept()
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            if log_limiter.allows(error.errno, trio.current_time()):
                log.warning("no new connection can be taken now: %s; a limit such as `ulimit -n`", error.strerror)
            await trio.sleep(NO_ROOM_S)
        else:
            nursery.start_soon(knock, stream)
