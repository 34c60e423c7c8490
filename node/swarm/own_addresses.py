"""Where this node can be reached now, which changes: a laptop moves, Wi-Fi comes up, a name points elsewhere."""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable, Sequence

import trio

from node.swarm.addresses import ADDRESS_LIMIT, Address, announced

log = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0
"""Asking the system costs about a millisecond."""

RESOLVE_EVERY_S = 30.0
"""The names of `--announce`: dynamic ones live for a minute or more."""

RESOLVE_S = 5.0

Resolve = Callable[[str, socket.AddressFamily], Awaitable[Sequence[str]]]

FAMILIES = {"dns": socket.AF_UNSPEC, "dns4": socket.AF_INET, "dns6": socket.AF_INET6}


async def resolve(host: str, family: socket.AddressFamily) -> Sequence[str]:
    """The IP addresses of a name. Raises OSError."""
    found = await trio.socket.getaddrinfo(host, None, family, socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class OwnAddresses:
    """What peers are told and what the local network is told; `watch` keeps both true."""

    def __init__(self, bound: Sequence[Address], announce: Sequence[Address], resolve: Resolve = resolve) -> None:
        """`announce`, where it is not empty, is told to peers instead of what we listen on."""
        self._bound, self._announce, self._resolve = tuple(bound), tuple(announce), resolve
        self._local = announced(self._bound)
        self._resolved: dict[Address, tuple[Address, ...]] = {}
        self._resolved_s = -RESOLVE_EVERY_S
        self._changed = trio.Event()
        self._unknown: set[Address] = set()

    @property
    def local(self) -> tuple[Address, ...]:
        """Of our interfaces."""
        return self._local

    def told(self) -> tuple[Address, ...]:
        """What peers are told. A name is told too, after what it means now: they may know better."""
        if not self._announce:
            return self._local
        found: dict[Address, None] = {}
        for address in self._announce:
            found |= dict.fromkeys((*self._resolved.get(address, ()), address))
        return tuple(found)[:ADDRESS_LIMIT]

    async def changed(self) -> None:
        """Wait until either is another than now."""
        await self._changed.wait()

    async def watch(self, moved: Callable[[], None]) -> None:
        """Look again and again; `moved` is called after each change."""
        while True:
            before = (self._local, self.told())
            self._local = announced(self._bound)
            if trio.current_time() - self._resolved_s >= RESOLVE_EVERY_S:
                self._resolved_s = trio.current_time()
                for address in self._announce:
                    if address.kind in FAMILIES:
                        await self._look_up(address)
            if before != (self._local, self.told()):
                log.info("this node can be reached at %s now", ", ".join(map(str, self.told())) or "no address")
                self._changed.set()
                self._changed = trio.Event()
                moved()
            await trio.sleep(LOOK_EVERY_S)

    async def _look_up(self, address: Address) -> None:
        """What a name means now. One that cannot be asked for keeps its last meaning."""
        hosts: Sequence[str] = ()
        with trio.move_on_after(RESOLVE_S):
            try:
                hosts = await self._resolve(address.host, FAMILIES[address.kind])
            except OSError as error:
                log.debug("%s: %s", address.host, error)
        if hosts:
            self._unknown.discard(address)
            self._resolved[address] = tuple(
                Address("ip6" if ":" in host else "ip4", host.split("%")[0], address.port) for host in hosts
            )
        elif address not in self._unknown:
            self._unknown.add(address)
            log.warning("--announce: the name %s is not known here now; it is asked for again", address.host)
