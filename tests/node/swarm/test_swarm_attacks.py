"""What strangers and bad members can do to a node: it stays alive, gives nothing away and serves the honest.

One node in a process of its own is attacked by all of these, one after the other; at the end it has leaked nothing.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.insecure import transport as insecure

from node.home import Home
from node.swarm.admission import admit
from node.swarm.base import Arrival
from node.swarm.connection import CONTROL_PROTOCOL
from node.swarm.host import SwarmSettings, open_swarm
from node.swarm.identity import Identity, identity_from_seed
from node.swarm.invitation import read_invitation
from node.swarm.lanes import PROTOCOLS
from node.swarm.libp2p_swarm import Libp2pSwarm
from node.swarm.links import LINKS_PER_CONNECTION
from node.swarm.muxed_stream import MuxedStream
from node.swarm.secret import SwarmSecret
from node.swarm.socket_stream import SocketStream
from node.swarm.strict_yamux import StrictYamux
from node.swarm.upgrade import Upgrader
from node.wire.codec import encode
from node.wire.control import Admission, Envelopes, Hello, Proof
from node.wire.frames import Progress
from node.wire.ids import NodeId
from node.wire.parts import Beat
from node.wire.statements import Envelope
from node.wire.versions import WIRE_VERSION
from tests.fakes.frames import step_frame
from tests.node.swarm.processes import NodeProcess, node_processes

MULTISTREAM = b"\x13/multistream/1.0.0\n"
NOISE = b"\x07/noise\n"
ATTACKER = identity_from_seed(b"attacker" * 4)
MIB = 1024 * 1024
LINK_PROTOCOL = PROTOCOLS["steps"]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with node_processes(tmp_path_factory.mktemp("attacked")) as nursery:
        yield nursery.start("target").ready()


@pytest.fixture(scope="module")
def before(target: NodeProcess) -> dict[str, Any]:
    """The target's state before the first attack."""
    return target.statistics()


@pytest.fixture
def served(target: NodeProcess, before: dict[str, Any], tmp_path: Any) -> Iterator[Callable[[], Awaitable[None]]]:
    """To be called during an attack; called once more after it. An honest newcomer joins and gets an answer."""
    number = 0

    async def served() -> None:
        nonlocal number
        number += 1
        root = tmp_path / f"honest{number}"
        settings = SwarmSettings(
            home=Home(root, root, root),
            name=f"honest{number}",
            listen=("/ip4/127.0.0.1/tcp/0",),
            invitations=(target.token,),
            discover_lan=False,
            machine_id="here",
        )
        with trio.fail_after(20):
            async with open_swarm(settings) as swarm:
                await ask(swarm, NodeId(target.id))

    yield served
    assert target.alive
    trio.run(served)


async def ask(swarm: Libp2pSwarm, target: NodeId) -> None:
    """Have the target answer a frame."""
    async for _ in swarm.news:
        if target in swarm.members():
            break
    link = await swarm.link(target)
    await link.send(step_frame("0" * 32, 7, time.perf_counter()), b"body")
    arrival: Arrival = await swarm.arrivals.receive()
    assert arrival.frame == Progress("0" * 32, 1, 7)


@contextmanager
def raw(target: NodeProcess, data: bytes = b"", count: int = 1) -> Iterator[list[socket.socket]]:
    """TCP connections that have sent `data`."""
    opened = []
    try:
        for _ in range(count):
            one = socket.create_connection(("127.0.0.1", target.port), timeout=5)
            opened.append(one)
            try:
                one.sendall(data)
            except OSError:
                continue
        yield opened
    finally:
        for one in opened:
            one.close()


def is_hung_up(one: socket.socket, within_s: float) -> bool:
    """Whether the target closes the connection in time, whatever it says before."""
    one.settimeout(within_s)
    try:
        while one.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


class Enemy:
    """A libp2p peer of its own: Noise and yamux are fine, what comes then is up to the test."""

    def __init__(self, muxed: StrictYamux, who: Identity, target: NodeProcess) -> None:
        self.muxed, self._who, self._target = muxed, who, target

    async def stream(self, protocol: str | None) -> MuxedStream:
        stream = MuxedStream(self.muxed, await self.muxed.open_stream())
        if protocol is not None:
            await stream.choose(protocol)
        return stream

    async def admitted(self, secret: SwarmSecret | None = None) -> MuxedStream:
        """The control stream of a member that went bad."""
        stream = await self.stream(CONTROL_PROTOCOL)
        secret = secret or SwarmSecret(read_invitation(self._target.token).secret)
        await admit(Talk(stream), secret, self._who.node_id, NodeId(self._target.id), os.urandom(32), dialed=True)
        return stream

    async def ended(self, within_s: float) -> None:
        """Wait for the target to end the connection."""
        with trio.fail_after(within_s):
            await self.muxed.event_closed.wait()


