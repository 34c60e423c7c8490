"""The head's side of a request: opens the chain, feeds the prompt in chunks, hands the tokens on as they come.

Knows token ids, not text. A hop that dies ends the request with `HopLost`, and every hop is told to free it.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

import trio

from node.errors import HopLost, NoRoute, Overloaded, RequestError
from node.pipeline.outbox import Outbox
from node.plan.chain_time import CHUNK_TOKENS
from node.swarm.base import Arrival
from node.wire.frames import Close, Failed, Hop, HopTiming, Open, Progress, Sampled, Sampling, Tokens
from node.wire.ids import NodeId

ANSWER_LIMIT_S = 120.0
"""Silence from the whole chain for this long ends the request: far beyond a chunk on the slowest machine we know."""


@dataclass(frozen=True, slots=True)
class Generation:
    """What to generate."""

    prompt: tuple[int, ...]
    """Token ids; at least one."""
    max_new_tokens: int
    stop_tokens: tuple[int, ...]
    sampling: Sampling
    weights: str = ""
    """Digest and dtype of the model's weights, as in the plan."""


@dataclass(frozen=True, slots=True)
class TokenStep:
    """One token, and where its time went."""

    token: int
    position: int
    finish: Literal["stop", "length"] | None
    hops: tuple[HopTiming, ...]
    return_ms: float
    """From tail to head."""


@dataclass(frozen=True, slots=True)
class NodeFailure:
    """A node that ended a request, by its own word or by going away."""

    node_id: NodeId
    error: RequestError


@dataclass(slots=True)
class _Open:
    """A request under way."""

    opened: Open
    generation: Generation
    events: trio.MemorySendChannel[TokenStep | RequestError]
    names: dict[str, str]
    """Of the chain's nodes: a node that is gone can no longer be asked."""
    ended: Callable[[], None]
    sent: int = 0
    """Prompt tokens sent."""
    done: int = 0
    """Prompt tokens known to be through the tail."""
    due: int = 0
    """Position of the next sampled token."""
    heard_s: float = field(default_factory=trio.current_time)
    """When the chain last gave a sign of life."""
    failure: NodeFailure | None = None


class TokenStream:
    """The tokens of one request, as an async iterator that ends after the one with `finish` set."""

    def __init__(self, request: _Open, events: trio.MemoryReceiveChannel[TokenStep | RequestError]) -> None:
        self.chain = request.opened.chain
        self._request, self._events = request, events
        self._first: TokenStep | RequestError | None = None
        self._ended = False

    async def first_failure(self) -> NodeFailure | None:
        """Waits for the first token; who failed, where a node did before it came. Iterating then tells the same."""
        self._first = await self._next()
        return self._request.failure if isinstance(self._first, RequestError) else None

    def __aiter__(self) -> AsyncIterator[TokenStep]:
        return self

    async def __anext__(self) -> TokenStep:
        """The next token.

        Raises:
            RequestError: the chain cannot go on.
        """
        if self._ended:
            raise StopAsyncIteration
        event, self._first = self._first or await self._next(), None
        if isinstance(event, RequestError):
            raise event
        self._ended = event.finish is not None
        return event

    async def _next(self) -> TokenStep | RequestError:
        if self._events.statistics().current_buffer_used:  # a slow reader's tokens outlast a chain that is done
            return await self._events.receive()
        while (silent_at_s := self._request.heard_s + ANSWER_LIMIT_S) > trio.current_time():
            with trio.move_on_at(silent_at_s):
                return await self._events.receive()
        return NoRoute(f"not a word from the chain for {ANSWER_LIMIT_S:.0f} s; see `parallax status`")


