"""Carries lanes for two members that reach this node and not one another. Sees nothing of what it carries.

Bounded and fair: so many circuits for one origin and in all, a window and a piece of memory for each, and at the
connection the same urgency as our own frames of that lane, in turn with them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

import trio

from node.errors import LinkClosed
from node.swarm.circuits import CIRCUIT_PROTOCOL, OPEN_CIRCUIT_S, prepare, send
from node.swarm.connection import Connection
from node.swarm.muxed_stream import MuxedStream
from node.wire.circuits import CIRCUIT_LIMIT_BYTES, Introduced, NotReached, Reached, Through
from node.wire.ids import NodeId, short_id

log = logging.getLogger(__name__)

CIRCUITS_EACH = 8
"""For one origin: two lanes to each of four members that it cannot reach."""

CIRCUITS_TO_EACH = 16
"""To one target, for all origins."""

CIRCUITS_LIMIT = 64
PIECE_BYTES = 16 * 1024 + 128
"""One piece of a body and what Noise adds."""


class Relay:
    """What this node carries now."""

    def __init__(self, best: Callable[[NodeId], Connection | None], is_member: Callable[[NodeId], bool]) -> None:
        """`best` is the direct connection to use for a peer, if there is one."""
        self._best, self._is_member = best, is_member
        self._carried: Counter[NodeId] = Counter()
        """By origin."""
        self._onward: Counter[NodeId] = Counter()
        """By target."""

    async def carry(self, origin: Connection, stream: MuxedStream) -> None:
        """Serve one circuit to its end. The caller closes `stream`.

        Raises:
            BadWireData: what the origin asks for cannot be read.
            trio.TooSlowError: it asks for nothing.
        """
        with trio.fail_after(OPEN_CIRCUIT_S):
            wanted = await stream.read_message(Through, where="circuit", limit_bytes=CIRCUIT_LIMIT_BYTES)
        prepare(stream, wanted.lane)
        target = NodeId(wanted.target)
        onward = self._best(target)
        if refusal := self._refusal(origin.peer, target, onward):
            await send(stream, NotReached(refusal))
            return
        assert onward is not None, "otherwise it is refused"
        self._carried[origin.peer] += 1
        self._onward[target] += 1
        try:
            await self._carry(origin, stream, onward, wanted)
        finally:
            self._carried -= Counter({origin.peer: 1})
            self._onward -= Counter({target: 1})

    def _refusal(self, origin: NodeId, target: NodeId, onward: Connection | None) -> str:
        if onward is None or origin == target or not self._is_member(target):
            return "it is no member that this node reaches"
        if self._carried[origin] >= CIRCUITS_EACH:
            return f"{CIRCUITS_EACH} circuits of one member are enough"
        if self._onward[target] >= CIRCUITS_TO_EACH:
            return f"{CIRCUITS_TO_EACH} circuits to one member are enough"
        if self._carried.total() >= CIRCUITS_LIMIT:
            return "too many are carried already"
        return ""

    async def _carry(self, origin: Connection, stream: MuxedStream, onward: Connection, wanted: Through) -> None:
        try:
            other = await onward.open(CIRCUIT_PROTOCOL)
        except LinkClosed as error:
            await send(stream, NotReached(error.reason[:256]))
            return
        prepare(other, wanted.lane)
        try:
            await send(other, Introduced(origin.peer, wanted.lane))
            await send(stream, Reached())
            log.debug("%s is carried to %s", short_id(origin.peer), short_id(onward.peer))
            async with trio.open_nursery() as nursery:
                for source, sink in ((stream, other), (other, stream)):
                    nursery.start_soon(_pour, source, sink, nursery.cancel_scope)
        finally:
            onward.start(other.close)


async def _pour(source: MuxedStream, sink: MuxedStream, both: trio.CancelScope) -> None:
    """Hand on until either side ends, which ends the other. A piece at a time: whoever is slow slows the origin."""
    try:
        while piece := await source.read_some(PIECE_BYTES):
            rest = memoryview(piece)
            while rest:
                rest = rest[await sink.write_some(rest) :]
    except Exception as error:
        log.debug("a circuit ended: %r", error)
    both.cancel()