class Talk:
    def __init__(self, stream: MuxedStream) -> None:
        self._stream = stream

    async def send(self, message: Admission) -> None:
        data = encode(message)
        await self._stream.write(len(data).to_bytes(4, "little") + data)

    async def receive(self) -> Admission:
        return await self._stream.read_message(Admission, where="test", limit_bytes=1024)  # type: ignore[arg-type]


@asynccontextmanager
async def enemy(target: NodeProcess, who: Identity = ATTACKER) -> AsyncIterator[Enemy]:
    stream = await trio.open_tcp_stream("127.0.0.1", target.port)
    sock = SocketStream(stream)
    try:
        muxed = await Upgrader(who).dialed(sock, NodeId(target.id))
        muxed.unread_limit_bytes = 64 * MIB
        async with trio.open_nursery() as nursery:
            nursery.start_soon(muxed.run)
            await muxed.event_started.wait()
            yield Enemy(muxed, who, target)
            nursery.cancel_scope.cancel()
    finally:
        sock.close_now()


def run(main: Callable[[], Awaitable[None]], limit_s: float = 40.0) -> None:
    async def bounded() -> None:
        with trio.fail_after(limit_s):
            await main()

    trio.run(bounded)


def frame(kind: int, flags: int, stream: int, length: int, body: bytes = b"") -> bytes:
    """A yamux frame."""
    return struct.pack("!BBHII", 0, kind, flags, stream, length) + body


Served = Callable[[], Awaitable[None]]

STRAY_BYTES = {
    "random": os.urandom(MIB),
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "zeros": bytes(100_000),
    "giant multistream length": b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f" + bytes(1000),
    "giant protocol length": MULTISTREAM + b"\xff\xff\xff\x7f" + b"a" * 1000,
    "plaintext": MULTISTREAM + b"\x11/plaintext/2.0.0\n" + os.urandom(300),
    "noise garbage": MULTISTREAM + NOISE + os.urandom(5000),
    "giant noise message": MULTISTREAM + NOISE + b"\x00\x20" + bytes(32) + b"\xff\xff",
}


def test_stray_bytes_of_every_kind_end_in_a_closed_connection(target: NodeProcess, served: Served) -> None:
    with ExitStack() as stack:
        opened = {name: stack.enter_context(raw(target, data, count=3)) for name, data in STRAY_BYTES.items()}
        for name, connections in opened.items():
            assert all(is_hung_up(one, 7.0) for one in connections), name
    assert target.alive


def test_two_hundred_half_open_connections_do_not_keep_the_honest_out(target: NodeProcess, served: Served) -> None:
    with raw(target, b"", count=200) as opened:
        trio.run(served)
        assert is_hung_up(opened[0], 1.0), "the oldest had to make room"


def test_slow_loris_do_not_keep_the_honest_out(target: NodeProcess, served: Served) -> None:
    with raw(target, b"", count=150) as opened:
        for position in range(4):
            for one in opened:
                try:
                    one.send(MULTISTREAM[position : position + 1])
                except OSError:
                    continue
            time.sleep(0.2)
        trio.run(served)
        assert is_hung_up(opened[-1], 8.0)


EVERY_PROTOCOL = (
    LINK_PROTOCOL,
    "/ipfs/id/1.0.0",
    "/ipfs/id/push/1.0.0",
    "/ipfs/ping/1.0.0",
    "/ipfs/kad/1.0.0",
    "/meshsub/1.1.0",
    "/libp2p/circuit/relay/0.2.0/hop",
    "/libp2p/autonat/1.0.0",
    "/rendezvous/1.0.0",
)


def test_a_stranger_gets_no_protocol_but_the_admission(target: NodeProcess, served: Served) -> None:
    async def main() -> None:
        for protocol in EVERY_PROTOCOL:
            async with enemy(target) as stranger:
                with pytest.raises(Exception):  # noqa: B017, PT011  libp2p's own, for "na" and for a closed connection
                    await stranger.stream(protocol)
        async with trio.open_nursery() as nursery:
            for refused in (beside_the_admission, listing, silence):
                nursery.start_soon(refused)

    async def beside_the_admission() -> None:
        async with enemy(target) as stranger:
            await stranger.stream(CONTROL_PROTOCOL)
            with pytest.raises(Exception), trio.fail_after(6):  # noqa: B017, PT011
                await stranger.stream(LINK_PROTOCOL)

    async def listing() -> None:
        async with enemy(target) as stranger:
            stream = await stranger.stream(None)
            await stream.write(MULTISTREAM + b"\x03ls\n")
            seen = await stream.read_exactly(len(MULTISTREAM) + len(CONTROL_PROTOCOL) + 3)
            assert seen.count(b"/parallax/") == 1

    async def silence() -> None:
        async with enemy(target) as stranger:
            await stranger.ended(within_s=7.0)

    run(main)


