"""Finds members on the same LAN by mDNS, for as long as the node lives and whatever becomes of its interfaces.

The service type is a keyed hash of the swarm's secret, so only those who know it can ask for this swarm. But whoever
listens hears it: so the name of an entry and what it says carry a keyed hash too, and others' entries are not looked
at. An old entry can be said again; it is a suggestion, not a truth.

Threads: zeroconf has its own; what it finds is handed over to trio through a channel.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import re
from collections.abc import Callable, Sequence

import trio
from zeroconf import ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

from node.swarm.addresses import Address
from node.swarm.own_addresses import OwnAddresses
from node.swarm.secret import SwarmSecret
from node.wire.ids import NodeId

log = logging.getLogger(__name__)

LOOKUP_MS = 1000
LOOKUPS_AT_ONCE = 4
CLOSE_S = 1.0
TRY_AGAIN_S = 30.0
"""After a failure; a change of the interfaces is tried at once."""

FOUND_BOUND = 64
"""Entries that wait to be looked at; more than that at once is no home network, and they are repeated."""

LABEL_DIGITS = 16
_LABEL = re.compile(rf"([0-9a-f]{{{LABEL_DIGITS}}})([0-9a-f]{{{LABEL_DIGITS}}})(-[2-9])?")
"""A name that is in use already gets a number from zeroconf."""

Found = Callable[[Address], None]


def service_type(secret: SwarmSecret) -> str:
    """Such as `_plx0123456789ab._tcp.local.`: the same for all members, and a riddle for others."""
    return f"_plx{secret.derive(b'lan service').hex()[:12]}._tcp.local."


def announcement(secret: SwarmSecret, own_id: NodeId, addresses: Sequence[Address]) -> ServiceInfo | None:
    """Our entry: the addresses that a LAN can reach, all of one port, and the id that answers there."""
    reachable = [a for a in addresses if a.kind in ("ip4", "ip6") and not a.is_loopback]
    if not reachable:
        return None
    kind, port = service_type(secret), reachable[0].port
    hosts = [a.host for a in reachable if a.port == port]
    label = _label(secret, own_id)
    return ServiceInfo(
        kind,
        f"{label}.{kind}",
        parsed_addresses=hosts,
        port=port,
        properties={"id": own_id, "mac": _mac(secret, own_id, port, hosts)},
        server=f"{label}.local.",
    )


def is_of_swarm(secret: SwarmSecret, name: str) -> bool:
    """Whether a member has made this name of an entry."""
    match = _LABEL.fullmatch(name.split(".")[0])
    return match is not None and hmac.compare_digest(match[2], _seal(secret, match[1]))


def read_announcement(secret: SwarmSecret, info: ServiceInfo) -> list[Address]:
    """The addresses of an entry, none where no member has made it: anyone on the LAN can announce anything."""
    properties = info.properties or {}
    hosts = [text.split("%")[0] for text in info.parsed_addresses()[:16]]
    try:
        peer = (properties.get(b"id") or b"").decode("ascii")
        mac = (properties.get(b"mac") or b"").decode("ascii")
        if not hmac.compare_digest(mac, _mac(secret, peer, info.port or 0, hosts)):
            return []
        kinds = [(f"ip{ipaddress.ip_address(host).version}", host) for host in hosts]
        return [Address.parse(f"/{kind}/{host}/tcp/{info.port}/p2p/{peer}") for kind, host in kinds]
    except ValueError:
        return []


async def discover(secret: SwarmSecret, own_id: NodeId, own: OwnAddresses, found: Found) -> None:
    """Announce our addresses as they are now, and call `found` for those of others, until cancelled.

    Error handling: a machine without multicast, or without a network for now, is told of in the log, once for each
    reason; then it is tried again.
    """
    told = ""
    while True:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_after, own.changed, nursery.cancel_scope)
            if info := announcement(secret, own_id, own.local):
                problem = await _serve(secret, info, found)
            else:
                problem = "this node can be reached on the loopback interface alone"
            if problem != told:
                level = logging.WARNING if info else logging.INFO
                log.log(level, "LAN discovery is off for now: %s", problem)
                told = problem
            await trio.sleep(TRY_AGAIN_S)
            nursery.cancel_scope.cancel()


async def _cancel_after(event: Callable[[], object], scope: trio.CancelScope) -> None:
    await event()  # type: ignore[misc]
    scope.cancel()


async def _serve(secret: SwarmSecret, info: ServiceInfo, found: Found) -> str:
    """Take part until cancelled; returns what stood in the way."""
    send, receive = trio.open_memory_channel[str](FOUND_BOUND)
    token = trio.lowlevel.current_trio_token()

    def hand_over(name: str) -> None:
        try:
            send.send_nowait(name)
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            return

    def changed(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        """Runs in a thread of zeroconf's."""
        if state_change is ServiceStateChange.Removed or name == info.name or not is_of_swarm(secret, name):
            return
        try:
            token.run_sync_soon(hand_over, name)
        except trio.RunFinishedError:
            return

    zeroconf: Zeroconf | None = None
    try:
        zeroconf = await trio.to_thread.run_sync(_start, info, changed)
        async with trio.open_nursery() as nursery:
            for _ in range(LOOKUPS_AT_ONCE):
                nursery.start_soon(_look_up, secret, zeroconf, info.type, receive, found)
    except Exception as error:
        return str(error) or type(error).__name__
    finally:
        if zeroconf is not None:
            with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_S):
                await trio.to_thread.run_sync(zeroconf.close, abandon_on_cancel=True)  # type: ignore[call-arg]
    raise AssertionError("the channel is never closed")


async def _look_up(
    secret: SwarmSecret, zeroconf: Zeroconf, kind: str, names: trio.MemoryReceiveChannel[str], found: Found
) -> None:
    async for name in names:
        heard = await trio.to_thread.run_sync(zeroconf.get_service_info, kind, name, LOOKUP_MS)
        for address in read_announcement(secret, heard) if heard else ():
            found(address)


def _start(info: ServiceInfo, changed: Callable[..., None]) -> Zeroconf:
    zeroconf = Zeroconf()
    try:
        zeroconf.register_service(info, allow_name_change=True)
        ServiceBrowser(zeroconf, info.type, handlers=[changed])
    except BaseException:
        zeroconf.close()
        raise
    return zeroconf


def _label(secret: SwarmSecret, own_id: NodeId) -> str:
    number = secret.derive(b"lan name", own_id.encode()).hex()[:LABEL_DIGITS]
    return number + _seal(secret, number)


def _seal(secret: SwarmSecret, number: str) -> str:
    return secret.derive(b"lan label", number.encode()).hex()[:LABEL_DIGITS]


def _mac(secret: SwarmSecret, own_id: str, port: int, hosts: Sequence[str]) -> str:
    """Over all that an entry says, in no order: mDNS keeps none."""
    said = (own_id, str(port), *sorted(hosts))
    return secret.derive(b"lan announcement", *(text.encode() for text in said)).hex()
