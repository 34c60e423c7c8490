"""A lane through a third member, where two cannot reach one another: its two ends.

    origin ══ Noise, end to end ══════════════════════ target
    origin ── stream ── relay ── stream ── target              over their direct connections (`relay`)

The Noise session proves either end to the other, as on a direct connection: the relay can neither read, change, forge
nor replay a frame, only lose them, which ends the lane. One hop, always: a relay uses direct connections alone.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError, IOException
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.security.secure_session import SecureSession

from node.errors import LinkClosed, NotAdmitted
from node.swarm.base import Lane
from node.swarm.connection import Connection
from node.swarm.identity import Identity
from node.swarm.lanes import STALLED_AFTER_S
from node.swarm.muxed_stream import MuxedStream
from node.wire.circuits import CIRCUIT_LIMIT_BYTES, Answer, Introduced, NotReached, Through
from node.wire.codec import encode
from node.wire.ids import NodeId, short_id

log = logging.getLogger(__name__)

RELAY_PROTOCOL = "/parallax/relay/1"
"""Of the stream from origin to relay."""

CIRCUIT_PROTOCOL = "/parallax/circuit/1"
"""Of the stream from relay to target."""

OPEN_CIRCUIT_S = 6.0
"""Three streams' negotiation and a handshake, over two hops."""

PIECE_BYTES = 16 * 1024
"""Of a body, in one Noise message: the third hands on pieces of this size between those of others."""

NOISE_LIMIT_BYTES = 65535


@dataclass(slots=True)
class CircuitCarrier:
    """What a link through `via` runs on; see `node.swarm.stream_link.Carrier`."""

    peer: NodeId
    via: Connection

    def start(self, work: Callable[..., Awaitable[None]], *args: object) -> bool:
        """Run `work` for as long as the connection to the third lives."""
        return self.via.start(work, *args)


class CircuitStream:
    """A `FrameStream` through a third member."""

    def __init__(self, stream: MuxedStream, session: SecureSession) -> None:
        self._stream, self._session = stream, session

    async def read_exactly(self, n: int) -> bytes:
        """`n` bytes. Raises EOFError where the circuit ends before."""
        try:
            data: bytes = await self._session.read(n)
        except Exception as error:  # whatever Noise makes of a broken stream
            raise EOFError from error
        if len(data) < n:
            raise EOFError
        return data

    async def read_into(self, target: memoryview) -> None:
        """Fill `target`. Raises EOFError where the circuit ends before."""
        done = 0
        while done < len(target):
            piece = await self.read_exactly(min(PIECE_BYTES, len(target) - done))
            target[done : done + len(piece)] = piece
            done += len(piece)

    async def write_some(self, data: memoryview) -> int:
        """See `node.swarm.frame_stream.FrameStream.write_some`."""
        await self._stream.ready()
        piece = bytes(data[:PIECE_BYTES])
        with trio.CancelScope(shield=True):  # half a Noise message would end the circuit
            await self._session.write(piece)
        return len(piece)

    async def close(self) -> None:
        """Give it up, which the other end sees."""
        await self._stream.close()

    async def ended(self) -> None:
        """Wait until the other end or the third has given it up. For the origin, whom nothing is written."""
        try:
            await self._session.read(1)
        except Exception as error:
            log.debug("a circuit ended: %r", error)


class Circuits:
    """Opens and accepts them; holds this node's keys."""

    def __init__(self, identity: Identity) -> None:
        self._noise = NoiseTransport(identity.key_pair, noise_privkey=create_noise_key_pair().private_key)

    async def open(self, via: Connection, target: NodeId, lane: Lane) -> CircuitStream:
        """A lane to `target` through the member at the other end of `via`.

        Raises:
            LinkClosed: that member cannot or will not, or it is not the target who answers.
        """
        stream = await via.open(RELAY_PROTOCOL)
        prepare(stream, lane)
        try:
            with trio.fail_after(OPEN_CIRCUIT_S):
                await send(stream, Through(target, lane))
                answer: Answer = await stream.read_message(
                    Answer,  # type: ignore[arg-type]  # msgspec takes a union, typing has no name for it
                    where="answer of a relay",
                    limit_bytes=CIRCUIT_LIMIT_BYTES,
                )
                if isinstance(answer, NotReached):
                    raise LinkClosed(target, f"{short_id(via.peer)} does not carry it: {answer.reason}")
                raw = RawConnection(_Bytes(stream), True)
                session = await self._noise.secure_outbound(raw, ID.from_base58(target))
                if _peer_of(session) != target:
                    raise NotAdmitted(target, "another node answered through a relay")
        except Exception as error:
            via.start(stream.close)
            if isinstance(error, LinkClosed):
                raise
            raise LinkClosed(target, f"through {short_id(via.peer)}: {error or type(error).__name__}") from error
        except BaseException:
            via.start(stream.close)
            raise
        return CircuitStream(stream, session)

    async def accept(self, stream: MuxedStream) -> tuple[NodeId, Lane, CircuitStream]:
        """Who comes through a third, for which lane, and the circuit. The caller owns the stream.

        Raises:
            NotAdmitted: it is not who the relay says.
            BadWireData: the relay talks nonsense.
            Exception: whatever Noise makes of the rest.
        """
        with trio.fail_after(OPEN_CIRCUIT_S):
            introduced = await stream.read_message(Introduced, where="circuit", limit_bytes=CIRCUIT_LIMIT_BYTES)
            prepare(stream, introduced.lane)
            session = await self._noise.secure_inbound(RawConnection(_Bytes(stream), False))
        origin = _peer_of(session)
        if origin != introduced.origin:
            raise NotAdmitted(origin, f"it was introduced as {introduced.origin}")
        return origin, introduced.lane, CircuitStream(stream, session)


def prepare(stream: MuxedStream, lane: Lane) -> None:
    """Have a stream of a circuit wait as its lane does, with a window that does not grow: it is for somebody else."""
    stream.stalled_after_s = STALLED_AFTER_S[lane]
    stream.hold_window()
    if lane == "bulk":
        stream.give_way()


async def send(stream: MuxedStream, message: Through | Introduced | Answer) -> None:
    """Say something before the circuit begins."""
    data = encode(message)
    await stream.write(len(data).to_bytes(4, "little") + data)


def _peer_of(session: SecureSession) -> NodeId:
    return NodeId(str(session.get_remote_peer().to_base58()))


class _Bytes(ReadWriteCloser):  # type: ignore[misc]  # libp2p is not typed for us
    """A stream as Noise reads and writes it: whole reads, bounded by the largest Noise message."""

    def __init__(self, stream: MuxedStream) -> None:
        self._stream = stream

    async def read(self, n: int | None = None) -> bytes:
        wanted = 1 if n is None else n
        if wanted > NOISE_LIMIT_BYTES:
            raise IOException(f"a message of {wanted} bytes is announced, at most {NOISE_LIMIT_BYTES} are taken")
        try:
            return await self._stream.read_exactly(wanted)
        except EOFError as error:
            raise ConnectionClosedError("the circuit ended") from error

    async def write(self, data: bytes) -> None:
        await self._stream.write(data)

    async def close(self) -> None:
        await self._stream.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        return None