def test_without_the_secret_nothing_is_learned_and_the_connection_ends(target: NodeProcess, served: Served) -> None:
    heard: list[bytes] = []

    async def main() -> None:
        for attempt in ("wrong secret", "garbage", "giant", "reflection", "proof first"):
            async with enemy(target) as stranger:
                stream = await stranger.stream(CONTROL_PROTOCOL)
                talk = Talk(stream)
                if attempt == "wrong secret":
                    await talk.send(Hello(WIRE_VERSION, os.urandom(32), os.urandom(32)))
                    await talk.send(Proof(os.urandom(32)))
                elif attempt == "garbage":
                    await stream.write(b"\x20\0\0\0" + os.urandom(32))
                elif attempt == "giant":
                    await stream.write(b"\xff\xff\xff\xff" + bytes(4000))
                elif attempt == "reflection":
                    theirs = await talk.receive()
                    assert isinstance(theirs, Hello)
                    await talk.send(theirs)
                    await talk.send(Proof(bytes(32)))
                elif attempt == "proof first":
                    await talk.send(Proof(bytes(32)))
                    await talk.send(Proof(bytes(32)))
                await stranger.ended(within_s=7.0)
                heard.append(bytes(stream._buffer))

    run(main)
    for said in heard:
        assert b"/ip4" not in said
        assert b"target" not in said
        assert len(said) < 200, "a hello at most"


def test_failed_attempts_are_logged_once_a_minute_for_each_peer(target: NodeProcess, served: Served) -> None:
    who = identity_from_seed(b"knocking" * 4)

    async def main() -> None:
        for _ in range(5):
            async with enemy(target, who) as stranger:
                talk = Talk(await stranger.stream(CONTROL_PROTOCOL))
                await talk.send(Hello(WIRE_VERSION, os.urandom(32), os.urandom(32)))
                await talk.send(Proof(os.urandom(32)))
                await stranger.ended(within_s=7.0)
        await served()

    run(main)
    assert target.errors().count(who.node_id) == 1
    assert read_invitation(target.token).secret.hex() not in target.errors()


def test_a_public_key_alone_is_not_enough_to_be_taken_for_its_owner(target: NodeProcess, served: Served) -> None:
    """Stock libp2p takes plaintext, where a peer just says who it is; and Noise must not take another's key."""
    victim, mine = create_new_key_pair(), create_new_key_pair()

    async def main() -> None:
        stream = await trio.open_tcp_stream("127.0.0.1", target.port)
        with pytest.raises(Exception), trio.fail_after(7):  # noqa: B017, PT011
            await stream.send_all(MULTISTREAM + bytes([len(insecure.PLAINTEXT_PROTOCOL_ID) + 1]))
            await stream.send_all(insecure.PLAINTEXT_PROTOCOL_ID.encode() + b"\n")
            plain = insecure.InsecureTransport(mine)
            await plain.secure_outbound(RawConnection(SocketStream(stream), True), ID.from_base58(target.id))
        await stream.aclose()
        claimed = Identity(NodeId(ID.from_pubkey(victim.public_key).to_base58()), mine)
        async with enemy(target, claimed) as liar:  # a member who signs the admission with another's name
            with pytest.raises(Exception):  # noqa: B017, PT011
                await liar.admitted()

    run(main)
    assert str(ID.from_pubkey(victim.public_key).to_base58()) not in target.members()


def test_yamux_frames_that_break_its_rules_end_the_connection_at_most(target: NodeProcess, served: Served) -> None:
    batches = {
        "unknown types": [frame(9, 0, 1, 5), frame(200, 255, 7, 0xFFFFFFFF)],
        "other version": [b"\x09" * 12] * 3,
        "giant data": [frame(0, 0, 1, 0xFFFFFFFF)],
        "data for nobody": [frame(0, 0, 999, MIB, bytes(MIB))],
        "window overflow": [frame(1, 0, 1, 0xFFFFFFFF)] * 5,
        "repeated syn": [frame(1, 1, 101, 0)] * 2 + [frame(0, 1 | 8 | 4, 103, 0)],
        "unknown goaway": [frame(3, 0, 0, 77)],
        "pings": [frame(2, 1, 0, number) for number in range(2000)],
    }

    async def main() -> None:
        for frames in batches.values():
            async with enemy(target) as stranger:
                with trio.move_on_after(3):
                    for one in frames:
                        try:
                            await stranger.muxed._write_frame(one)
                        except Exception:
                            break
                    await trio.sleep(0.1)
        await served()

    run(main)
    assert target.alive


