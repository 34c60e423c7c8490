"""Reaches the peers that we are not connected to, for as long as the process lives.

One task per peer: dial, wait longer after each failure, sleep while connected. All addresses of a peer are tried, a
quarter of a second apart; the first that proves to be it wins.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import trio

from node.errors import SwarmError
from node.swarm.addresses import Address
from node.swarm.socket_stream import SocketStream
from node.swarm.strict_yamux import StrictYamux
from node.wire.ids import NodeId, short_id

log = logging.getLogger(__name__)

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 15.0
STAGGER_S = 0.25
DIAL_S = 5.0
"""For one address, from the first packet to proven peer ids."""

COURTESY_S = 1.0
"""How long the larger id lets the smaller one dial first, where both have just heard of or lost each other."""

DIALS_AT_ONCE = 16
PEER_LIMIT = 256
"""Tasks; members beyond are reached when they dial us."""


class Backoff:
    """How long to wait before the next try. Jitter keeps a swarm that lost its switch from dialing in step."""

    def __init__(self) -> None:
        self._next_s = FIRST_WAIT_S

    def reset(self) -> None:
        """It worked."""
        self._next_s = FIRST_WAIT_S

    def after_failure(self) -> float:
        """Seconds to wait now."""
        wait_s = self._next_s
        self._next_s = min(LONGEST_WAIT_S, wait_s * 2)
        return wait_s * random.uniform(0.8, 1.0)


@dataclass(slots=True)
class _Pursuit:
    scope: trio.CancelScope
    wake: trio.Event
    """Something changed: connected, disconnected, or a new address."""
    fresh: bool = False
    """Try at once, without waiting out the time that was set."""


class Dialer:
    """Pursues peers in a nursery that its owner gives it."""

    def __init__(
        self,
        nursery: trio.Nursery,
        own_id: NodeId,
        is_connected: Callable[[NodeId], bool],
        dial: Callable[[NodeId], Awaitable[None]],
    ) -> None:
        self._own_id = own_id
        self._nursery, self._is_connected, self._dial = nursery, is_connected, dial
        self._pursuits: dict[NodeId, _Pursuit] = {}
        self._limiter = trio.CapacityLimiter(DIALS_AT_ONCE)

    def pursue(self, peer: NodeId, *, polite: bool) -> None:
        """Be connected to this peer from now on. A repeated call changes nothing.

        `polite`: the peer has just heard of us too, so only one of the two needs to dial.
        """
        wait_s = self._courtesy_s(peer) if polite else 0.0
        if peer not in self._pursuits and len(self._pursuits) < PEER_LIMIT:
            self._pursuits[peer] = _Pursuit(trio.CancelScope(), trio.Event())
            self._nursery.start_soon(self._pursue, peer, self._pursuits[peer], wait_s)

    def forget(self, peer: NodeId) -> None:
        """It said goodbye: when it comes back, it remembers us and dials."""
        if pursuit := self._pursuits.pop(peer, None):
            pursuit.scope.cancel()

    def hurry(self, peer: NodeId) -> None:
        """There is reason to believe that it can be reached now."""
        if pursuit := self._pursuits.get(peer):
            pursuit.fresh = True
            pursuit.wake.set()

    def lost(self, peer: NodeId) -> None:
        """We are not connected to it any more."""
        if pursuit := self._pursuits.get(peer):
            pursuit.wake.set()

    async def _pursue(self, peer: NodeId, pursuit: _Pursuit, wait_s: float) -> None:
        with pursuit.scope:
            await self._follow(peer, pursuit, wait_s)

    async def _follow(self, peer: NodeId, pursuit: _Pursuit, wait_s: float) -> None:
        backoff = Backoff()
        while True:
            if self._is_connected(peer):
                backoff.reset()
                await pursuit.wake.wait()
                pursuit.wake, pursuit.fresh = trio.Event(), False
                wait_s = backoff.after_failure() + self._courtesy_s(peer)
                continue
            with trio.move_on_after(wait_s):
                while not pursuit.fresh:
                    await pursuit.wake.wait()
                    pursuit.wake = trio.Event()
            pursuit.fresh = False
            if self._is_connected(peer):
                continue
            wait_s = await self._try(peer, backoff)

    def _courtesy_s(self, peer: NodeId) -> float:
        return COURTESY_S if self._own_id > peer else 0.0

    async def _try(self, peer: NodeId, backoff: Backoff) -> float:
        """One dial; how long to wait after it."""
        try:
            async with self._limiter:
                await self._dial(peer)
        except SwarmError as error:
            log.debug("%s cannot be reached: %s", short_id(peer), error)
            return backoff.after_failure()
        return FIRST_WAIT_S


async def first_to_answer(
    addresses: Sequence[Address],
    upgrade: Callable[[SocketStream], Awaitable[StrictYamux]],
) -> tuple[StrictYamux, SocketStream]:
    """Connect to the first address behind which `upgrade` finds the right peer; the caller owns the socket.

    Raises:
        SwarmError: none of them; says why the last one failed.
    """
    winners: list[tuple[StrictYamux, SocketStream]] = []
    failures: list[str] = []

    async def attempt(address: Address, failed: trio.Event, race: trio.CancelScope) -> None:
        try:
            with trio.fail_after(DIAL_S):
                stream = await trio.open_tcp_stream(address.host, address.port)
                socket = SocketStream(stream)
                try:
                    muxed = await upgrade(socket)
                except BaseException:
                    socket.close_now()
                    raise
        except Exception as error:
            failures.append(f"{address}: {error or type(error).__name__}")
            failed.set()
        else:
            if winners:
                socket.close_now()
            else:
                winners.append((muxed, socket))
            race.cancel()

    try:
        async with trio.open_nursery() as nursery:
            for address in addresses:
                failed = trio.Event()
                nursery.start_soon(attempt, address, failed, nursery.cancel_scope)
                with trio.move_on_after(STAGGER_S):
                    await failed.wait()
    except BaseException:
        for _, socket in winners:  # won in the moment in which the caller gave up
            socket.close_now()
        raise
    if not winners:
        raise SwarmError(failures[-1] if failures else "no address is known")
    return winners[0]
