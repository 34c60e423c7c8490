"""An in-memory swarm: N members that see one another, links with a delay, and the ways in which they get lost.

It keeps the promises of `node.swarm.base`: frames of one link arrive in order, whole, once, encoded and decoded as on
the wire (so a body that its sender reuses is not shared); a lost member is told as `MemberGone`, and its links raise
`LinkClosed` from then on. Time is trio's, so a `MockClock` runs it without waiting.

    async with open_fake_network("ada", "bob", delay_s=0.01) as network:
        ada, bob = network.swarms
        await (await ada.link(bob.node_id)).send(frame, body)
        arrival = await bob.arrivals.receive()
        network.kill(bob)
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal, Unpack

import msgspec
import trio

from node.errors import LinkClosed
from node.swarm.base import LANES, Arrival, Lane, LinkLost, MemberGone, MemberSeen, PlanHeard, SwarmNews
from node.swarm.record_changes import RecordChanges
from node.wire.codec import decode, encode
from node.wire.frames import BODY_LIMIT_BYTES, HEADER_LIMIT_BYTES, Buffer, Frame
from node.wire.ids import NodeId
from node.wire.plans import Plan
from node.wire.records import NodeRecord

ARRIVALS_BOUND = 64
"""As in the real swarm: a reader that is slower than this for long holds up every link."""

Why = Literal["left", "silent", "disconnected"]


class FakeLink:
    """One lane of one direction between two members; closed for good once either end is lost."""

    def __init__(self, network: FakeNetwork, source: FakeSwarm, target: FakeSwarm, lane: Lane) -> None:
        self.peer = target.node_id
        self.lane = lane
        self.closed_because: str | None = None
        self._network, self._source, self._target = network, source, target
        self._lock = trio.Lock()
        send, self._frames = trio.open_memory_channel[tuple[float, bytes, bytearray]](math.inf)
        self._queue = send
        network._nursery.start_soon(self._deliver)

    async def send(self, frame: Frame, body: Buffer = b"") -> None:
        """See `node.swarm.base.Link.send`; returns when the frame is on its way, not when it has arrived.

        Where the network has a rate, that is when all of it has left.
        """
        async with self._lock:
            await trio.lowlevel.checkpoint()
            if self._network.bytes_per_s != math.inf:
                await trio.sleep(len(body) / self._network.bytes_per_s)
            if self.closed_because is not None:
                raise LinkClosed(self.peer, self.closed_because)
            self._queue.send_nowait((trio.current_time(), encode(frame), bytearray(body)))

    def close(self, why: str) -> None:
        """What is still under way is lost, as with a reset connection."""
        if self.closed_because is None:
            self.closed_because = why
            self._queue.close()

    async def _deliver(self) -> None:
        async for sent_at, header, body in self._frames:
            await trio.sleep_until(sent_at + self._network.delay_s * self._network.hops(self._source, self._target))
            if self.closed_because is not None:
                return
            frame: Frame = decode(header, Frame, where="fake link", limit_bytes=HEADER_LIMIT_BYTES)  # type: ignore[arg-type]
            assert len(body) <= BODY_LIMIT_BYTES
            stamped = hasattr(frame, "sent_s")
            wire_ms = (trio.current_time() - sent_at) * 1000 if stamped else 0.0
            arrival = Arrival(self._source.node_id, frame, body, time.perf_counter(), wire_ms)
            try:
                await self._target._arrivals_in.send(arrival)
            except (trio.ClosedResourceError, trio.BrokenResourceError):
                return


class FakeSwarm:
    """One member's view; implements `node.swarm.base.Swarm`."""

    def __init__(self, network: FakeNetwork, record: NodeRecord) -> None:
        self.node_id = record.id
        self.alive = True
        self.latest_plan: Plan | None = None
        """The highest plan that this member has published or been told."""
        self._aside: set[str] = set()
        self._network = network
        self._view: dict[NodeId, NodeRecord] = {record.id: record}
        self._links: dict[tuple[NodeId, Lane], FakeLink] = {}
        self._news_in, self.news = trio.open_memory_channel[SwarmNews](math.inf)
        self._arrivals_in, self.arrivals = trio.open_memory_channel[Arrival](ARRIVALS_BOUND)

    @property
    def record(self) -> NodeRecord:
        return self._view[self.node_id]

    def members(self) -> dict[NodeId, NodeRecord]:
        return dict(self._view)

    async def update(self, **changes: Unpack[RecordChanges]) -> None:
        await trio.lowlevel.checkpoint()
        if self.alive:
            fields = msgspec.structs.asdict(self.record) | changes | {"seq": self.record.seq + 1}
            self._network._spread(self, NodeRecord(**fields))

    async def publish_plan(self, plan: Plan) -> bool:
        await trio.lowlevel.checkpoint()
        self._network._spread_plan(self, plan)
        return True

    async def link(self, peer: NodeId, lane: Lane = "steps") -> FakeLink:
        await trio.lowlevel.checkpoint()
        target = self._network._reachable(self, peer)
        if target is None:
            raise LinkClosed(peer, "no live member of this swarm")
        if not self._network.hops(self, target):
            raise LinkClosed(peer, "it cannot be reached directly, and no member reaches it")
        link = self._links.get((peer, lane))
        if link is None or link.closed_because is not None:
            link = self._links[peer, lane] = FakeLink(self._network, self, target, lane)
        return link

    def set_aside(self, author: NodeId, aside: bool) -> None:
        (self._aside.add if aside else self._aside.discard)(author)
        if aside and self.latest_plan is not None and self.latest_plan.author == author:
            self.latest_plan = None

    def invitation(self) -> str:
        return "plx1fake"

    def _see(self, record: NodeRecord) -> None:
        self._view[record.id] = record
        self._tell(MemberSeen(record))

    def _lose(self, node_id: NodeId, why: Why) -> None:
        self._close_links(node_id, why)
        if record := self._view.pop(node_id, None):
            self._tell(MemberGone(node_id, record.name, why))

    def _lose_link(self, node_id: NodeId, reason: str) -> None:
        self._close_links(node_id, reason)
        self._tell(LinkLost(node_id, reason))

    def _close_links(self, node_id: NodeId, why: str) -> None:
        for lane in LANES:
            if link := self._links.pop((node_id, lane), None):
                link.close(why)

    def _hear_plan(self, plan: Plan) -> None:
        if plan.author not in self._aside and plan.outranks(self.latest_plan):
            self.latest_plan = plan
            self._tell(PlanHeard(plan))

    def _tell(self, news: SwarmNews) -> None:
        if self.alive:
            self._news_in.send_nowait(news)

    def _end(self) -> None:
        self.alive = False
        for link in self._links.values():
            link.close("this node is gone")
        self._links.clear()
        self._news_in.close()
        self._arrivals_in.close()


