"""One request's way around failures: the chains that it goes along, one after another, and its tokens as one stream.

Nothing is refused that waiting would serve: before the first token a request whose chain fails, or that finds none,
waits for another one up to its patience. After it, the answer goes on where it was: over a new link where only that
broke, else on another chain that is fed the prompt and all tokens so far.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from math import inf
from typing import Protocol

import trio

from node.errors import BadRequest, NoRoute, Overloaded
from node.pipeline.generation import FailureKind, NodeFailure, Pair, TokenStep
from node.pipeline.head import LiveSequence
from node.wire.frames import Hop

log = logging.getLogger(__name__)

RESUME_LIMIT_S = 30.0
"""An answer that has begun waits no longer than this for another chain: somebody looks at half a sentence."""

MOST_IN_VAIN = 8
"""Chains in a row that an answer which has begun fails on without one more token: perhaps it is what they fail of."""

FIRST_PAUSE_S, MOST_PAUSE_S = 1.0, 8.0
"""Before a node that failed is tried again where there is no other: its next record tells whether it serves. Doubled
each time that it fails the same request."""

CLAIM_AFTER_S, MOST_CLAIM_PAUSE_S = 5.0, 60.0
"""A request that has waited for room asks a full node for its fair share; then after pauses that double."""


@dataclass(frozen=True, slots=True)
class ChosenChain:
    """A chain, and how to go along it."""

    chain: tuple[Hop, ...]
    chunk_tokens: int
    expected_s: float
    """Between two signs of life while it streams."""
    longest_s: float
    """The same for a chunk of a prompt."""
    left: Callable[[FailureKind | None], None]
    """To be called once, when it is left, with how it failed; None where it did not."""
    arithmetics: frozenset[str] | None = None
    """Drift classes of its nodes; None where one has not told its own."""
    claimed: bool = False
    """Whether it was asked for although its nodes say that they are full."""


class FailedNodes:
    """Nodes that failed one request, and pairs of them. It keeps away from them while there are others, and for a
    moment even where there are none."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until: dict[Pair, float] = {}
        """A node alone is a set of one."""
        self._times: dict[Pair, int] = {}
        self.last = ""
        """The one that failed last."""

    def add(self, node: str, pair: Pair | None = None) -> None:
        """It failed once more, or something between it and another one did."""
        what = pair or frozenset((node,))
        times = self._times[what] = self._times.get(what, 0) + 1
        self._until[what] = self._clock() + min(MOST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(times - 1, 8))
        self.last = node

    @property
    def all(self) -> frozenset[str]:
        """Nodes."""
        return frozenset(node for what in self._until if len(what) == 1 for node in what)

    def now(self) -> frozenset[str]:
        """Nodes that failed a moment ago."""
        return frozenset(node for what in self._now() if len(what) == 1 for node in what)

    @property
    def all_pairs(self) -> frozenset[Pair]:
        return frozenset(what for what in self._until if len(what) == 2)

    def pairs_now(self) -> frozenset[Pair]:
        """Pairs that failed a moment ago."""
        return frozenset(what for what in self._now() if len(what) == 2)

    def next_change_s(self) -> float:
        """When one of them may be used again."""
        return min((self._until[what] for what in self._now()), default=inf)

    def _now(self) -> list[Pair]:
        now_s = self._clock()
        return [what for what, until_s in self._until.items() if until_s > now_s]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a chain is wanted for."""

    weights: str
    kv_tokens: int
    """Room that every stage must have to begin with."""
    input_tokens: int
    """To be fed: the prompt, and what has been generated."""
    output_tokens: int
    """To come, at most."""
    request_id: str
    number: int
    """Of the request, among those of this head."""
    begun: bool
    """Whether somebody has read a part of the answer."""
    give_up_at_s: float
    waits_for_room: bool = True
    """Whether it is worth while to wait for longer where there is a chain, and only room is missing."""


class Claims:
    """When a request that waits for room asks for its fair share of a node that is full, though nothing in the node's
    record says that it would get it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._pause_s = CLAIM_AFTER_S
        self._next_s: float | None = None

    def due(self) -> bool:
        """Whether it is time; asked while there is no room. The first time is some seconds after the first question."""
        now_s = self._clock()
        if self._next_s is None:
            self._next_s = now_s + self._pause_s
        if now_s < self._next_s:
            return False
        self._pause_s = min(MOST_CLAIM_PAUSE_S, 2 * self._pause_s)
        self._next_s = now_s + self._pause_s
        return True

    def next_change_s(self) -> float:
        """When it is, if there is no room until then."""
        return inf if self._next_s is None else self._next_s


