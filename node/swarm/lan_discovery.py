"""Finds members on the same LAN by mDNS.

The service type is a keyed hash of the swarm's secret, so only those who know it can ask for this swarm, and the
announcement tells others no more than that some program listens. Where multicast does not work, the swarm does without.

Threads: zeroconf has its own; what it finds is handed over to trio through a channel.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable, Sequence

import trio
from zeroconf import ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

from node.swarm.addresses import Address
from node.swarm.secret import SwarmSecret
from node.wire.ids import NodeId

log = logging.getLogger(__name__)

LOOKUP_MS = 2000
CLOSE_S = 1.0
FOUND_BOUND = 64
"""Announcements that wait to be looked at; more than that at once is no home network, and they are repeated."""


def service_type(secret: SwarmSecret) -> str:
    """Such as `_plx0123456789ab._tcp.local.`: the same for all members, and a riddle for others."""
    return f"_plx{secret.derive(b'lan service').hex()[:12]}._tcp.local."


async def discover(
    secret: SwarmSecret, own_id: NodeId, addresses: Sequence[Address], found: Callable[[Address], None]
) -> None:
    """Announce our addresses and call `found` for those of others, until cancelled.

    Error handling: a machine without multicast is told of in the log, once; then this returns.
    """
    kind = service_type(secret)
    info = _announcement(secret, kind, own_id, addresses)
    if info is None:
        log.info("LAN discovery is off: this node listens on the loopback interface alone")
        return
    send, receive = trio.open_memory_channel[Address](FOUND_BOUND)
    token = trio.lowlevel.current_trio_token()

    def hand_over(address: Address) -> None:
        try:
            send.send_nowait(address)
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            return

    def changed(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        """Runs in a thread of zeroconf's."""
        if state_change is ServiceStateChange.Removed or name == info.name:
            return
        heard = zeroconf.get_service_info(service_type, name, timeout=LOOKUP_MS)
        for address in _read(heard) if heard else ():
            try:
                token.run_sync_soon(hand_over, address)
            except trio.RunFinishedError:
                return

    zeroconf: Zeroconf | None = None
    try:
        zeroconf = await trio.to_thread.run_sync(_start, info, kind, changed)
        async for address in receive:
            found(address)
    except Exception as error:
        log.warning("LAN discovery is off: %s", error or type(error).__name__)
    finally:
        if zeroconf is not None:
            with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_S):
                await trio.to_thread.run_sync(zeroconf.close, abandon_on_cancel=True)  # type: ignore[call-arg]


def _start(info: ServiceInfo, kind: str, changed: Callable[..., None]) -> Zeroconf:
    zeroconf = Zeroconf()
    try:
        zeroconf.register_service(info, allow_name_change=True)
        ServiceBrowser(zeroconf, kind, handlers=[changed])
    except BaseException:
        zeroconf.close()
        raise
    return zeroconf


def _announcement(secret: SwarmSecret, kind: str, own_id: NodeId, addresses: Sequence[Address]) -> ServiceInfo | None:
    """Our entry: the addresses that a LAN can reach, all of one port, and the id that answers there."""
    reachable = [a for a in addresses if a.kind in ("ip4", "ip6") and not a.is_loopback]
    if not reachable:
        return None
    port = reachable[0].port
    label = secret.derive(b"lan name", own_id.encode()).hex()[:16]
    return ServiceInfo(
        kind,
        f"{label}.{kind}",
        parsed_addresses=[a.host for a in reachable if a.port == port],
        port=port,
        properties={"id": own_id},
        server=f"{label}.local.",
    )


def _read(info: ServiceInfo) -> list[Address]:
    """The addresses of somebody else's entry; untrusted, anyone on the LAN can announce anything."""
    peer = (info.properties or {}).get(b"id") or b""
    found = []
    for text in info.parsed_addresses()[:16]:
        try:
            ip = ipaddress.ip_address(text.split("%")[0])
            kind = "ip4" if ip.version == 4 else "ip6"
            found.append(Address.parse(f"/{kind}/{ip}/tcp/{info.port}/p2p/{peer.decode('ascii')}"))
        except ValueError:
            continue
    return found
