"""Where a node listens, as libp2p multiaddresses over TCP. Reads untrusted ones with a strict pattern."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import psutil

from node.wire.ids import NodeId

ADDRESS_LIMIT = 16
"""As many as a node record takes."""

_PATTERN = re.compile(
    r"/(?P<kind>ip4|ip6|dns|dns4|dns6)/(?P<host>[0-9A-Za-z.:_-]{1,253})/tcp/(?P<port>[0-9]{1,5})"
    r"(?:/p2p/(?P<peer>[1-9A-HJ-NP-Za-km-z]{40,64}))?"
)


@dataclass(frozen=True, slots=True)
class Address:
    """`/ip4/192.0.2.7/tcp/4001`, with `/p2p/ID` where it is known who answers."""

    kind: Literal["ip4", "ip6", "dns", "dns4", "dns6"]
    host: str
    port: int
    peer: NodeId | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Raises ValueError for anything but a TCP multiaddress."""
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is no address like /ip4/192.0.2.7/tcp/4001")
        kind, host, port = match["kind"], match["host"], int(match["port"])
        if port > 65535:
            raise ValueError(f"{text!r}: a port is at most 65535")
        if kind == "ip4":
            host = str(ipaddress.IPv4Address(host))
        elif kind == "ip6":
            host = str(ipaddress.IPv6Address(host))
        peer = NodeId(match["peer"]) if match["peer"] else None
        return cls(kind, host, port, peer)  # type: ignore[arg-type]  # the pattern admits only these kinds

    def __str__(self) -> str:
        tail = f"/p2p/{self.peer}" if self.peer else ""
        return f"/{self.kind}/{self.host}/tcp/{self.port}{tail}"

    @property
    def is_loopback(self) -> bool:
        """Reaches only nodes of the same machine."""
        return self.kind in ("ip4", "ip6") and ipaddress.ip_address(self.host).is_loopback

    @property
    def is_any(self) -> bool:
        """0.0.0.0 or ::, which stand for every interface."""
        return self.kind in ("ip4", "ip6") and ipaddress.ip_address(self.host).is_unspecified

    def is_near(self, ours: Address) -> bool:
        """Whether it can be of the same local network as that address of ours: `/24`, or `/64` for IPv6, and on."""
        if self.kind != ours.kind or self.kind not in ("ip4", "ip6"):
            return False
        ip = ipaddress.ip_address(self.host)
        if ip.is_multicast or ip.is_unspecified or ip.is_loopback:
            return False
        if ip.is_private or ip.is_link_local:
            return True  # a house may have several subnets, and mDNS reflectors between them
        length = 24 if self.kind == "ip4" else 64
        return ip in ipaddress.ip_network(f"{ours.host}/{length}", strict=False)

    def at(self, peer: NodeId | None) -> Address:
        """The same place with that peer (or none) behind it."""
        return replace(self, peer=peer)


def parse_all(texts: Iterable[str]) -> tuple[Address, ...]:
    """The addresses among `texts` that can be read; a peer's odd one costs only itself."""
    found = []
    for text in texts:
        try:
            found.append(Address.parse(text))
        except ValueError:
            continue
    return tuple(found)


def announced(listening: Iterable[Address]) -> tuple[Address, ...]:
    """What others may dial: every interface's address for `0.0.0.0` and `::`. Link-local and loopback come last."""
    expanded: dict[Address, None] = {}
    for address in listening:
        for place in _interfaces(address) if address.is_any else (address,):
            expanded[place] = None
    return tuple(sorted(expanded, key=_reach)[:ADDRESS_LIMIT])


def _interfaces(address: Address) -> list[Address]:
    family = socket.AF_INET if address.kind == "ip4" else socket.AF_INET6
    running = {name for name, state in psutil.net_if_stats().items() if state.isup}
    found = []
    for name, entries in psutil.net_if_addrs().items():
        for entry in entries:
            if entry.family != family or name not in running:
                continue
            ip = ipaddress.ip_address(entry.address.split("%")[0])
            if isinstance(ip, ipaddress.IPv6Address) and ip.is_link_local:
                continue  # means nothing without the other machine's interface name
            found.append(replace(address, host=str(ip)))
    return found


def _reach(address: Address) -> int:
    if address.kind not in ("ip4", "ip6"):
        return 0
    ip = ipaddress.ip_address(address.host)
    return 2 if ip.is_loopback else 1 if ip.is_link_local else 0