def test_a_flood_of_streams_ends_the_connection_of_strangers_and_members(target: NodeProcess, served: Served) -> None:
    async def flood(stranger: Enemy) -> None:
        try:
            for number in range(5000):
                await stranger.muxed._write_frame(frame(1, 1, 1001 + 2 * number, 0))
        except Exception:
            return

    async def main() -> None:
        for is_member in (False, True):
            async with enemy(target) as stranger:
                if is_member:
                    await stranger.admitted()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(flood, stranger)
                    if is_member:
                        await served()
                await stranger.ended(within_s=7.0)

    run(main)
    assert target.statistics()["tasks"] < 100


def test_a_member_that_ignores_the_receive_window_loses_its_connection_not_our_memory(
    target: NodeProcess, before: dict[str, Any], served: Served
) -> None:
    async def main() -> None:
        async with enemy(target) as member:
            await member.admitted()
            await member.stream(LINK_PROTOCOL)
            # a frame of 60 MiB is announced and never finished, on stream after stream that nobody reads
            block = bytes(4 * MIB)
            try:
                for number in range(50):
                    await member.muxed._write_frame(frame(0, 1, 2001 + 2 * number, len(block), block))
            except Exception:
                pass
            await member.ended(within_s=7.0)

    run(main)
    assert target.statistics()["rss"] - before["rss"] < 120 * MIB


BAD_FRAMES = {
    "giant header": b"\xff\xff\xff\xff\0\0\0\0",
    "giant body": b"\x01\0\0\0\xff\xff\xff\xff\x80",
    "no msgpack": b"\x04\0\0\0\0\0\0\0\xc1\xc1\xc1\xc1",
    "other shape": b"\x01\0\0\0\0\0\0\0\x80",
    "deep nesting": b"\0\x20\0\0\0\0\0\0" + b"\x91" * 8192,
}


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_a_bad_frame_costs_its_member_the_connection(target: NodeProcess, served: Served, name: str) -> None:
    async def main() -> None:
        async with enemy(target) as member:
            await member.admitted()
            link = await member.stream(LINK_PROTOCOL)
            await link.write(BAD_FRAMES[name])
            await member.ended(within_s=3.0)

    run(main)


def test_a_bad_control_message_costs_its_member_the_connection(target: NodeProcess, served: Served) -> None:
    told = Envelopes((Envelope("status", "", b"\xc1", bytes(64)),))
    forged = Envelopes((Envelope("beat", "", encode(Beat(2, 1, 1, 1)), bytes(64)),))
    messages = [b"\xff\xff\xff\xff", b"\x04\0\0\0\xc1\xc1\xc1\xc1", b"\x01\0\0\0\x80"]
    messages += [len(data).to_bytes(4, "little") + data for data in (encode(told), encode(forged))]

    async def main() -> None:
        for message in messages:
            async with enemy(target) as member:
                control = await member.admitted()
                await control.write(message)
                await member.ended(within_s=3.0)

    run(main)


def test_a_member_that_only_listens_is_given_up_and_one_that_opens_links_without_end_too(
    target: NodeProcess, served: Served
) -> None:
    async def main() -> None:
        async with enemy(target) as member:
            await member.admitted()
            for _ in range(LINKS_PER_CONNECTION + 1):
                try:
                    await member.stream(LINK_PROTOCOL)
                except Exception:
                    break
            await member.ended(within_s=3.0)
        async with enemy(target) as member:
            await member.admitted()
            await member.ended(within_s=7.0)  # says nothing: no pong, no ping

    run(main)


def test_nothing_is_left_of_all_these_attacks(target: NodeProcess, before: dict[str, Any]) -> None:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        now = target.statistics()
        if now["tasks"] <= before["tasks"] + 3 and now["fds"] <= before["fds"] + 2:
            break
        time.sleep(0.5)
    assert now["tasks"] <= before["tasks"] + 3
    assert now["fds"] <= before["fds"] + 2
    assert now["connections"] == 0
    assert now["rss"] - before["rss"] < 150 * MIB
    assert "Traceback" not in target.errors()
