"""An offline laptop: /etc/resolv.conf names no server, and libp2p must be importable all the same."""

from __future__ import annotations

import subprocess
import sys


def test_the_swarm_starts_without_a_nameserver() -> None:
    code = """
import io
import node.swarm
import dns.resolver
tolerant = dns.resolver.BaseResolver.read_resolv_conf
dns.resolver.BaseResolver.read_resolv_conf = lambda self, f: tolerant(self, io.StringIO("# offline\\n"))
import node.swarm.host
assert dns.resolver.Resolver().nameservers == []
"""
    subprocess.run([sys.executable, "-c", code], check=True)
