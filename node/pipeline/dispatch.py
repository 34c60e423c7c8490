"""Where a request goes: this head's choice of a chain over live records, its waiting for room, its second tries.

Knows token counts, not text.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping, Set
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from zlib import crc32

import trio

from node.errors import NoRoute, Overloaded, RequestError
from node.pipeline.head import Generation, Head, TokenStream
from node.pipeline.ledger import Entry, Ledger
from node.pipeline.live_router import LiveRouter
from node.pipeline.room_queue import RoomQueue
from node.plan.routing.hosts import USUAL_OUTPUT_TOKENS, Request
from node.wire.frames import Hop
from node.wire.ids import NodeId
from node.wire.plans import Plan
from node.wire.records import NodeRecord

log = logging.getLogger(__name__)

WAIT_LIMIT_S = 60.0
"""A request that finds no room for this long is given up: clients' own patience ends about then."""
LOOK_AGAIN_S = 0.25
"""While a request waits; records come about once a second, and a request of this head that ends wakes it at once."""
PATIENCE_S = 10.0
"""A request waits no longer than this for a much faster chain where a slower one has room."""
MOST_TRIES = 3
"""Chains on which one request may fail. A swarm in which three fail before a word has other troubles. Nodes that have
no room after all are not counted."""
PAUSE_S = 1.0
"""Before a node that failed is tried again where no other has room: its next record tells whether it serves."""

Started = Callable[[tuple[Hop, ...]], None]
"""Told the chain, each time that one is opened."""


class Dispatcher:
    """Chooses chains for the requests that this node is head of, and runs them."""

    def __init__(
        self,
        self_id: NodeId,
        head: Head,
        plan: Callable[[], Plan | None],
        records: Callable[[], Mapping[NodeId, NodeRecord]],
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self._self_id, self._head, self._plan, self._records, self._clock = self_id, head, plan, records, clock
        self._ledger = Ledger(clock)
        self._router = LiveRouter(self_id, self._ledger, clock)
        self._line = RoomQueue()

    def heard(self, record: NodeRecord) -> None:
        """A node has told how it is."""
        self._ledger.heard(record)

    @asynccontextmanager
    async def generate(self, generation: Generation, request_id: str, started: Started) -> AsyncIterator[TokenStream]:
        """Run a request on the best chain; on another one where a node of the first fails before the first token.

        Leaving the block, however it is left, frees it on every hop.

        Raises:
            BadRequest: it is too large for the nodes even if they had nothing else to do.
            NoRoute: some layers are served by nobody.
            Overloaded: no room came free in time.
            RequestError: a node failed, and no other chain is there.
        """
        wanted = Request(
            kv_tokens=len(generation.prompt) + generation.max_new_tokens,
            spread=crc32(request_id.encode()),
            prompt_tokens=len(generation.prompt),
            output_tokens=min(generation.max_new_tokens, USUAL_OUTPUT_TOKENS),
        )
        failed: set[str] = set()
        tries = 1
        cause: RequestError | None = None
        give_up_at_s = trio.current_time() + WAIT_LIMIT_S
        while True:
            try:
                epoch, chain, entry = await self._in_turn(generation.weights, wanted, give_up_at_s)
            except NoRoute:
                if cause is not None:  # who was lost says more than which layers are missing since
                    raise cause from None
                raise
            started(chain)
            async with self._head.generate(generation, chain, epoch, partial(self._free, entry)) as tokens:
                failure = await tokens.first_failure()
                full = failure is not None and isinstance(failure.error, Overloaded)
                if failure is None or (trio.current_time() >= give_up_at_s if full else tries == MOST_TRIES):
                    yield tokens
                    return
            log.log(logging.INFO if full else logging.WARNING, "%s; trying another way", failure.error)
            if full:  # another head was faster, or the node had not told its room: the wait for room goes on
                self._ledger.refused(failure.node_id, wanted.kv_tokens)
            else:
                tries, cause = tries + 1, failure.error
                failed.add(failure.node_id)
                wanted = replace(wanted, avoid=await self._to_avoid(generation.weights, failed))
                give_up_at_s = trio.current_time() + WAIT_LIMIT_S

    def _free(self, entry: Entry) -> None:
        self._ledger.closed(entry)
        self._line.look_again()

    async def _in_turn(self, weights: str, wanted: Request, give_up_at_s: float) -> tuple[int, tuple[Hop, ...], Entry]:
        impatient_at_s, forgive_at_s = trio.current_time() + PATIENCE_S, trio.current_time() + PAUSE_S
        with trio.move_on_at(give_up_at_s), self._line.place(wanted.kv_tokens, wanted.avoid) as place:
            while True:
                await self._line.turn(place, LOOK_AGAIN_S)
                epoch = self._look(weights)
                if trio.current_time() >= forgive_at_s:
                    place.avoid = frozenset()
                    wanted = replace(wanted, avoid=place.avoid)
                route = self._router.route(wanted, patient=trio.current_time() < impatient_at_s)
                if route is not None:
                    self._line.goes(place)
                    chain = tuple(Hop(stage.node_id, stage.start, stage.end) for stage in route.stages)
                    return epoch, chain, self._ledger.opened([NodeId(n) for n in route.nodes], wanted.kv_tokens)
        raise Overloaded(
            f"no KV room for {wanted.kv_tokens} more tokens came free within {WAIT_LIMIT_S:.0f} s; "
            "try again when other requests have ended, or ask for fewer tokens"
        )

    def _look(self, weights: str) -> int:
        """Read plan and records anew; the plan's epoch.

        Raises:
            NoRoute: there is no plan for these weights any more.
        """
        plan = self._plan()
        if plan is None or plan.weights != weights:
            raise NoRoute("the swarm serves another model now; ask again")
        self._router.look(plan, self._records())
        return plan.epoch

    async def _to_avoid(self, weights: str, failed: Set[str]) -> frozenset[str]:
        """The nodes that failed, where the others cover the model.

        Where they do not: none, once those that failed have told how they are, or have had a moment for it.
        """
        before = {node: self._seq_of(node) for node in failed}
        with trio.move_on_after(PAUSE_S):
            while True:
                self._look(weights)
                if self._router.covers(failed):
                    return frozenset(failed)
                if all(self._seq_of(node) != seq for node, seq in before.items()):
                    break
                await trio.sleep(LOOK_AGAIN_S)
        return frozenset()

    def _seq_of(self, node_id: str) -> int | None:
        record = self._records().get(NodeId(node_id))
        return record.seq if record is not None else None
