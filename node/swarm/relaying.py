"""Who passes a statement on to whom. Pure.

Owners tell everyone whom they are connected to, so in a full mesh nothing is passed on. Between two members that are
not connected, all common neighbours could relay, and a swarm with one broken pair would hear everything many times: of
those only `RELAYS` do, chosen by a hash on which all agree without talking. Where the two have no common neighbour, or
none that we know of, everyone passes on what is new to him.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable

from node.wire.peer_figures import Mark

RELAYS = 3
"""Two may be lost in one moment, and the statement still arrives."""


def passes_on(own: Mark, owner: Mark, owner_reach: Collection[Mark], peer: Mark, peer_reach: Collection[Mark]) -> bool:
    """Whether we pass on what we heard of `owner` to our neighbour `peer`; their reaches are as they say themselves."""
    if peer in owner_reach:
        return False  # it hears the owner itself
    common = [mark for mark in owner_reach if mark in peer_reach and mark not in (owner, peer)]
    if own not in common and own in owner_reach:
        common.append(own)  # what `peer` says of its reach may be older than its connection to us
    if not common:
        return True
    return own in _chosen(common, owner, peer)


def _chosen(candidates: Iterable[Mark], owner: Mark, peer: Mark) -> list[Mark]:
    return sorted(candidates, key=lambda mark: hashlib.blake2b(owner + peer + mark, digest_size=8).digest())[:RELAYS]
