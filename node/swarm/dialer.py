"""Reaches the peers that we are not connected to, for as long as there is reason to.

One task per peer: dial (`dial_race`), wait longer after each failure, sleep while connected. A peer that is neither a
member nor remembered, and that nobody suggests any more, is given up.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from node.errors import SwarmError
from node.swarm.quiet import LogLimiter
from node.wire.ids import NodeId, short_id

log = logging.getLogger(__name__)

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 15.0
COURTESY_S = 1.0
"""How long the larger id lets the smaller one dial first, where both have just heard of or lost each other."""

DIALS_AT_ONCE = 16
PEER_LIMIT = 256
"""Tasks; members beyond are reached when they dial us. One that is wanted takes the place of one that is not."""

HOPELESS_AFTER = 2
"""Failed tries in a row after which other ways to a peer need not wait for this one."""


Dial = Callable[[NodeId, "NodeId | None"], Awaitable[None]]
"""Connects to a peer of whom the second, if any, has told us; raises SwarmError."""


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
    wait_s: float
    """Before the first try."""
    source: NodeId | None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    wake: trio.Event = field(default_factory=trio.Event)
    """Something changed: connected, disconnected, or a new address."""
    fresh: bool = False
    """Try at once, without waiting out the time that was set."""
    failures: int = 0
    """In a row."""


class Dialer:
    """Pursues peers; implements `node.swarm.reach.Reach`. What is asked before `run` is begun there."""

    def __init__(
        self, own_id: NodeId, is_connected: Callable[[NodeId], bool], is_wanted: Callable[[NodeId], bool]
    ) -> None:
        """`is_wanted` tells whether a peer is worth another try."""
        self._own_id, self._is_connected, self._is_wanted = own_id, is_connected, is_wanted
        self._pursuits: dict[NodeId, _Pursuit] = {}
        self._limiter = trio.CapacityLimiter(DIALS_AT_ONCE)
        self._log_limiter = LogLimiter()
        self._nursery: trio.Nursery | None = None
        self._dial: Dial | None = None

    async def run(self, dial: Dial) -> None:
        """Pursue for ever."""
        async with trio.open_nursery() as self._nursery:
            self._dial = dial
            for peer, pursuit in self._pursuits.items():
                self._nursery.start_soon(self._pursue, peer, pursuit)
            await trio.sleep_forever()

    def pursue(self, peer: NodeId, *, polite: bool, source: NodeId | None = None) -> None:
        """Be connected to this peer from now on. A repeated call changes nothing.

        `polite`: the peer has just heard of us too, so only one of the two needs to dial.
        """
        if peer in self._pursuits or peer == self._own_id or not self._has_room():
            return
        pursuit = self._pursuits[peer] = _Pursuit(self._courtesy_s(peer) if polite else 0.0, source)
        if self._nursery is not None:
            self._nursery.start_soon(self._pursue, peer, pursuit)

    def forget(self, peer: NodeId) -> None:
        """It said goodbye: when it comes back, it remembers us and dials."""
        if pursuit := self._pursuits.pop(peer, None):
            pursuit.scope.cancel()

    def hurry(self, peer: NodeId) -> None:
        """There is reason to believe that it can be reached now, or it is needed now."""
        if pursuit := self._pursuits.get(peer):
            pursuit.fresh = True
            pursuit.wake.set()

    def hurry_all(self) -> None:
        """This machine has moved to another network: whoever is lost is tried at once."""
        for peer in list(self._pursuits):
            if not self._is_connected(peer):
                self.hurry(peer)

    def lost(self, peer: NodeId) -> None:
        """We are not connected to it any more."""
        if pursuit := self._pursuits.get(peer):
            pursuit.wake.set()

    def is_hopeless(self, peer: NodeId) -> bool:
        """Whether the last tries to reach it have all failed, and it has not reached us."""
        pursuit = self._pursuits.get(peer)
        return pursuit is not None and pursuit.failures >= HOPELESS_AFTER and not self._is_connected(peer)

    def _has_room(self) -> bool:
        if len(self._pursuits) < PEER_LIMIT:
            return True
        useless = next((p for p in self._pursuits if not self._is_wanted(p) and not self._is_connected(p)), None)
        if useless is not None:
            self.forget(useless)
        return useless is not None

    async def _pursue(self, peer: NodeId, pursuit: _Pursuit) -> None:
        with pursuit.scope:
            await self._follow(peer, pursuit)
            if self._pursuits.get(peer) is pursuit:
                del self._pursuits[peer]

    async def _follow(self, peer: NodeId, pursuit: _Pursuit) -> None:
        """Returns where the peer is not worth another try."""
        backoff, wait_s = Backoff(), pursuit.wait_s
        while True:
            if self._is_connected(peer):
                backoff.reset()
                pursuit.failures = 0
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
            if not self._is_wanted(peer):
                return
            wait_s = await self._try(peer, pursuit, backoff)

    def _courtesy_s(self, peer: NodeId) -> float:
        return COURTESY_S if self._own_id > peer else 0.0

    async def _try(self, peer: NodeId, pursuit: _Pursuit, backoff: Backoff) -> float:
        """One dial; how long to wait after it."""
        assert self._dial is not None, "pursuits run in `run`"
        try:
            async with self._limiter:
                await self._dial(peer, pursuit.source)
        except SwarmError as error:
            pursuit.failures += 1
            wait_s = backoff.after_failure()
            self._tell(peer, pursuit.failures, str(error), wait_s)
            return wait_s
        pursuit.failures, pursuit.source = 0, None
        return FIRST_WAIT_S

    def _tell(self, peer: NodeId, failures: int, reason: str, wait_s: float) -> None:
        """What a joining node tries, without filling the log with those who are away for weeks."""
        told = failures & (failures - 1) == 0 and self._log_limiter.allows((peer, failures), trio.current_time())
        level = logging.INFO if told else logging.DEBUG
        log.log(level, "%s cannot be reached: %s; tried again in %.1f s", short_id(peer), reason, wait_s)
