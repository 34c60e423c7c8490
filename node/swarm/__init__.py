"""libp2p host, identity, invitation, discovery, membership, links."""

import sys
from contextlib import suppress
from typing import Any

# libp2p imports httpx, and httpx its own command line, which loads click and rich wherever they are installed: half a
# second and two libraries that no node uses. Without `_main`, httpx does without that command line, as it is built to.
if "httpx" not in sys.modules:
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]

# libp2p makes DNS resolvers while it is imported, which raise where /etc/resolv.conf names no server: an offline
# laptop, a container without a network. We never use them (the system looks names up), so let them know no server.

import dns.resolver

_read_resolv_conf = dns.resolver.BaseResolver.read_resolv_conf


def _read_if_there(self: dns.resolver.BaseResolver, f: Any) -> None:
    with suppress(dns.resolver.NoResolverConfiguration):
        _read_resolv_conf(self, f)


dns.resolver.BaseResolver.read_resolv_conf = _read_if_there  # type: ignore[method-assign]
