"""From a TCP socket to a connection with proven peer ids and many streams: Noise and yamux, and nothing else.

py-libp2p's own host is not used. Stock 0.8.1 accepts plaintext, so that a public key is enough to be impersonated; it
counts inbound connections for life and refuses all after some hundreds; any exception in a stream handler ends the
process; dialing waits 250 ms, tries one address and then remembers the failure for a minute; identify tells strangers
our addresses. Its parts are sound and are what we use: Noise, yamux, multistream-select, keys and peer ids.
"""

from __future__ import annotations

from typing import cast

from libp2p.abc import ISecureConn
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.security.security_multistream import SecurityMultistream
from libp2p.stream_muxer.muxer_multistream import MuxerMultistream
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX

from node.errors import NotAdmitted
from node.swarm.identity import Identity
from node.swarm.socket_stream import SocketStream
from node.swarm.strict_yamux import StrictYamux
from node.wire.ids import NodeId

NEGOTIATION_S = 5


class Upgrader:
    """Makes connections of sockets; holds this node's keys."""

    def __init__(self, identity: Identity) -> None:
        noise = NoiseTransport(identity.key_pair, noise_privkey=create_noise_key_pair().private_key)
        self._own_id = identity.node_id
        self._security = SecurityMultistream({NOISE: noise})
        self._muxers = MuxerMultistream({TProtocol(YAMUX): StrictYamux}, NEGOTIATION_S)

    async def dialed(self, socket: SocketStream, peer: NodeId) -> StrictYamux:
        """We connected to where `peer` should listen. The caller bounds the time and owns the socket.

        Raises:
            NotAdmitted: another node answered.
            Exception: whatever libp2p raises for a peer that speaks something else.
        """
        secured = await self._security.secure_outbound(RawConnection(socket, True), ID.from_base58(peer))
        muxed = await self._muxed(secured)
        if (found := peer_of(muxed)) != peer:
            raise NotAdmitted(peer, f"another node ({found}) answered at its address")
        return muxed

    async def accepted(self, socket: SocketStream) -> StrictYamux:
        """Somebody connected to us. The caller bounds the time and owns the socket.

        Raises:
            NotAdmitted: it is this node itself.
            Exception: whatever libp2p raises for a peer that speaks something else.
        """
        secured = await self._security.secure_inbound(RawConnection(socket, False))
        muxed = await self._muxed(secured)
        if peer_of(muxed) == self._own_id:
            raise NotAdmitted(self._own_id, "this node dialed itself")
        return muxed

    async def _muxed(self, secured: ISecureConn) -> StrictYamux:
        kind = await self._muxers.select_transport(secured)
        return cast(StrictYamux, kind(secured, secured.get_remote_peer()))


def peer_of(muxed: StrictYamux) -> NodeId:
    """The id that Noise has proven of the other end."""
    return NodeId(str(muxed.peer_id.to_base58()))
