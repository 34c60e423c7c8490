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
from node.pipeline.failover import ChosenChain, FailedNodes, FailoverStream
from node.pipeline.generation import Generation, NodeFailure, Pair
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
"""A request that finds no way for this long is given up: clients' own patience ends about then."""
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

    def heard(self, record: NodeRecord) -> None:
        """A node has told how it is."""
        self._ledger.heard(record)
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
            stream = FailoverStream(live, self, request_id, started, waits, give_up_at_s)
            await stream.begin()
            yield stream

    # --- what a stream asks -----------------------------------------------------------------------------------------

    async def choose(
        self,
        generation: Generation,
        request_id: str,
        failed: FailedNodes,
        waits: Waits,
        give_up_at_s: float,
    ) -> ChosenChain | str:
        """The best chain with room, as soon as there is one; else, when time is up, what was waited for.

        Raises:
            BadRequest, NoRoute: waiting would not help.
        """
        wanted = Request(
            kv_tokens=generation.kv_tokens,
            spread=crc32(request_id.encode()),
            prompt_tokens=len(generation.prompt),
            output_tokens=min(generation.max_new_tokens, USUAL_OUTPUT_TOKENS),
        )
        impatient_at_s = self._clock() + PATIENCE_S
        again_at_s, why, told = -inf, "its turn", ""
        with self._line.place(wanted.kv_tokens, failed.now()) as place:
            if before := self._line.ahead(place):
                waits(f"its turn: {before} before it {'wait' if before > 1 else 'waits'} for room")
            while True:
                if self._closed:
                    raise NoRoute(self._closed)
                with trio.move_on_at(give_up_at_s):
                    await self._turn(place, again_at_s)
                look = self._look(generation.weights, wanted, failed, patient=self._clock() < impatient_at_s)
                place.avoid = look.avoid
                if look.chosen is not None:
                    self._line.goes(place)
                    return look.chosen
                why = look.why_not
                if why != told:
                    told = why
                    waits(why)
                changes = (
                    self._suspects.next_change_s(),
                    self._pairs.next_change_s(),
                    failed.next_change_s(),
                    impatient_at_s,
                )
                now_s = self._clock()
                if now_s >= give_up_at_s:
                    return why
                again_at_s = min(give_up_at_s, now_s + LOOK_ANYWAY_S, *(at for at in changes if at > now_s))

    def failed(self, failure: NodeFailure, kv_tokens: int) -> None:
        """A node has ended a route."""
        node, name = failure.node_id, self._head.name_of(failure.node_id)
        for_s: float | None = None
        if failure.kind == "full":  # another head was faster, or the node had not told its room
            self._ledger.refused(failure.node_id, kv_tokens)
            for_s = self._suspects.refused(failure.node_id)
        elif failure.kind in ("silent", "wrong") and (blamed := self._at_fault(failure)) is not None:
            node, name = blamed, self._head.name_of(blamed)
            for_s = self._suspects.blame(node, str(failure.error))
        elif failure.kind == "link" and failure.pair is not None:
            self._pairs.broke(failure.pair)
        if for_s is not None:
            reason = self._suspects.reason(node)
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

    def _look(self, weights: str, wanted: Request, failed: FailedNodes, *, patient: bool) -> _Look:
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
            looks.append(self._route(plan, replace(wanted, avoid=avoid), apart, patient=patient))
            if looks[-1].chosen is not None:
                return looks[-1]
        if not looks:
            name = self._head.name_of(NodeId(failed.last))
            return _Look(None, f"another chance of node {name}, which failed a moment ago", frozenset())
        return looks[0]

    def _route(self, plan: Plan, wanted: Request, apart: frozenset[Pair], *, patient: bool) -> _Look:
        try:
            route = self._router.route(wanted, apart, patient=patient)
        except NoRoute as error:
            return _Look(None, str(error), wanted.avoid)
        except BadRequest:
            if not wanted.avoid:  # else those that are avoided may have the room
                raise
            route = None
        if route is None:
            return _Look(None, f"KV room for {wanted.kv_tokens} tokens", wanted.avoid)
        chain = tuple(Hop(stage.node_id, stage.start, stage.end) for stage in route.stages)
        if bad := neighbours(chain, self._self_id) & apart:
            one, other = sorted(self._head.name_of(NodeId(node)) for node in next(iter(bad)))
            return _Look(None, f"another chance of nodes {one} and {other}, between which it failed", wanted.avoid)
        entry = self._ledger.opened([NodeId(n) for n in route.nodes], wanted.kv_tokens)
        row_bytes = plan.facts.hidden_size * DTYPE_BYTES[plan.dtype]
        size = chunk_tokens(chain, self._records(), row_bytes)
        chunks = ceil(wanted.prompt_tokens / size)
        step_s, chunk_s = route.step_ms / 1e3, route.prompt_ms / 1e3 / chunks
        chosen = ChosenChain(chain, size, step_s, max(step_s, chunk_s), partial(self._free, entry))
        return _Look(chosen, "", wanted.avoid)

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

    def _free(self, entry: Entry) -> None:
        self._ledger.closed(entry)
        self._freed = True
        self._line.look_again()
