"""The head's side of requests: gives each sequence a route, feeds it, hands the tokens on as they come.

Knows token ids, not text, and chooses no chains: a route that fails is told to whoever chose it (`failover.py`), who
may give the sequence another one.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager

import trio

from node.errors import BadRequest, HopLost, NoRoute, Overloaded, RequestError
from node.pipeline.generation import FailureKind, Generation, NodeFailure, TokenStep
from node.pipeline.head_sequence import HeadSequence
from node.pipeline.outbox import Outbox
from node.pipeline.prefix import KnownPrefixes, names_of
from node.plan.chain_time import CHUNK_TOKENS
from node.swarm.base import LANES, Arrival, Lane
from node.wire.frames import (
    MOST_BLOCKS,
    Accepted,
    Close,
    Failed,
    Hop,
    Probe,
    ProbeReply,
    Progress,
    Route,
    Sampled,
    SampledPart,
    Step,
)
from node.wire.ids import NodeId
from node.wire.layer_range import layer_range

log = logging.getLogger(__name__)

ANSWER_LIMIT_S = 120.0
"""A chain that says it works, and gives nothing for so long, is given up: far beyond a chunk on the slowest machine."""

WORK_TIMES = 100.0
"""So is one that gives nothing for so many times what its own nodes' figures say that a step or a chunk takes, if that
is less: what is said to wait there for ever shall not hold a request for ever."""

REST_LIMIT_S = 30.0
"""The same for a chain whose nodes all say that they have nothing to do: what was under way is lost. Far beyond a
chunk on the slowest link."""

LEAST_PATIENCE_S, EXPECTED_TIMES = 5.0, 30.0
"""A chain that is silent for longer than this, and for longer than so many times what was expected, is asked how far it
is. What is slow answers that, what is dead does not."""

QUESTION_S = 2.0
"""For the hops to answer: they do so at once, on the lane where nothing waits for prompts."""


class LiveSequence:
    """A sequence of this head, whatever route it is on."""

    def __init__(self, head: Head, sequence: HeadSequence, clock: Callable[[], float]) -> None:
        self.state = sequence
        self._head, self._clock = head, clock
        self._ended: Callable[[FailureKind | None], None] = _ignore
        # Room for the whole answer: a reader that lags never makes `handle` wait, and max_new_tokens bounds it.
        self._send, self._receive = trio.open_memory_channel[TokenStep | NodeFailure](
            sequence.generation.max_new_tokens + 2
        )
        self.names: dict[str, str] = {}
        """Of the chain's nodes: a node that is gone can no longer be asked."""
        self.heard_s = self._answered_s = clock()
        """When the chain last gave a sign of life; the same, answers to questions left out."""
        self.broken = True
        """Whether it has no route, or one that has failed."""
        self.arithmetics: Collection[str] | None = None
        """Of the chain's nodes: their drift classes, where all are known."""
        self.kept = False
        """Whether the hops of the failed one still have its keys and values."""
        self._patience_s, self._work_limit_s = LEAST_PATIENCE_S, ANSWER_LIMIT_S
        self._stood = trio.Event()

    def take(
        self,
        chain: tuple[Hop, ...],
        chunk_tokens: int = CHUNK_TOKENS,
        expected_s: float = 0.0,
        longest_s: float = ANSWER_LIMIT_S,
        *,
        keep: bool = False,
        arithmetics: Collection[str] | None = None,
        ended: Callable[[FailureKind | None], None] = lambda why: None,
    ) -> None:
        """Go along `chain` from now on. A sound chain keeps silent for `expected_s` while it streams, and for
        `longest_s` with a chunk; `ended` is called once, when it is left, and told how
        it failed."""
        if not self.broken or (self.kept and not keep):
            self._head.leave(self, "another way")
        self._ended = ended
        self.names |= {hop.node_id: self._head.name_of(NodeId(hop.node_id)) for hop in chain}
        self._patience_s = max(LEAST_PATIENCE_S, EXPECTED_TIMES * expected_s)
        self._work_limit_s = min(ANSWER_LIMIT_S, max(REST_LIMIT_S, WORK_TIMES * longest_s))
        self.heard_s = self._answered_s = self._clock()
        prefix: tuple[bytes, ...] = ()
        if not keep:
            self.arithmetics = arithmetics
            prefix = () if arithmetics is None else self._head.prefix_of(self.state, arithmetics)
        self._head.route(self, self.state.take(chain, chunk_tokens, keep=keep, prefix=prefix))

    async def next(self) -> TokenStep | NodeFailure:
        """What comes next; a failure ends the route, not the sequence."""
        while True:
            if self._receive.statistics().current_buffer_used or self.broken or self.state.is_complete:
                return await self._receive.receive()  # a slow reader's tokens outlast a chain that is done
            with trio.move_on_at(self.heard_s + self._patience_s):
                return await self._receive.receive()
            if self._clock() >= self.heard_s + self._patience_s:
                await self._question()

    async def _question(self) -> None:
        """Ask all hops how far they are. One that does not answer ends the route; while all do, it is waited for."""
        state = self.state
        state.ask()
        self._stood = trio.Event()
        asked_s = self._clock()
        self._head.ask(self)
        with trio.move_on_after(QUESTION_S):
            await self._stood.wait()
        if self.broken or state.is_complete or self.heard_s >= asked_s:
            return
        silent = state.silent_hop()
        waited_s = self._clock() - self._answered_s
        if silent is not None:
            self._head.fail(self, silent, "silent", f"it has given no sign of life for {waited_s:.0f} s")
        elif waited_s >= (REST_LIMIT_S if state.is_at_rest else self._work_limit_s):
            hop, other = state.stuck_at()
            self._head.fail(self, hop, "silent", f"not a step in {waited_s:.0f} s", state.chain[other].node_id)
        else:
            self.heard_s = self._clock()

    def probed(self, reply: ProbeReply) -> None:
        """A hop has answered a question."""
        self.state.probed(reply)
        if self.state.all_stand:
            self._stood.set()

    def alive(self) -> None:
        """The chain has given a sign of life."""
        self.heard_s = self._answered_s = self._clock()

    def push(self, event: TokenStep | NodeFailure) -> None:
        self._send.send_nowait(event)

    def left(self, why: FailureKind | None) -> None:
        """The route is over: its nodes have been told."""
        ended, self._ended = self._ended, _ignore
        ended(why)

    def close(self) -> None:
        """Nothing is read any more."""
        self._send.close()
        self._receive.close()


