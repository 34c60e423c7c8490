"""Both sides of a fresh connection prove that they know the swarm's secret, without telling it.

Noise has proven both peer ids before. Each side sends a fresh nonce, then an HMAC under the secret over both ids, both
nonces and its own role; so a proof fits one connection in one direction, can be neither replayed nor reflected, and
nobody in the middle can make one. The dialer proves first: whoever only waits learns nothing from us.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass
from typing import Protocol

from node.errors import NotAdmitted
from node.swarm.secret import SwarmSecret
from node.wire.control import Admission, Hello, Proof
from node.wire.ids import NodeId
from node.wire.versions import LEAST_WIRE_VERSION, WIRE_VERSION, common

PURPOSE = b"admission 2"


class Talk(Protocol):
    """Where the messages of an admission go; the caller bounds the time."""

    async def send(self, message: Admission) -> None:
        """Send one message."""

    async def receive(self) -> Admission:
        """The next message; raises for anything else, and when the peer hangs up."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """What is known of a peer that has proven that it belongs."""

    life: bytes
    version: int
    """The wire version that both sides speak: the highest common one."""
    most: int
    """The highest that the peer speaks: it may say what we do not know."""


async def admit(
    talk: Talk,
    secret: SwarmSecret,
    own_id: NodeId,
    peer: NodeId,
    life: bytes,
    *,
    dialed: bool,
    versions: tuple[int, int] = (LEAST_WIRE_VERSION, WIRE_VERSION),
) -> Admitted:
    """Prove membership to `peer` and have it prove its own; `dialed`: whether we made this connection.

    Sends no proof to a listener without a common version, and none to a dialer that gave none. The proofs hold the
    versions of both, so nobody in the middle can talk two nodes down.

    Raises:
        NotAdmitted: there is no common version, or the peer does not know the secret.
    """
    ours = Hello(versions[1], secrets.token_bytes(32), life, versions[0])
    await talk.send(ours)
    theirs = await talk.receive()
    if not isinstance(theirs, Hello):
        raise NotAdmitted(peer, "it began with a proof")
    version = common(versions, theirs.versions)
    if version is None:
        older = "that node" if theirs.wire_version < versions[0] else "this node"
        raise NotAdmitted(
            peer, f"it speaks wire version {_range(theirs.versions)}, this node {_range(versions)}; upgrade {older}"
        )
    dialer, listener = (ours, theirs) if dialed else (theirs, ours)
    ids = (own_id.encode(), peer.encode()) if dialed else (peer.encode(), own_id.encode())

    def proof(role: bytes) -> bytes:
        said = (*_spoken(dialer), *_spoken(listener))
        return secret.derive(PURPOSE, role, *ids, dialer.nonce, listener.nonce, dialer.life, listener.life, *said)

    if dialed:
        await talk.send(Proof(proof(b"dialer")))
        await _expect(talk, peer, proof(b"listener"))
    else:
        await _expect(talk, peer, proof(b"dialer"))
        await talk.send(Proof(proof(b"listener")))
    return Admitted(theirs.life, version, theirs.versions[1])


def _spoken(hello: Hello) -> tuple[bytes, ...]:
    return tuple(version.to_bytes(4, "big") for version in hello.versions)


def _range(versions: tuple[int, int]) -> str:
    least, most = versions
    return f"{most}" if least == most else f"{least} to {most}"


async def _expect(talk: Talk, peer: NodeId, mac: bytes) -> None:
    answer = await talk.receive()
    if not isinstance(answer, Proof) or not hmac.compare_digest(answer.mac, mac):
        raise NotAdmitted(peer, "it does not know this swarm's secret; invite it with `parallax invite`")
