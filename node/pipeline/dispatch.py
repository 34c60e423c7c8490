"""Where requests go: this head's choice of chains over live records, and its line of those that wait for one.

Knows token counts, not text. What a request does with a chain that fails is told in `failover.py`.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, inf
from zlib import crc32

import trio

from node.errors import BadRequest, NoRoute
from node.pipeline.bad_pairs import BadPairs, neighbours
from node.pipeline.chunk_size import chunk_tokens
from node.pipeline.failover import ChosenChain, Claims, FailedNodes, FailoverStream, Wanted
from node.pipeline.generation import FailureKind, Generation, NodeFailure, Pair
from node.pipeline.head import Head
from node.pipeline.ledger import Entry, Ledger
from node.pipeline.live_router import LiveRouter
from node.pipeline.room_queue import Place, RoomQueue
from node.pipeline.suspects import Suspects
from node.plan.routing.hosts import USUAL_OUTPUT_TOKENS, Request
from node.wire.events import NodeAvoided
from node.wire.frames import Hop
from node.wire.ids import NodeId
from node.wire.models import DTYPE_BYTES
from node.wire.plans import Plan
from node.wire.records import NodeRecord

log = logging.getLogger(__name__)

WAIT_LIMIT_S = 60.0
"""A request that finds no way for this long is given up, or no room while nobody before it finds any either: clients'
own patience ends about then."""
ROOM_LIMIT_S = 600.0
"""As long as others come to their end it waits for room up to this, and an answer that has begun in any case."""
LOOK_AGAIN_S = 0.25
"""Between two looks at records that have changed: each costs as much as there are members, and they all tell something
about once a second. Room that a request of this head gives back is looked at at once."""
LOOK_ANYWAY_S = 5.0
"""What is guessed beyond the records is forgotten after so long, without any news (`ledger.FORGET_S`)."""
PATIENCE_S = 10.0
"""A request waits no longer than this for a much faster chain where a slower one has room."""

Started = Callable[[tuple[Hop, ...]], None]
"""Told the chain, each time that a request takes one."""
Waits = Callable[[str], None]
"""Told what a request waits for, each time that this changes."""


@dataclass(slots=True)
class _Look:
    """What one look at the records gave."""

    chosen: ChosenChain | None
    why_not: str
    avoid: frozenset[str]
    full: bool = False
    """Whether there are chains, and only room on them is missing."""


class Dispatcher:
    """Chooses chains for the requests that this node is head of, and runs them."""

    def __init__(
        self,
        self_id: NodeId,
        head: Head,
        plan: Callable[[], Plan | None],
        records: Callable[[], Mapping[NodeId, NodeRecord]],
        emit: Callable[[NodeAvoided], object] = lambda event: None,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self._self_id, self._head, self._plan, self._records, self._clock = self_id, head, plan, records, clock
        self._emit = emit
        self._ledger = Ledger(clock)
        self._router = LiveRouter(self_id, self._ledger, clock)
        self._closed = ""
        self._line = RoomQueue()
        self._suspects, self._pairs = Suspects(clock), BadPairs(clock)
        self._looked_s = -inf
        self._freed = False
        self._asked = 0
        """Requests so far."""

    def heard(self, record: NodeRecord) -> None:
        """A node has told how it is."""
        self._ledger.heard(record)
        if (for_s := self._suspects.heard(record)) is not None:
            self._avoided(record.id, for_s)
        self._line.look_again()

    def changed(self) -> None:
        """Another plan is in force, or a member is gone."""
        self._line.look_again()

    def close(self, reason: str) -> None:
        """End every request, those that wait too, with this sentence; none is taken from then on."""
        self._closed = reason
        self._head.fail_all(reason)
        self.changed()

    @asynccontextmanager
    async def generate(
        self,
        generation: Generation,
        request_id: str,
        started: Started = lambda chain: None,
        waits: Waits = lambda reason: None,
        arrived_s: float | None = None,
    ) -> AsyncIterator[FailoverStream]:
        """Run a request on the best chain, and on another one where a node of the first fails; the block begins with
        its first token. Leaving it, however it is left, frees the request on every hop.

        `arrived_s` is when it came, by the dispatcher's clock; now, where it is not told.

        Raises:
            BadRequest: it is too large for the nodes even if they had nothing else to do.
            NoRoute: some layers were served by nobody for too long, or the swarm serves another model.
            Overloaded: no room came free in time.
            RequestError: a node failed, and no other way was found in time.
        """
        give_up_at_s = (self._clock() if arrived_s is None else arrived_s) + WAIT_LIMIT_S
        async with self._head.sequence(generation) as live:
            self._asked += 1
            stream = FailoverStream(live, self, request_id, self._asked, started, waits, give_up_at_s)
            await stream.begin()
            yield stream

    # --- what a stream asks -----------------------------------------------------------------------------------------

    async def choose(self, wanted: Wanted, failed: FailedNodes, claims: Claims, waits: Waits) -> ChosenChain | str:
        """The best chain with room, as soon as there is one; else, when time is up, what was waited for.

        Raises:
            BadRequest, NoRoute: waiting would not help.
        """
        asked = Request(
            kv_tokens=wanted.kv_tokens,
            spread=crc32(wanted.request_id.encode()),
            prompt_tokens=wanted.input_tokens,
            output_tokens=min(wanted.output_tokens, USUAL_OUTPUT_TOKENS),
        )
        began_s = self._clock()
        impatient_at_s = began_s + PATIENCE_S
        again_at_s, give_up_at_s, told = -inf, wanted.give_up_at_s, ""
        with self._line.place(wanted.kv_tokens, failed.now(), wanted.number if wanted.begun else None) as place:
            if before := self._line.ahead(place):
                waits(f"its turn: {before} before it {'wait' if before > 1 else 'waits'} for room")
            while True:
                if self._closed:
                    raise NoRoute(self._closed)
                with trio.move_on_at(self._until_s(wanted, began_s, full=True)):
                    await self._turn(place, again_at_s)
                look = self._look(wanted.weights, asked, failed, patient=self._clock() < impatient_at_s)
                if look.full and self._line.ahead(place) == 0 and claims.due():
                    look = self._claim(wanted.weights, asked, failed, look)
                place.avoid = look.avoid
                if look.chosen is not None:
                    if not look.chosen.claimed:  # else it may be refused, and the line has not moved
                        self._line.goes(place)
                    return look.chosen
                if look.why_not != told:
                    told = look.why_not
                    waits(told)
                changes = (
                    self._suspects.next_change_s(),
                    self._pairs.next_change_s(),
                    failed.next_change_s(),
                    claims.next_change_s(),
                    impatient_at_s,
                )
                now_s, give_up_at_s = self._clock(), self._until_s(wanted, began_s, full=look.full)
                if now_s >= give_up_at_s:
                    return told
                again_at_s = min(give_up_at_s, now_s + LOOK_ANYWAY_S, *(at for at in changes if at > now_s))

    def _until_s(self, wanted: Wanted, began_s: float, *, full: bool) -> float:
        """How long a request waits. Where only room is missing an answer that has begun waits until others have come to
        an end, and so does one that has not, as long as the line moves."""
        until_s = wanted.give_up_at_s
        if not full or not wanted.waits_for_room:
            return until_s
        if wanted.begun:
            return max(until_s, began_s + ROOM_LIMIT_S)
        return max(until_s, min(until_s - WAIT_LIMIT_S + ROOM_LIMIT_S, self._line.moved_s + WAIT_LIMIT_S))

    def _claim(self, weights: str, asked: Request, failed: FailedNodes, full: _Look) -> _Look:
        """The best chain as if nothing ran anywhere: a head that has everything gives way where it is asked to. Where a
        slower chain has room, there is nothing to ask for."""
        if self._look(weights, asked, failed, patient=False).chosen is not None:
            return full
        look = self._look(weights, asked, failed, patient=False, idle=True)
        return look if look.chosen is None else replace(look, chosen=replace(look.chosen, claimed=True))

    def failed(self, failure: NodeFailure, kv_tokens: int, *, claimed: bool) -> None:
        """A node has ended a route; `claimed`: one that was asked for although the node said that it is full."""
        if failure.kind in ("full", "preempted"):
            self._ledger.refused(failure.node_id, kv_tokens)
            if failure.kind == "full" and not claimed:  # another head was faster, or the node had not told its room
                record = self._records().get(failure.node_id)
                self._suspects.refused(failure.node_id, kv_tokens, record.seq if record is not None else 0)
        elif failure.kind in ("silent", "wrong") and (blamed := self._at_fault(failure)) is not None:
            self._avoided(blamed, self._suspects.blame(blamed, str(failure.error)))
        elif failure.kind == "link" and failure.pair is not None:
            self._pairs.broke(failure.pair)

    def _avoided(self, node: NodeId, for_s: float) -> None:
        """A node is kept away from."""
        name, reason = self._head.name_of(node), self._suspects.reason(node)
        log.warning("node %s is avoided for %.0f s: %s", name, for_s, reason)
        self._emit(NodeAvoided(node, name, reason[:500], for_s))

    def _at_fault(self, failure: NodeFailure) -> NodeId | None:
        """Who is, where that is known."""
        if failure.pair is None:
            return failure.node_id
        node = self._pairs.quarrelled(failure.pair)
        return NodeId(node) if node is not None and node != self._self_id else None

    def answered(self, chain: tuple[Hop, ...]) -> None:
        """A token came along `chain`: all of it works."""
        for hop in chain:
            if self._suspects.clear(hop.node_id):
                node = NodeId(hop.node_id)
                self._emit(NodeAvoided(node, self._head.name_of(node), "", 0.0))

    # --- looking ----------------------------------------------------------------------------------------------------

    async def _turn(self, place: Place, again_at_s: float) -> None:
        """Until this request may look, and there is something that it has not seen."""
        if again_at_s == -inf:
            await self._line.turn(place, again_at_s)
            return
        await self._line.turn(place, again_at_s)
        if self._line.ahead(place) == 0 and not self._freed:
            await trio.sleep_until(self._looked_s + LOOK_AGAIN_S)

    def _look(self, weights: str, wanted: Request, failed: FailedNodes, *, patient: bool, idle: bool = False) -> _Look:
        """Read plan and records anew.

        Raises:
            NoRoute: the plan in force is for other weights.
        """
        self._looked_s, self._freed = self._clock(), False
        plan = self._plan()
        if plan is None:
            return _Look(None, "a plan", frozenset())
        if plan.weights != weights:
            raise NoRoute("the swarm serves another model now; ask again")
        self._router.look(plan, self._records())
        looks: list[_Look] = []
        for avoid, apart in self._to_avoid(failed):
            looks.append(self._route(plan, replace(wanted, avoid=avoid), apart, patient=patient, idle=idle))
            if looks[-1].chosen is not None:
                return looks[-1]
        if not looks:
            name = self._head.name_of(NodeId(failed.last))
            return _Look(None, f"another chance of node {name}, which failed a moment ago", frozenset())
        return looks[0]

    def _route(self, plan: Plan, wanted: Request, apart: frozenset[Pair], *, patient: bool, idle: bool) -> _Look:
        try:
            route = self._router.route(wanted, apart, patient=patient, idle=idle)
        except NoRoute as error:
            return _Look(None, str(error), wanted.avoid)
        except BadRequest:
            if not wanted.avoid:  # else those that are avoided may have the room
                raise
            route = None
        if route is None:
            return _Look(None, f"KV room for {wanted.kv_tokens} tokens", wanted.avoid, full=True)
        chain = tuple(Hop(stage.node_id, stage.start, stage.end) for stage in route.stages)
        if bad := neighbours(chain, self._self_id) & apart:
            one, other = sorted(self._head.name_of(NodeId(node)) for node in next(iter(bad)))
            return _Look(None, f"another chance of nodes {one} and {other}, between which it failed", wanted.avoid)
        entry = self._ledger.opened([NodeId(n) for n in route.nodes], wanted.kv_tokens)
        row_bytes = plan.facts.hidden_size * DTYPE_BYTES[plan.dtype]
        size = chunk_tokens(chain, self._records(), row_bytes)
        chunks = ceil(wanted.prompt_tokens / size)
        step_s, chunk_s = route.step_ms / 1e3, route.prompt_ms / 1e3 / chunks
        chosen = ChosenChain(
            chain, size, step_s, max(step_s, chunk_s), partial(self._free, entry), self._arithmetics(chain)
        )
        return _Look(chosen, "", wanted.avoid)

    def _arithmetics(self, chain: tuple[Hop, ...]) -> frozenset[str] | None:
        records = self._records()
        told = [record.drift_class if (record := records.get(NodeId(hop.node_id))) else "" for hop in chain]
        return frozenset(told) if all(told) else None

    def _to_avoid(self, failed: FailedNodes) -> Iterator[tuple[frozenset[str], frozenset[Pair]]]:
        """Whom to keep away from, in turn, where the others cover the model, and which two as neighbours: all who have
        failed this request or are suspected; those who failed it; those who failed it a moment ago."""
        told: set[tuple[frozenset[str], frozenset[Pair]]] = set()
        for avoid in (failed.all | self._suspects.now(), failed.all, failed.now()):
            if not avoid or self._router.covers(avoid):
                for apart in (failed.all_pairs | self._pairs.now(), failed.pairs_now()):
                    if (avoid, apart) not in told:
                        told.add((avoid, apart))
                        yield avoid, apart

    def _free(self, entry: Entry, why: FailureKind | None) -> None:
        self._ledger.closed(entry)
        if why == "preempted":  # it stands in line in a moment, before those that would take its room now
            return
        self._freed = True
        self._line.look_again()
