"""One connection to one peer, from the first proven byte to the last: admission, heartbeat, news, links.

    nursery of the connection
    ├── yamux                         libp2p's frames
    ├── inbound streams               one task each; a stranger may open the control stream and nothing else
    └── admission, then               on the control stream, which the dialer opens
        ├── reader, writer            of control messages
        └── heart                     pings, and ends the connection when nothing comes, or no answer

Whatever a peer provokes ends this connection and nothing else. It owns its socket: the socket is closed when `serve`
returns, whichever way.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Literal, Protocol

import trio
from libp2p.custom_types import TProtocol
from libp2p.stream_muxer.yamux.yamux import YamuxStream

from node.errors import BadWireData, LinkClosed, NotAdmitted
from node.swarm.admission import admit
from node.swarm.base import LANES, Lane
from node.swarm.control_queue import ControlQueue
from node.swarm.heartbeat import UNANSWERED_AFTER_S, PeerClock, SilenceWatch
from node.swarm.muxed_stream import MuxedStream
from node.swarm.secret import SwarmSecret
from node.swarm.socket_stream import SocketStream
from node.swarm.strict_yamux import UNREAD_LIMIT_BYTES, StrictYamux
from node.wire.codec import encode
from node.wire.control import ADMISSION_LIMIT_BYTES, CONTROL_LIMIT_BYTES, Admission, Control, News, Ping, Pong
from node.wire.ids import NodeId, short_id

log = logging.getLogger(__name__)

CONTROL_PROTOCOL = "/parallax/control/1"

STRANGER_STREAMS = 4
MEMBER_STREAMS = 32
"""Inbound streams open at once; an honest member has two lanes, and what it carries for others. More are a flood and
end the connection."""

OPEN_STREAM_S = 5.0

Why = Literal["silent", "disconnected"]


class ConnectionOwner(Protocol):
    """What a connection needs of the swarm around it."""

    secret: SwarmSecret
    own_id: NodeId
    life: bytes
    versions: tuple[int, int]
    """The least and the highest wire version that this node speaks."""

    def joined(self, connection: Connection) -> None:
        """The peer is admitted."""

    def told(self, connection: Connection, news: News) -> None:
        """It told us something. Raises BadWireData where it must be let go for it."""

    def clock_of(self, peer: NodeId) -> PeerClock:
        """The one clock of that peer, whatever connections there are with it."""

    def beat_s(self, connection: Connection) -> float:
        """How long to wait between two pings on it."""

    def protocols(self, connection: Connection) -> tuple[str, ...]:
        """What the peer may open streams for, once it is admitted."""

    async def serve_stream(self, connection: Connection, protocol: str, stream: MuxedStream) -> None:
        """It opened a stream to us for one of these; returns when that is over."""

    def parted(self, connection: Connection) -> None:
        """An admitted connection is over."""


class Connection:
    """Made by the two ways in, `front_door` and `dialer`; run by `serve`."""

    def __init__(
        self, owner: ConnectionOwner, muxed: StrictYamux, socket: SocketStream, peer: NodeId, *, dialed: bool
    ) -> None:
        self.peer = peer
        self.dialed = dialed
        """Whether we made it."""
        self.life = b""
        """Of the peer's process."""
        self.version = self.peer_most = 0
        """The wire version that is spoken here, and the highest that the peer knows."""
        self.admitted_s = math.inf
        self.clock = PeerClock()
        """The peer's, once it is admitted: shared by all connections with it."""
        self.outbox = ControlQueue(owner.own_id)
        self.why: Why = "disconnected"
        """Why it ended."""
        self.reason = ""
        """The same for people."""
        self.lanes: Counter[Lane] = Counter()
        """Link streams in use, in both directions."""
        self.cut: set[Lane] = set()
        """Lanes that were in use when it ended."""
        self.inbound_links = 0
        self.is_over = False
        self.nursery: trio.Nursery
        """For what ends with the connection."""
        self._owner, self._muxed, self._socket = owner, muxed, socket
        self._scope = trio.CancelScope()
        self._admitted = trio.Event()
        self._inbound = 0
        self._control_asked = False
        self._answered_s = 0.0
        """When the last answer to a ping came, by trio's clock."""
        self._control_in, self._control_out = trio.open_memory_channel[MuxedStream](1)

    @property
    def links(self) -> int:
        """How many link streams it carries, in both directions."""
        return self.lanes.total()

    def lane_over(self, lane: Lane) -> bool:
        """A link stream ended; whether it ended alone, and not with the connection."""
        self.lanes[lane] -= 1
        if self.is_ending:
            self.cut.add(lane)
        return not self.is_ending

    def lanes_cut(self) -> tuple[Lane, ...]:
        """Those that its end has cut."""
        return tuple(lane for lane in LANES if lane in self.cut or self.lanes[lane])

    @property
    def heard_s(self) -> float:
        """When the last byte came, by trio's clock."""
        return self._socket.heard_s

    @property
    def is_ending(self) -> bool:
        """Whether it is over or about to be. What runs on an admitted connection may see its streams end before."""
        return (
            self.is_over
            or self._muxed.event_shutting_down.is_set()
            or self._scope.cancel_called
            or self.nursery.cancel_scope.cancel_called
        )

    def start(self, work: Callable[..., Awaitable[None]], *args: object) -> bool:
        """Run `work`, which must not raise, as a task of this admitted connection; False where it ends already."""
        if self.is_ending:
            return False
        self.nursery.start_soon(work, *args)
        return True

    def end(self, why: Why, reason: str) -> None:
        """Have it end now. The reason is for the log of whoever looks into it."""
        log.debug("connection with %s ends: %s", short_id(self.peer), reason)
        self.why, self.reason = why, reason
        self._scope.cancel()

    async def serve(self, deadline_s: float, admitted: Callable[[], None]) -> None:
        """Run the connection until it ends; `admitted` is called when the peer is.

        Raises:
            NotAdmitted: it was not, by `deadline_s` (trio's clock) or for its answers. Nothing is raised after that.
        """
        self._scope.deadline = deadline_s
        failure: Exception | None = None
        try:
            with self._scope:
                async with trio.open_nursery() as self.nursery:
                    self.nursery.start_soon(self._ends_with, self._muxed.run)
                    self.nursery.start_soon(self._ends_with, self._accept_streams)
                    try:
                        stream = await self._admission()
                        self._scope.deadline = math.inf
                        self.clock = self._owner.clock_of(self.peer)
                        self._owner.joined(self)
                        self._admitted.set()
                        admitted()
                        self._start_control(stream)
                        await trio.sleep_forever()
                    except Exception as error:
                        failure = error
                    finally:
                        # at once, in whatever way this ends: writes cannot be cancelled, but they fail on a closed
                        # socket, and one that waits for a stopped peer would hold up the end of the connection
                        self._socket.close_now(abruptly=self.why == "silent")
                    self.nursery.cancel_scope.cancel()
        finally:
            self.is_over = True
            if self.admitted_s < math.inf:
                self._owner.parted(self)
            await self._wake_waiters()
        if self.admitted_s == math.inf:
            if isinstance(failure, NotAdmitted):
                raise failure
            why = _told(failure) if failure else self.reason or "it took too long"
            raise NotAdmitted(self.peer, why, refused=False)

    async def open(self, protocol: str) -> MuxedStream:
        """A fresh stream of ours with that protocol on it.

        Not cancelled half way by an impatient caller, since that could break the connection for all.

        Raises:
            LinkClosed: the connection is over, or the peer refused or took too long.
        """
        stream: MuxedStream | None = None
        try:
            with trio.CancelScope(shield=True), trio.fail_after(OPEN_STREAM_S):
                stream = MuxedStream(self._muxed, await self._muxed.open_stream())
                await stream.choose(protocol)
        except Exception as error:
            if stream is not None:
                self.start(stream.close)
            raise LinkClosed(self.peer, _told(error)) from error
        return stream

    async def _admission(self) -> MuxedStream:
        await self._muxed.event_started.wait()
        stream = await self.open(CONTROL_PROTOCOL) if self.dialed else await self._control_out.receive()
        talk = _Talk(stream, self.peer)
        owner = self._owner
        admitted = await admit(
            talk, owner.secret, owner.own_id, self.peer, owner.life, dialed=self.dialed, versions=owner.versions
        )
        self.life, self.version, self.peer_most = admitted.life, admitted.version, admitted.most
        self.admitted_s = trio.current_time()
        self._muxed.unread_limit_bytes = UNREAD_LIMIT_BYTES
        return stream

    def _start_control(self, stream: MuxedStream) -> None:
        for work in (self._read_control, self._write_control):
            self.nursery.start_soon(self._ends_with, work, stream)
        self.nursery.start_soon(self._ends_with, self._beat)

    async def _ends_with(self, work: Callable[..., Awaitable[None]], *args: object) -> None:
        """Run a part of the connection that it cannot be without. A door: what a peer provokes stops here."""
        try:
            await work(*args)
        except BadWireData as error:
            log.warning("%s sent what it must not and is disconnected: %s", short_id(self.peer), error)
            self.end("disconnected", str(error))
        except Exception as error:
            self.end("disconnected", _told(error))
        else:
            self.end("disconnected", "the peer hung up")

    async def _accept_streams(self) -> None:
        while True:
            stream: YamuxStream = await self._muxed.accept_stream()
            self._inbound += 1
            if self._inbound > (STRANGER_STREAMS if self.admitted_s == math.inf else MEMBER_STREAMS):
                raise BadWireData(f"connection of {short_id(self.peer)}", "too many streams at once")
            self.nursery.start_soon(self._serve_stream, MuxedStream(self._muxed, stream))

    async def _serve_stream(self, stream: MuxedStream) -> None:
        """One inbound stream. The second door: a bad one costs the peer its connection, a failed one only itself.

        The first on an accepted connection must be the control stream. All others wait for the admission: to a
        stranger they stay silent, and a member that was admitted a moment before it knew is not turned away.
        """
        try:
            if not self.dialed and not self._control_asked:
                self._control_asked = True
                await stream.offer({TProtocol(CONTROL_PROTOCOL): None})
                await self._control_in.send(stream)
                self._inbound -= 1
                return
            await self._admitted.wait()
            chosen = await stream.offer({TProtocol(name): None for name in self._owner.protocols(self)})
            if chosen is not None:
                await self._owner.serve_stream(self, chosen, stream)
        except BadWireData as error:
            log.warning("%s sent what it must not and is disconnected: %s", short_id(self.peer), error)
            self.end("disconnected", str(error))
        except Exception as error:
            log.debug("a stream of %s ended: %s", short_id(self.peer), _told(error))
        await stream.close()
        self._inbound -= 1

    async def _read_control(self, stream: MuxedStream) -> None:
        where = f"control message of {short_id(self.peer)}"
        while True:
            message = await _receive(stream, where)
            now = time.perf_counter()
            match message:
                case Ping(number):
                    self.outbox.answer(number, now)
                case Pong():
                    self.clock.pong(message, now)
                    self._answered_s = trio.current_time()
                case _:
                    self._owner.told(self, message)

    async def _write_control(self, stream: MuxedStream) -> None:
        while True:
            batch = await self.outbox.take()
            for number, received_s in batch.answers:
                await _send(stream, Pong(number, received_s, time.perf_counter()))
            if batch.ping:
                await _send(stream, Ping(self.clock.ping(time.perf_counter())))
            for message in batch.messages:
                await _send(stream, message)

    async def _beat(self) -> None:
        """Two ways to lose a peer: nothing comes, or nothing arrives there. Both ends see the second as the first."""
        self._answered_s = trio.current_time()
        silence, deafness = SilenceWatch(self._answered_s), SilenceWatch(self._answered_s, UNANSWERED_AFTER_S)
        while True:
            beat_s = self._owner.beat_s(self)
            self.outbox.ping()
            await trio.sleep(beat_s)
            now = trio.current_time()
            is_silent = silence.tick(now, self.heard_s, beat_s)
            is_deaf = deafness.tick(now, self._answered_s, beat_s)
            if is_silent or is_deaf:
                self.end("silent", "nothing came for too long" if is_silent else "it answers nothing")

    async def _wake_waiters(self) -> None:
        """Tell those who wait on a stream of this connection, in other tasks, that it is over.

        yamux would first say goodbye to the peer; with the socket closed, that fails at once.
        """
        with trio.CancelScope(shield=True), trio.move_on_after(1):
            await self._muxed.close()


class _Talk:
    """The admission's messages on the control stream."""

    def __init__(self, stream: MuxedStream, peer: NodeId) -> None:
        self._stream, self._peer = stream, peer

    async def send(self, message: Admission) -> None:
        await _send(self._stream, message)

    async def receive(self) -> Admission:
        where = f"admission of {short_id(self._peer)}"
        try:
            message: Admission = await self._stream.read_message(
                Admission,  # type: ignore[arg-type]  # msgspec takes a union, typing has no name for it
                where=where,
                limit_bytes=ADMISSION_LIMIT_BYTES,
            )
        except EOFError as error:
            raise NotAdmitted(self._peer, "it hung up: perhaps it belongs to another swarm") from error
        return message


async def _send(stream: MuxedStream, message: Admission | Control) -> None:
    data = encode(message)
    await stream.write(len(data).to_bytes(4, "little") + data)


async def _receive(stream: MuxedStream, where: str) -> Control:
    message: Control = await stream.read_message(
        Control,  # type: ignore[arg-type]  # as above
        where=where,
        limit_bytes=CONTROL_LIMIT_BYTES,
    )
    return message


def _told(error: Exception) -> str:
    return str(error) or type(error).__name__