class ChainChooser(Protocol):
    """Who chooses chains."""

    async def choose(
        self, wanted: Wanted, failed: FailedNodes, claims: Claims, waits: Callable[[str], None]
    ) -> ChosenChain | str: ...
    def failed(self, failure: NodeFailure, kv_tokens: int, *, claimed: bool) -> None: ...
    def answered(self, chain: tuple[Hop, ...]) -> None: ...


class FailoverStream:
    """The tokens of a request, as an iterator that ends after the one with `finish` set."""

    def __init__(
        self,
        live: LiveSequence,
        chooser: ChainChooser,
        request_id: str,
        number: int,
        started: Callable[[tuple[Hop, ...]], None],
        waits: Callable[[str], None],
        give_up_at_s: float,
    ) -> None:
        self._live, self._chooser, self._request_id, self._number = live, chooser, request_id, number
        self._started, self._waits, self._give_up_at_s = started, waits, give_up_at_s
        self._failed, self._claims = FailedNodes(trio.current_time), Claims(trio.current_time)
        self._claimed = False
        self._first: TokenStep | None = None
        self._unproven = True
        """Whether no token has come along the present chain."""
        self._in_vain = 0
        """Chains that have failed since the last token."""
        self._finished = False

    async def begin(self) -> None:
        """Take a chain, and wait for the first token.

        Raises:
            RequestError: none came in time.
        """
        await self._take_another(None)
        self._first = await self._next()

    def __aiter__(self) -> AsyncIterator[TokenStep]:
        return self

    async def __anext__(self) -> TokenStep:
        """The next token. The stream ends without a `finish` where the answer is longer than any chain can hold.

        Raises:
            RequestError: no chain can go on.
        """
        if self._finished:
            raise StopAsyncIteration
        try:
            step, self._first = self._first or await self._next(), None
        except BadRequest as error:
            log.info("an answer ends after %d tokens: %s", self._live.state.generated, error)
            self._finished = True
            raise StopAsyncIteration from None
        self._finished = step.finish is not None
        return step

    async def _next(self) -> TokenStep:
        while True:
            event = await self._live.next()
            if isinstance(event, TokenStep):
                self._in_vain = 0
                if self._unproven:
                    self._unproven = False
                    self._chooser.answered(event.chain)
                return event
            await self._go_around(event)

    async def _go_around(self, failure: NodeFailure) -> None:
        for_room = failure.kind in ("full", "preempted")
        log.log(logging.INFO if for_room else logging.WARNING, "%s; trying another way", failure.error)
        state = self._live.state
        self._chooser.failed(failure, state.kv_tokens, claimed=self._claimed)
        self._in_vain += not for_room
        if state.generated and self._in_vain > MOST_IN_VAIN:
            raise failure.error
        if self._live.kept and not self._unproven:  # only a link broke; whether a new one can be had, this tells
            self._unproven = True
            self._started(state.chain)
            self._live.take(state.chain, keep=True)
            return
        if not for_room and failure.kind != "forgotten":
            self._failed.add(failure.node_id, failure.pair)
        await self._take_another(failure)

    async def _take_another(self, failure: NodeFailure | None) -> None:
        state = self._live.state
        begun, unfit = state.generated > 0, failure is not None and failure.kind == "unfit"
        give_up_at_s = self._give_up_at_s
        if begun:
            give_up_at_s = trio.current_time() + RESUME_LIMIT_S
        if unfit:
            give_up_at_s = trio.current_time()  # another node may think otherwise, but waiting changes nothing
        wanted = Wanted(
            state.generation.weights,
            state.kv_tokens,
            len(state.tokens),
            state.sequence.max_tokens - len(state.tokens),
            self._request_id,
            self._number,
            begun,
            give_up_at_s,
            waits_for_room=not unfit,
        )
        try:
            chosen = await self._chooser.choose(wanted, self._failed, self._claims, self._waits)
        except NoRoute:
            if failure is not None:  # who was lost says more than what is served since
                raise failure.error from None
            raise
        if isinstance(chosen, str):
            for_room = failure is None or failure.kind in ("full", "preempted")
            raise failure.error if failure is not None and not for_room else _given_up(chosen, state.kv_tokens)
        self._unproven, self._claimed = True, chosen.claimed
        self._started(chosen.chain)
        self._live.take(
            chosen.chain,
            chosen.chunk_tokens,
            chosen.expected_s,
            chosen.longest_s,
            arithmetics=chosen.arithmetics,
            ended=chosen.left,
        )


def _given_up(waited_for: str, kv_tokens: int) -> NoRoute | Overloaded:
    if waited_for.startswith("KV room"):
        return Overloaded(
            f"no KV room for {kv_tokens} more tokens came free in time; try again when other requests have ended"
        )
    return NoRoute(f"waited in vain: {waited_for}")
