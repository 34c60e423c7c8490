"""What a member says and hears while nothing is asked of the swarm, and while everybody works: bytes and CPU.

One real node of a full mesh in simulated time: its neighbours are real gossips that sign what they say, its connections
count what they are given. Bytes are those of the messages with their length, before the framing of yamux and Noise (30
bytes for each write).

    python -m tests.bench.control_traffic
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import trio
from trio.testing import MockClock

from node.home import Home
from node.swarm.address_book import AddressBook
from node.swarm.connection import Connection
from node.swarm.connections import Connections
from node.swarm.control_queue import ControlQueue
from node.swarm.gossip import Gossip
from node.swarm.heartbeat import PeerClock, interval_s
from node.swarm.identity import Identity, identity_from_seed
from node.swarm.libp2p_swarm import CONNECTED_REFRESH_S, Libp2pSwarm
from node.swarm.secret import SwarmSecret
from node.wire.codec import encode
from node.wire.control import Ask, Envelopes, Ping, Pong, Welcome
from node.wire.ids import NodeId
from node.wire.records import Hardware, HeldRange, LayerLatency, NodeRecord
from node.wire.statements import Envelope
from node.wire.versions import WIRE_VERSION

SIZES = (16, 64, 256, 600)
LENGTH_BYTES = 4
GIB = 1024**3
UNIX_S = 1_790_000_000
SETTLE_S = 30.0
"""By then everybody has told everything, and whom it reaches."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Of one node, per second."""

    sent_bytes: float
    received_bytes: float
    hearing_s: float
    """CPU seconds."""
    heartbeat_bytes: float
    """Each direction."""
    status_bytes: int
    """The largest status with its signature."""


class _CountingQueue(ControlQueue):
    """Counts each message as if it were written alone."""

    def __init__(self, own_id: str) -> None:
        super().__init__(own_id)
        self.given_bytes = 0

    def tell(self, envelope: Envelope) -> None:
        self.given_bytes += _size(Envelopes(tuple(self._shortened((envelope,)))))

    def welcome(self, welcome: Welcome) -> None:
        self.given_bytes += _size(welcome)

    def ask(self, ask: Ask) -> None:
        self.given_bytes += _size(ask)


class _Wire:
    """What a swarm knows of a connection."""

    def __init__(self, own_id: str, peer: NodeId) -> None:
        self.peer, self.dialed, self.life, self.links, self.peer_most = peer, True, b"1", 0, WIRE_VERSION
        self.admitted_s = self.heard_s = trio.current_time()
        self.clock, self.outbox = PeerClock(), _CountingQueue(own_id)
        self.clock.pong(Pong(self.clock.ping(0.0), 0.0, 0.0), 0.02)

    def real(self) -> Connection:
        return cast(Connection, self)


class _NoReach:
    def pursue(self, peer: NodeId, *, polite: bool, source: NodeId | None = None) -> None: ...
    def forget(self, peer: NodeId) -> None: ...
    def hurry(self, peer: NodeId) -> None: ...
    def lost(self, peer: NodeId) -> None: ...
    def is_hopeless(self, peer: NodeId) -> bool:
        return False


def record_of(node_id: str, number: int) -> NodeRecord:
    """As a serving member says of itself."""
    return NodeRecord(
        node_id,
        f"machine-{number}",
        0,
        5.0,
        "0123456789abcdef" * 2,
        ("/ip4/192.168.178.20/tcp/43221", "/ip6/2001:db8::4711/tcp/43221", "/ip4/127.0.0.1/tcp/43221"),
        "parallax 0.1.0",
        Hardware("cpu", "AMD EPYC 9554 64-Core Processor", 16 * GIB, 2.5e10, 1.2e12, 16),
        held=(HeldRange(0, 15, "ready", 50_000_000, "0123456789abcdef"),),
        plan_epoch=50_000_000,
        kv_tokens_total=369_835,
        layer_latency=LayerLatency(0.3217, 0.3121, 0.5043),
        head_ms=1.2345,
        overhead_ms=0.4321,
        state="serving",
    )


def measured(members: int, *, busy: bool, for_s: float = 60.0) -> Traffic:
    """The traffic of one of `members`; `busy`: everybody's load changes each second."""
    found: list[Traffic] = []

    async def main() -> None:
        found.append(await _simulated(members, busy, for_s))

    trio.run(main, clock=MockClock(autojump_threshold=0))
    return found[0]


