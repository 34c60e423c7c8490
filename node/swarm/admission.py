"""Both sides of a fresh connection prove that they know the swarm's secret, without telling it.

Noise has proven both peer ids before. Each side sends a fresh nonce, then an HMAC under the secret over both ids, both
nonces and its own role; so a proof fits one connection in one direction, can be neither replayed nor reflected, and
nobody in the middle can make one. The dialer proves first: whoever only waits learns nothing from us.
"""

from __future__ import annotations

import hmac
import secrets
from typing import Protocol

from node.errors import NotAdmitted
from node.swarm.secret import SwarmSecret
from node.wire.control import Admission, Hello, Proof
from node.wire.ids import NodeId
from node.wire.records import WIRE_VERSION

PURPOSE = b"admission 1"


class Talk(Protocol):
    """Where the messages of an admission go; the caller bounds the time."""

    async def send(self, message: Admission) -> None:
        """Send one message."""

    async def receive(self) -> Admission:
        """The next message; raises for anything else, and when the peer hangs up."""


async def admit(talk: Talk, secret: SwarmSecret, own_id: NodeId, peer: NodeId, life: bytes, *, dialed: bool) -> bytes:
    """Prove membership to `peer` and have it prove its own; `dialed`: whether we made this connection.

    Returns the peer's `life`. Sends no proof to a listener of another version, and none to a dialer that gave none.

    Raises:
        NotAdmitted: the versions differ, or the peer does not know the secret.
    """
    ours = Hello(WIRE_VERSION, secrets.token_bytes(32), life)
    await talk.send(ours)
    theirs = await talk.receive()
    if not isinstance(theirs, Hello):
        raise NotAdmitted(peer, "it began with a proof")
    if theirs.wire_version != WIRE_VERSION:
        older = "that node" if theirs.wire_version < WIRE_VERSION else "this node"
        raise NotAdmitted(
            peer, f"it speaks wire version {theirs.wire_version}, this node {WIRE_VERSION}; upgrade {older}"
        )
    dialer, listener = (ours, theirs) if dialed else (theirs, ours)
    ids = (own_id.encode(), peer.encode()) if dialed else (peer.encode(), own_id.encode())

    def proof(role: bytes) -> bytes:
        return secret.derive(PURPOSE, role, *ids, dialer.nonce, listener.nonce, dialer.life, listener.life)

    if dialed:
        await talk.send(Proof(proof(b"dialer")))
        await _expect(talk, peer, proof(b"listener"))
    else:
        await _expect(talk, peer, proof(b"dialer"))
        await talk.send(Proof(proof(b"listener")))
    return theirs.life


async def _expect(talk: Talk, peer: NodeId, mac: bytes) -> None:
    answer = await talk.receive()
    if not isinstance(answer, Proof) or not hmac.compare_digest(answer.mac, mac):
        raise NotAdmitted(peer, "it does not know this swarm's secret; invite it with `parallax invite`")
