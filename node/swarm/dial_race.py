"""All addresses of a peer are tried, a quarter of a second apart; the first behind which it proves to be wins."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import trio

from node.errors import SwarmError
from node.swarm.addresses import Address
from node.swarm.socket_stream import SocketStream
from node.swarm.strict_yamux import StrictYamux

STAGGER_S = 0.25
DIAL_S = 5.0
"""For one address, from the first packet to proven peer ids."""

FAILURES_TOLD = 4

Upgrade = Callable[[SocketStream], Awaitable[StrictYamux]]
Won = tuple[StrictYamux, SocketStream]


async def first_to_answer(addresses: Sequence[Address], upgrade: Upgrade) -> Won:
    """Connect to the first address behind which `upgrade` finds the right peer; the caller owns the socket.

    Raises:
        SwarmError: none of them; says how each of the last ones failed.
    """
    race = _Race(upgrade)
    try:
        async with trio.open_nursery() as nursery:
            for address in addresses:
                failed = trio.Event()
                nursery.start_soon(race.attempt, address, failed, nursery.cancel_scope)
                with trio.move_on_after(STAGGER_S):
                    await failed.wait()
    except BaseException:
        if race.won is not None:  # in the moment in which the caller gave up
            race.won[1].close_now()
        raise
    if race.won is None:
        raise SwarmError("; ".join(race.failures[-FAILURES_TOLD:]) or "no address is known")
    return race.won


class _Race:
    def __init__(self, upgrade: Upgrade) -> None:
        self.won: Won | None = None
        self.failures: list[str] = []
        self._upgrade = upgrade

    async def attempt(self, address: Address, failed: trio.Event, others: trio.CancelScope) -> None:
        """Try one address. A door: whatever answers there, it costs this attempt alone."""
        try:
            with trio.fail_after(DIAL_S):
                muxed, socket = await self._connect(address)
        except Exception as error:
            self.failures.append(f"{address}: {_told(error)}")
            failed.set()
            return
        if self.won is not None:
            socket.close_now()
        else:
            self.won = (muxed, socket)
        others.cancel()

    async def _connect(self, address: Address) -> Won:
        socket = SocketStream(await trio.open_tcp_stream(address.host, address.port))
        try:
            return await self._upgrade(socket), socket
        except BaseException:
            socket.close_now()
            raise


def _told(error: Exception) -> str:
    """What went wrong with an address, in a few words."""
    if isinstance(error, trio.TooSlowError):
        return f"no answer within {DIAL_S:.0f} s"
    if isinstance(cause := error.__cause__, BaseExceptionGroup) and cause.exceptions:
        error = next((each for each in cause.exceptions if isinstance(each, Exception)), error)
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error) or type(error).__name__