class TokenStream:
    """The tokens of a sequence that has one route only, as an iterator that ends after the one with `finish` set."""

    def __init__(self, live: LiveSequence) -> None:
        self._live = live
        self._ended = False

    def __aiter__(self) -> AsyncIterator[TokenStep]:
        return self

    async def __anext__(self) -> TokenStep:
        """The next token.

        Raises:
            RequestError: the chain cannot go on.
        """
        if self._ended:
            raise StopAsyncIteration
        event = await self._live.next()
        if isinstance(event, NodeFailure):
            raise event.error
        self._ended = event.finish is not None
        return event


class Head:
    """Requests that this node is head of."""

    def __init__(
        self,
        self_id: NodeId,
        outbox: Outbox,
        name_of: Callable[[NodeId], str],
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self.name_of = name_of
        self._self_id, self._outbox, self._clock = self_id, outbox, clock
        self._live: dict[str, LiveSequence] = {}
        self._prefixes = KnownPrefixes()

    @property
    def requests(self) -> int:
        return len(self._live)

    @asynccontextmanager
    async def sequence(self, generation: Generation) -> AsyncIterator[LiveSequence]:
        """A sequence without a route yet. Its last token frees it on every hop, read or not; so does leaving the block,
        however it is left."""
        state = HeadSequence(generation, self._self_id)
        live = LiveSequence(self, state, self._clock)
        self._live[state.session] = live
        try:
            yield live
        finally:
            self._end(live, "done")
            live.close()

    @asynccontextmanager
    async def generate(self, generation: Generation, chain: tuple[Hop, ...]) -> AsyncIterator[TokenStream]:
        """Run a request along `chain` and no other."""
        async with self.sequence(generation) as live:
            live.take(chain)
            yield TokenStream(live)

    # --- routes -----------------------------------------------------------------------------------------------------

    def route(self, live: LiveSequence, route: Route) -> None:
        """Send a route to its first stage, and what may follow it."""
        live.broken = False
        self._outbox.post(NodeId(route.chain[0].node_id), route, lane="steps" if route.position else "bulk")
        self._feed(live)

    def leave(self, live: LiveSequence, reason: str, why: FailureKind | None = None, *, keep: bool = False) -> None:
        """The sequence's route is over: free it on its hops, but where their keys and values are to be kept."""
        live.broken, live.kept = True, keep
        state = live.state
        if not keep:
            names = self._left_with_stages(live) if why is None else ()
            for node_id in dict.fromkeys(hop.node_id for hop in state.chain):
                self._outbox.post(NodeId(node_id), Close(state.session, state.attempt, reason[:200], names))
        live.left(why)

    def prefix_of(self, state: HeadSequence, arithmetics: Collection[str]) -> tuple[bytes, ...]:
        """What of a sequence stages may hold, from former ones."""
        prompt = state.generation.prompt
        names = names_of(prompt, state.generation.weights, arithmetics)
        return self._prefixes.worth_asking_for(names, len(prompt))

    def _left_with_stages(self, live: LiveSequence) -> tuple[bytes, ...]:
        """Names of what stages have of it, for them to keep."""
        if live.arithmetics is None:
            return ()
        names = live.state.cached(live.arithmetics)[:MOST_BLOCKS]
        self._prefixes.note(names)
        return names

    def ask(self, live: LiveSequence) -> None:
        """Ask the chain how far it is."""
        state = live.state
        for node_id in dict.fromkeys(hop.node_id for hop in state.chain):
            self._outbox.post(NodeId(node_id), Probe(state.session, state.attempt))

    def fail(self, live: LiveSequence, hop: int, kind: FailureKind, reason: str, between: str | None = None) -> None:
        """The route cannot go on, because of one of its hops, or of what is between it and another node."""
        at = live.state.chain[hop]
        name, layers = live.names[at.node_id], layer_range(at.start, at.end)
        error: RequestError
        match kind:
            case "full" | "preempted":
                error = Overloaded(f"node {name}: {reason}; try again when another request has ended")
            case "unfit":
                error = BadRequest("max_tokens", f"node {name}: {reason}")
            case "refused" | "forgotten":
                error = NoRoute(f"node {name} refused layers {layers}: {reason}; try again")
            case _:
                error = HopLost(name, layers, reason)
        pair = frozenset((at.node_id, between)) if between not in (None, at.node_id) else None
        self._break(live, NodeFailure(NodeId(at.node_id), kind, error, pair))

    def _break(self, live: LiveSequence, failure: NodeFailure) -> None:
        if live.broken:
            return
        keep = failure.kind == "link" and live.state.generated > 0
        self.leave(live, str(failure.error), failure.kind, keep=keep)
        live.push(failure)

    # --- frames -----------------------------------------------------------------------------------------------------

    def handle(self, arrival: Arrival) -> None:
        """Take one frame that concerns a head. Unknown sessions, former routes and wrong senders are ignored."""
        frame, peer = arrival.frame, arrival.peer
        match frame:
            case Sampled():
                for part in frame.parts:
                    if (live := self._of(part.session, part.attempt)) is not None and self._is_tail(live, peer):
                        self._sampled(live, part, arrival.wire_ms)
            case Progress():
                live = self._of(frame.session, frame.attempt)
                if live is not None and self._is_tail(live, peer) and live.state.progress(frame.position):
                    live.alive()
                    self._feed(live)
            case Accepted() | ProbeReply():
                live = self._of(frame.session, frame.attempt)
                if live is not None and _is_hop(live.state.chain, frame.hop, peer):
                    self._heard(live, frame)
            case Failed():
                if (live := self._of(frame.session, frame.attempt)) is not None:
                    self._failed(live, peer, frame)
            case _:
                log.debug("a %s frame is nothing for a head", type(frame).__name__)

    def _of(self, session: str, attempt: int) -> LiveSequence | None:
        live = self._live.get(session)
        return live if live is not None and not live.broken and live.state.attempt == attempt else None

    def _is_tail(self, live: LiveSequence, peer: NodeId) -> bool:
        return peer == live.state.chain[-1].node_id

    def _heard(self, live: LiveSequence, frame: Accepted | ProbeReply) -> None:
        if isinstance(frame, ProbeReply):
            live.probed(frame)
            return
        if live.state.is_starved_by(frame.rows):
            self.fail(live, frame.hop, "wrong", f"it took the sequence, with room for {frame.rows} rows only")
            return
        if live.state.accepted(frame.hop, frame.rows, frame.held_tokens):
            live.alive()
            self._feed(live)

    def _sampled(self, live: LiveSequence, part: SampledPart, wire_ms: float) -> None:
        state = live.state
        if not state.sampled(part):  # no sign of life either: who says what is not asked for may say it for ever
            return
        live.alive()
        token, finish = part.tokens[0], part.finish
        if state.is_complete:  # whatever the tail says: there is no room for more
            finish = "stop" if token in state.generation.stop_tokens else "length"
        elif finish is not None:
            self.fail(live, len(state.chain) - 1, "wrong", f"it ended the answer after {state.generated} tokens")
            return
        live.push(TokenStep(token, part.position, finish, state.chain, part.timings, wire_ms))
        if finish is not None:
            self._end(live, "done")
        else:
            self._feed(live)

    def _failed(self, live: LiveSequence, peer: NodeId, frame: Failed) -> None:
        """A stage has given up: because of itself, or because of another hop that it has lost or does not believe."""
        hops = {hop.node_id: index for index, hop in reversed(list(enumerate(live.state.chain)))}
        if peer not in hops:
            return
        full: FailureKind = "preempted" if frame.preempted else "full"
        kind: FailureKind = full if frame.kind == "overloaded" else frame.kind
        suspect, reason, between = hops[peer], frame.reason, None
        if frame.suspect in hops and frame.suspect not in (peer, self._self_id):
            assert frame.suspect is not None
            suspect, name, between = hops[frame.suspect], live.names[peer], frame.other_end or peer
            reason = f"node {name} lost the link to it: {reason}" if kind == "link" else f"node {name} says: {reason}"
        elif kind == "wrong" and frame.suspect is not None:
            kind = "refused"
        elif kind == "link":
            between = frame.suspect or self._self_id
        self.fail(live, suspect, kind, reason, between)

    # --- losses -----------------------------------------------------------------------------------------------------

    def member_gone(self, peer: NodeId, reason: str) -> None:
        """A member is gone: every route that needs it is over."""
        for live, hop in self._along(peer):
            self.fail(live, hop, "lost", reason)

    def link_lost(self, peer: NodeId, reason: str, lanes: Collection[Lane] = LANES) -> None:
        """Lanes of the link with a member broke: what its hops were to be told, or to tell, may be lost."""
        for live, hop in self._along(peer):
            if "steps" in lanes or (hop == 0 and live.state.needs_bulk):
                self.fail(live, hop, "link", reason, self._self_id)

    def _along(self, peer: NodeId) -> Iterator[tuple[LiveSequence, int]]:
        """The sequences whose route is whole and goes along a member, and its first hop there."""
        for live in list(self._live.values()):
            at = next((index for index, hop in enumerate(live.state.chain) if hop.node_id == peer), None)
            if at is not None and not live.broken:
                yield live, at

    def fail_session(self, session: str, reason: str) -> None:
        """A request cannot go on at this node."""
        live = self._live.get(session)
        if live is not None and not live.broken:
            self._break(live, NodeFailure(self._self_id, "refused", RequestError(reason)))

    def fail_all(self, reason: str) -> None:
        """No request can go on at this node."""
        for session in list(self._live):
            self.fail_session(session, reason)

    def _end(self, live: LiveSequence, reason: str) -> None:
        if self._live.pop(live.state.session, None) is not None and live.state.chain:
            self.leave(live, reason)

    def _feed(self, live: LiveSequence) -> None:
        state = live.state
        first = NodeId(state.chain[0].node_id)
        for chunk in state.feed():
            frame = Step((chunk.part,), 1, None, 0.0)
            self._outbox.post(first, frame, chunk.body, "steps" if chunk.streams else "bulk")


def _ignore(why: FailureKind | None) -> None:
    """Nobody wants to know."""


def _is_hop(chain: tuple[Hop, ...], hop: int, peer: NodeId) -> bool:
    return hop < len(chain) and chain[hop].node_id == peer