async def _simulated(members: int, busy: bool, for_s: float) -> Traffic:
    everyone = [identity_from_seed(number.to_bytes(32, "big")) for number in range(1, members + 1)]
    ids = [each.node_id for each in everyone]
    secret = SwarmSecret(b"s" * 32)
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder), Path(folder), Path(folder))
        swarm = Libp2pSwarm(
            everyone[0],
            secret,
            record_of(ids[0], 0),
            AddressBook(home, "swarm", ids[0], 0.0),
            Connections(ids[0]),
            _NoReach(),
        )
        wires = {peer: _Wire(ids[0], peer) for peer in ids[1:]}
        for wire in wires.values():
            swarm.joined(wire.real())
        others = [_Other(each, number, ids, secret) for number, each in enumerate(everyone[1:], 1)]
        heard = _Heard()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(swarm.publish, lambda: ())
            nursery.start_soon(swarm.keep_time)
            nursery.start_soon(_speak, swarm, others, wires, heard, busy)
            if busy:
                nursery.start_soon(_work, swarm)
            await trio.sleep(SETTLE_S)
            assert len(swarm.members()) == members
            sent, before = sum(wire.outbox.given_bytes for wire in wires.values()), heard.copy()
            await trio.sleep(for_s)
            sent = sum(wire.outbox.given_bytes for wire in wires.values()) - sent
            assert len(swarm.members()) == members
            nursery.cancel_scope.cancel()
    beats_per_s = 1 / interval_s(members - 1, carries_links=False)
    beat_bytes = _size(Ping(1000)) + _size(Pong(1000, 12345.678, 12345.678))
    return Traffic(
        sent / for_s,
        (heard.sent_bytes - before.sent_bytes) / for_s,
        (heard.cpu_s - before.cpu_s) / for_s,
        (members - 1) * beats_per_s * beat_bytes,
        heard.status_bytes,
    )


@dataclass(slots=True)
class _Heard:
    sent_bytes: int = 0
    cpu_s: float = 0.0
    status_bytes: int = 0

    def copy(self) -> _Heard:
        return _Heard(self.sent_bytes, self.cpu_s, self.status_bytes)


class _Other:
    """Another member: it reaches everyone, and speaks when a real one would."""

    def __init__(self, identity: Identity, number: int, ids: list[NodeId], secret: SwarmSecret) -> None:
        self.id, self._number = identity.node_id, number
        self.gossip = Gossip(identity, record_of(identity.node_id, number), secret.statement_mark())
        self._trips: dict[str, object] = {"rtt_ms": {peer: 20.0 for peer in ids if peer != self.id}}

    def say(self, second: int, busy: bool) -> list[Envelope]:
        changes = {"load": second % 7 + 0.123, "kv_tokens_used": 1000 * second} if busy else {}
        return self.gossip.publish(self._trips | changes, (UNIX_S + second) * 1000)[0]


async def _speak(
    swarm: Libp2pSwarm, others: list[_Other], wires: dict[NodeId, _Wire], heard: _Heard, busy: bool
) -> None:
    every_s = 1.0 if busy else CONNECTED_REFRESH_S
    second = 0
    while True:
        for other in others:
            for envelope in other.say(second, busy):
                message = Envelopes((_as_own(envelope),))
                heard.sent_bytes += _size(message)
                if envelope.kind == "status":
                    size = len(envelope.payload) + len(envelope.signature)
                    heard.status_bytes = max(heard.status_bytes, size)
                began_s = time.thread_time()
                swarm.told(wires[other.id].real(), message)
                heard.cpu_s += time.thread_time() - began_s
            await trio.sleep(every_s / len(others))
        second += max(1, int(every_s))


async def _work(swarm: Libp2pSwarm) -> None:
    second = 0
    while True:
        await swarm.update(load=second % 7 + 0.123, kv_tokens_used=1000 * second)
        await trio.sleep(1)
        second += 1


def _as_own(envelope: Envelope) -> Envelope:
    return Envelope(envelope.kind, "", envelope.payload, envelope.signature)


def _size(message: object) -> int:
    return LENGTH_BYTES + len(encode(message))


def show(sizes: tuple[int, ...], tell: Callable[[str], object]) -> None:
    """A row for each size, idle and busy."""
    tell("members  state  sent kB/s  heard kB/s  CPU of hearing  heartbeats kB/s  largest status B")
    for members in sizes:
        for busy in (False, True):
            t = measured(members, busy=busy, for_s=20.0)
            state = "busy" if busy else "idle"
            tell(
                f"{members:7}  {state:5}  {t.sent_bytes / 1e3:9.2f}  {t.received_bytes / 1e3:10.2f}"
                f"  {100 * t.hearing_s:12.2f} %  {t.heartbeat_bytes / 1e3:15.2f}  {t.status_bytes:16}"
            )


if __name__ == "__main__":
    show(SIZES, print)
