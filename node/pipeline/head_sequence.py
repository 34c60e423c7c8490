"""One sequence at its head: its token log, which outlives its routes, and how far the present route has come. No I/O.

A new route begins where every stage of it has the sequence's keys and values already, or at the first token: what it is
fed is then the prompt with all tokens generated so far behind it. Tokens depend on what stands before them, on the
sampling and on their position alone, so the answer goes on as if nothing had happened.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from node.engine.base import BLOCK_TOKENS
from node.pipeline.credit import FIRST_ROWS
from node.pipeline.generation import Generation
from node.pipeline.kv_room import tokens_to_begin
from node.pipeline.prefix import names_of
from node.plan.chain_time import CHUNK_TOKENS
from node.wire.frames import Hop, ProbeReply, Route, SampledPart, Sequence, StepPart
from node.wire.ids import NodeId

REPLAY_ROWS = 16
"""Of an answer that is computed again, in one chunk: each takes a stage as long as a step does."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows to send to the first stage."""

    part: StepPart
    body: bytes
    streams: bool
    """Whether somebody waits for the next token of a stream, not for a prompt."""


class HeadSequence:
    """What the head knows of it."""

    def __init__(self, generation: Generation, head: NodeId) -> None:
        self.generation = generation
        self.tokens: list[int] = list(generation.prompt)
        """The prompt, and behind it what has been generated."""
        self.sequence = Sequence(
            session=secrets.token_hex(16),
            head=head,
            weights=generation.weights,
            max_tokens=generation.max_tokens,
            prompt_tokens=len(generation.prompt),
            max_new_tokens=generation.max_new_tokens,
            stop_tokens=generation.stop_tokens,
            sampling=generation.sampling,
            feed=generation.feed,
        )
        self.attempt = 0
        self.chain: tuple[Hop, ...] = ()
        self._chunk_tokens = CHUNK_TOKENS
        self._accepted: dict[int, int] = {}
        """Rows that each hop has told to have room for."""
        self._probe_replies: dict[int, ProbeReply] = {}
        self._fed = self._through = self._input = 0
        """Tokens sent, known to be through the tail, and to be fed before the next one is sampled."""
        self._streams_from = 0
        """Position from which on somebody waits for each step."""
        self._steps = 0
        """Sent on this route; the tail's answers to those of the input's chunks before the last one are no tokens."""
        self._due = 0
        """Step whose token comes next."""
        self._prefix_tokens = 0
        """Of what it is fed: stages may hold them, and are asked."""
        self._held: dict[int, int] = {}
        """Of those: how many each hop holds."""
        self.reused_tokens = 0
        """That no stage had to compute on this route."""

    @property
    def session(self) -> str:
        return self.sequence.session

    @property
    def generated(self) -> int:
        return len(self.tokens) - len(self.generation.prompt)

    @property
    def kv_tokens(self) -> int:
        """Room that a stage must have to take it now."""
        return tokens_to_begin(len(self.tokens), self.sequence.max_tokens)

    @property
    def is_complete(self) -> bool:
        """Whether it has all tokens that were asked for, or one that ends it."""
        stopped = self.generated > 0 and self.tokens[-1] in self.generation.stop_tokens
        return stopped or self.generated >= self.generation.max_new_tokens

    def take(
        self,
        chain: tuple[Hop, ...],
        chunk_tokens: int = CHUNK_TOKENS,
        *,
        keep: bool = False,
        prefix: tuple[bytes, ...] = (),
    ) -> Route:
        """Go along `chain` from now on; with `keep`, from where all of its stages are; with `prefix`, from behind as
        many of these blocks as all of them say that they hold."""
        self.attempt += 1
        self.chain, self._chunk_tokens = chain, max(2, min(chunk_tokens, FIRST_ROWS))
        self._accepted, self._probe_replies = {}, {}
        self._input = len(self.tokens)
        position = self._input - 1 if keep else 0
        self._prefix_tokens = BLOCK_TOKENS * len(prefix)
        self._held, self.reused_tokens = {}, 0
        self._steps = 0
        self._begin_at(position)
        self._streams_from = position if keep else self._input
        return Route(self.sequence, self.attempt, chain, 0, self._input, position, prefix)

    def _begin_at(self, position: int) -> None:
        self._fed = self._through = position
        self._due = sum(1 for _ in self._counts(position)) - 1

    def feed(self) -> Iterator[Chunk]:
        """What may be sent now, within the credit: no stage queues a whole prompt."""
        if self._prefix_tokens and len(self._held) < len(self.chain):
            return
        room = min(self._accepted.values()) if len(self._accepted) == len(self.chain) else FIRST_ROWS
        room = min(room, self.sequence.max_tokens)
        for count in self._counts(self._fed):
            if self._fed + count - self._through > room:
                return
            yield self._chunk(count)

    def _counts(self, position: int) -> Iterator[int]:
        """Rows of each chunk of what is fed from there on.

        What once was steps of an answer is kept apart from the prompt, and a chunk of one token is made only where the
        prompt has one: kernels for one row and for several end in different last bits, and the answer shall go on as it
        would have without a break.
        """
        prompt = len(self.generation.prompt)
        while position < self._input:
            if position < prompt:
                left, most = min(prompt, self._input) - position, self._chunk_tokens
                count = most - 1 if left == most + 1 and most > 2 else min(most, left)
            else:
                count = min(self._chunk_tokens, REPLAY_ROWS, self._input - position)
            position += count
            yield count

    def _chunk(self, count: int) -> Chunk:
        position, step = self._fed, self._steps
        self._fed, self._steps = position + count, step + 1
        ids = self.tokens[position : self._fed]
        want = "token" if self._fed == self._input else "nothing"
        replay = position >= len(self.generation.prompt)
        part = StepPart(self.session, self.attempt, 0, step, position, count, want, (), replay)  # type: ignore[arg-type]
        streams = position >= self._streams_from
        return Chunk(part, struct.pack(f"<{count}i", *ids), streams)

    @property
    def needs_bulk(self) -> bool:
        """Whether something of what it is fed may be under way: until the first token of this route is here."""
        return self._streams_from == self._input

    def is_starved_by(self, rows: int) -> bool:
        """Whether a hop has taken it with less room than any must have: the rest of the prompt could never be sent."""
        return rows < min(self.sequence.max_tokens, FIRST_ROWS) and self._fed < self._input

    def accepted(self, hop: int, rows: int, held_tokens: int = 0) -> bool:
        """A hop has taken it; False where it has said so before: its first word counts."""
        if hop >= len(self.chain) or hop in self._accepted:
            return False
        self._accepted[hop] = rows
        if self._prefix_tokens:
            self._held[hop] = held_tokens
            if len(self._held) == len(self.chain) and not self._steps:
                least = min(self._prefix_tokens, *self._held.values())
                self.reused_tokens = least - least % BLOCK_TOKENS
                self._begin_at(self.reused_tokens)
        return True

    def cached(self, arithmetics: Collection[str]) -> tuple[bytes, ...]:
        """Names of the blocks that every stage holds keys and values of by now."""
        return names_of(self.tokens[: max(0, self._through)], self.generation.weights, arithmetics)

    def progress(self, position: int) -> bool:
        """Tokens below `position` are through; False where that is known, or cannot be."""
        if not self._through < position <= self._fed:
            return False
        self._through = position
        return True

    def sampled(self, part: SampledPart) -> bool:
        """Take the token that is due; False where this is another one, or one that cannot be."""
        one = len(part.tokens) == 1 and len(part.timings) == len(self.chain)
        if part.step != self._due or part.position != len(self.tokens) or not one:
            return False
        self.tokens.append(part.tokens[0])
        self._through = len(self.tokens) - 1
        self._input, self._due = len(self.tokens), self._due + 1
        if self.generation.feed == "ring":  # the first stage has it already
            self._fed, self._steps = self._input, self._due + 1
        return True

    # --- when it is silent ------------------------------------------------------------------------------------------

    def ask(self) -> None:
        """The hops are asked how far they are: what they said before counts no longer."""
        self._probe_replies = {}

    def probed(self, reply: ProbeReply) -> None:
        """One has answered."""
        if reply.hop < len(self.chain):
            self._probe_replies[reply.hop] = reply

    @property
    def all_stand(self) -> bool:
        """All that can have heard of the route."""
        return self.silent_hop() is None

    def silent_hop(self) -> int | None:
        """The first hop that has not answered; None where all have. A hop that waits for the one before it to take the
        route has not heard of it yet, and nothing to say."""
        return next((hop for hop in range(self._reached) if hop not in self._probe_replies), None)

    @property
    def is_at_rest(self) -> bool:
        """Whether no hop that answered has anything to do: what is under way is lost, or on its way between two."""
        return not any(reply.waiting for reply in self._probe_replies.values())

    def stuck_at(self) -> tuple[int, int]:
        """Where it hangs though all answer, as two hops: the first with work that it does not do, twice; or those
        between which a step is lost, one of which says what is not so. Where all have done as much, and the tail has
        told its last token, that is between the tail and the first; else it is the first."""
        for hop in range(self._reached):
            if self._probe_replies[hop].waiting:
                return hop, hop
            if hop and self._probe_replies[hop].steps < self._probe_replies[hop - 1].steps:
                return hop - 1, hop
        streams = self.generation.feed == "ring" and self._streams_from < self._input
        in_ring = streams and self._reached == len(self.chain) and self._probe_replies[0].steps <= self._due
        return (len(self.chain) - 1, 0) if in_ring else (0, 0)

    @property
    def _reached(self) -> int:
        """Hops that the route has come to: each hands it on when it has taken it."""
        taken = (hop for hop in range(len(self.chain)) if hop not in self._accepted)
        return min(len(self.chain), next(taken, len(self.chain)) + 1)