class FakeNetwork:
    """All members of one swarm, and the power over who reaches whom. Made by `open_fake_network`."""

    def __init__(self, nursery: trio.Nursery, delay_s: float) -> None:
        self.delay_s = delay_s
        """From a frame's sending to its arrival; may be changed at any time."""
        self.bytes_per_s = math.inf
        """Of bodies, on each lane of each link."""
        self.swarms: list[FakeSwarm] = []
        """In the order of joining; the dead stay in it."""
        self._nursery = nursery
        self._cut: set[frozenset[NodeId]] = set()
        self._severed: set[frozenset[NodeId]] = set()

    def add(self, name: str, *, node_id: NodeId | None = None, **record_fields: object) -> FakeSwarm:
        """A new member that everyone sees at once. The id follows from the name, so that tests read well."""
        fields: dict[str, object] = {
            "node_id": node_id or fake_node_id(name),
            "name": name,
            "seq": len(self.swarms) * 1_000_000 + 1,  # a restarted namesake outdoes its former life
            "ttl_s": 5.0,
            "machine_id": "fake-machine",
            "addresses": (),
            "software": "fake",
        }
        record = NodeRecord(**(fields | record_fields))  # type: ignore[arg-type]
        newcomer = FakeSwarm(self, record)
        newcomer._tell(MemberSeen(record))
        best: Plan | None = None
        for other in self._living():
            newcomer._see(other.record)
            other._see(record)
            if other.latest_plan is not None and other.latest_plan.outranks(best):
                best = other.latest_plan
        self.swarms.append(newcomer)
        if best is not None:
            newcomer._hear_plan(best)
        return newcomer

    def kill(self, swarm: FakeSwarm) -> None:
        """The process is gone: its channels end, the others are told `disconnected`, frames under way are lost."""
        self._remove(swarm, "disconnected")

    def leave(self, swarm: FakeSwarm) -> None:
        """A graceful goodbye."""
        self._remove(swarm, "left")

    def break_link(self, one: FakeSwarm, other: FakeSwarm) -> None:
        """The links between the two break: frames under way are lost, both are told, and new links can be opened."""
        if self._connected(one, other):
            one._lose_link(other.node_id, "the connection broke")
            other._lose_link(one.node_id, "the connection broke")

    def partition(self, one: FakeSwarm, other: FakeSwarm) -> None:
        """The two no longer reach each other; everyone else reaches both."""
        self._cut.add(frozenset((one.node_id, other.node_id)))
        one._lose(other.node_id, "silent")
        other._lose(one.node_id, "silent")

    def sever(self, one: FakeSwarm, other: FakeSwarm) -> None:
        """The two no longer reach each other directly and stay members: frames between them go through a third."""
        self._severed.add(frozenset((one.node_id, other.node_id)))
        if self._connected(one, other):
            one._lose_link(other.node_id, "the connection broke")
            other._lose_link(one.node_id, "the connection broke")

    def hops(self, one: FakeSwarm, other: FakeSwarm) -> int:
        """How many connections a frame between them takes: 1, 2 through a third, 0 where there is no way."""
        if not self._connected(one, other):
            return 0
        if self._adjacent(one, other):
            return 1
        return 2 if any(self._adjacent(one, third) and self._adjacent(third, other) for third in self._living()) else 0

    def _adjacent(self, one: FakeSwarm, other: FakeSwarm) -> bool:
        return self._connected(one, other) and frozenset((one.node_id, other.node_id)) not in self._severed

    def heal(self, one: FakeSwarm, other: FakeSwarm) -> None:
        """Undo `partition` and `sever`; links have to be asked for again."""
        self._cut.discard(frozenset((one.node_id, other.node_id)))
        self._severed.discard(frozenset((one.node_id, other.node_id)))
        if one.alive and other.alive:
            one._see(other.record)
            other._see(one.record)

    def _living(self) -> list[FakeSwarm]:
        return [swarm for swarm in self.swarms if swarm.alive]

    def _connected(self, one: FakeSwarm, other: FakeSwarm) -> bool:
        return one.alive and other.alive and frozenset((one.node_id, other.node_id)) not in self._cut

    def _reachable(self, source: FakeSwarm, peer: NodeId) -> FakeSwarm | None:
        return next((s for s in self._living() if s.node_id == peer and self._connected(source, s)), None)

    def _remove(self, swarm: FakeSwarm, why: Why) -> None:
        if swarm.alive:
            swarm._end()
            for other in self._living():
                other._lose(swarm.node_id, why)

    def _spread(self, source: FakeSwarm, record: NodeRecord) -> None:
        for swarm in self._living():
            if swarm is source or self._connected(source, swarm):
                swarm._see(record)

    def _spread_plan(self, source: FakeSwarm, plan: Plan) -> None:
        if plan.outranks(source.latest_plan):
            source.latest_plan = plan
        for swarm in self._living():
            if swarm is not source and self._connected(source, swarm):
                swarm._hear_plan(plan)


def fake_node_id(name: str) -> NodeId:
    """Looks like a peer id, and is the same for the same name."""
    return NodeId("12D3KooW" + hashlib.sha256(name.encode()).hexdigest()[:24] + name)


@asynccontextmanager
async def open_fake_network(*names: str, delay_s: float = 0.0) -> AsyncIterator[FakeNetwork]:
    """A network with one member per name; leaving it ends all of them."""
    async with trio.open_nursery() as nursery:
        network = FakeNetwork(nursery, delay_s)
        for name in names:
            network.add(name)
        yield network
        for swarm in network._living():
            swarm._end()
        nursery.cancel_scope.cancel()