class Head:
    """Requests that this node is head of."""

    def __init__(self, self_id: NodeId, name_of: Callable[[NodeId], str]) -> None:
        self._self_id, self._name_of = self_id, name_of
        self._open: dict[str, _Open] = {}
        self._outbox: Outbox | None = None

    def attach(self, outbox: Outbox) -> None:
        """Tell where frames go; before the first request."""
        self._outbox = outbox

    @property
    def requests(self) -> int:
        return len(self._open)

    @asynccontextmanager
    async def generate(
        self, generation: Generation, chain: tuple[Hop, ...], epoch: int, ended: Callable[[], None] = lambda: None
    ) -> AsyncIterator[TokenStream]:
        """Run a request along `chain`.

        Its last token frees it on every hop, read or not; so does leaving the block, however it is left. `ended` is
        called once, when the hops are told.
        """
        # Room for the whole answer: a reader that lags never makes `handle` wait, and max_new_tokens bounds it.
        send, receive = trio.open_memory_channel[TokenStep | RequestError](generation.max_new_tokens + 2)
        opened = Open(
            session=secrets.token_hex(16),
            epoch=epoch,
            head=self._self_id,
            chain=chain,
            hop=0,
            weights=generation.weights,
            max_tokens=len(generation.prompt) + generation.max_new_tokens,
            max_new_tokens=generation.max_new_tokens,
            stop_tokens=generation.stop_tokens,
            sampling=generation.sampling,
        )
        names = {hop.node_id: self._name_of(NodeId(hop.node_id)) for hop in chain}
        request = _Open(opened, generation, send, names, ended, due=len(generation.prompt))
        self._open[opened.session] = request
        try:
            self._post(NodeId(chain[0].node_id), opened)
            self._feed(request)
            yield TokenStream(request, receive)
        finally:
            self._close(request, "done")
            send.close()
            receive.close()

    def handle(self, arrival: Arrival) -> None:
        """Take one frame that concerns a head. Unknown sessions and wrong senders are ignored."""
        frame = arrival.frame
        assert isinstance(frame, Sampled | Progress | Failed)
        request = self._open.get(frame.session)
        if request is None or frame.epoch != request.opened.epoch:
            return
        opened = request.opened
        chain = opened.chain
        if isinstance(frame, Failed):
            if any(hop.node_id == arrival.peer for hop in chain):
                self._failed(request, arrival.peer, frame)
            return
        if arrival.peer != chain[-1].node_id:
            return
        request.heard_s = trio.current_time()
        if isinstance(frame, Progress):
            request.done = max(request.done, min(frame.position, request.sent))
            self._feed(request)
        elif frame.position == request.due:
            request.due += 1
            full = request.due >= opened.max_tokens  # whatever the tail says: there is no room for more
            finish = frame.finish or ("length" if full else None)
            request.events.send_nowait(TokenStep(frame.token, frame.position, finish, frame.timings, arrival.wire_ms))
            if finish is not None:
                self._close(request, "done")

    def lost(self, peer: NodeId, reason: str) -> None:
        """A member is gone: end every request whose chain needs it."""
        for request in list(self._open.values()):
            hop = next((hop for hop in request.opened.chain if hop.node_id == peer), None)
            if hop is not None:
                self._fail(request, peer, HopLost(request.names[peer], _layers(hop), reason))

    def fail_session(self, session: str, reason: str) -> None:
        """A request cannot go on at this node."""
        if (request := self._open.get(session)) is not None:
            self._end(request, RequestError(reason))

    def _failed(self, request: _Open, peer: NodeId, frame: Failed) -> None:
        """A stage has given up: because of itself, or because of another hop that it has lost."""
        name = request.names[peer]
        hops = {NodeId(hop.node_id): hop for hop in reversed(request.opened.chain)}
        unreachable = NodeId(frame.unreachable) if frame.unreachable is not None else None
        error: RequestError
        if unreachable in hops and unreachable not in (peer, self._self_id):
            text = f"node {name} lost the link to it: {frame.reason}"
            peer, error = unreachable, HopLost(request.names[unreachable], _layers(hops[unreachable]), text)
        elif frame.kind == "overloaded":
            error = Overloaded(f"node {name}: {frame.reason}; try again when another request has ended")
        elif frame.kind == "refused":
            error = NoRoute(f"node {name} refused layers {_layers(hops[peer])}: {frame.reason}; try again")
        else:
            error = HopLost(name, _layers(hops[peer]), frame.reason)
        self._fail(request, peer, error)

    def _fail(self, request: _Open, peer: NodeId, error: RequestError) -> None:
        request.failure = NodeFailure(peer, error)
        self._end(request, error)

    def _end(self, request: _Open, error: RequestError) -> None:
        self._close(request, str(error)[:200])
        request.events.send_nowait(error)

    def _close(self, request: _Open, reason: str) -> None:
        opened = request.opened
        if self._open.pop(opened.session, None) is None:
            return
        for node_id in dict.fromkeys(hop.node_id for hop in opened.chain):
            self._post(NodeId(node_id), Close(opened.session, opened.epoch, reason))
        request.ended()

    def _feed(self, request: _Open) -> None:
        """Send prompt chunks, at most one per stage and one more under way: no stage queues a whole prompt."""
        prompt, opened = request.generation.prompt, request.opened
        window = (len(opened.chain) + 1) * CHUNK_TOKENS
        while request.sent < len(prompt) and request.sent - request.done < window:
            ids = prompt[request.sent : request.sent + CHUNK_TOKENS]
            position, request.sent = request.sent, request.sent + len(ids)
            final = request.sent == len(prompt)
            chunk = Tokens(opened.session, opened.epoch, position, len(ids), final, 0.0)
            self._post(NodeId(opened.chain[0].node_id), chunk, struct.pack(f"<{len(ids)}i", *ids))

    def _post(self, peer: NodeId, frame: Open | Tokens | Close, body: bytes = b"") -> None:
        assert self._outbox is not None
        self._outbox.post(peer, frame, body)


def _layers(hop: Hop) -> str:
    return f"{hop.start}–{hop.end - 1}"
