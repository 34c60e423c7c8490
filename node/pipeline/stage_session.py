"""One sequence at one hop: where it comes from, where it goes, and which step is due. No I/O.

It outlives its routes: what it keeps is its place in the engine, and how many tokens are in its KV there.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal

from node.engine.base import Stage
from node.pipeline.kv_room import in_blocks
from node.pipeline.stages import LoadedRange
from node.wire.frames import Hop, Route, SampledPart, StepPart
from node.wire.ids import NodeId

Verdict = Literal["run", "ignore", "refuse"]
Key = tuple[str, int]
"""Session and hop: one node may be several hops of a chain."""


@dataclass(slots=True, eq=False)
class StageSession:
    """What a stage remembers of a sequence between steps."""

    route: Route
    held: LoadedRange
    engine_key: str
    """The engine's name for it."""
    opened_s: float
    since_s: float
    """When this node heard of it for the first time: it may have been closed and opened again since."""
    last_active_s: float
    first_tokens: int = 0
    """KV room that it was opened with."""
    credit_rows: int = 0
    """Rows of it that may be here at a time."""
    waiting_rows: int = 0
    """Of those: rows that wait for the engine."""
    waiting_steps: int = 0
    due: int = 0
    """Number of the step that must come next."""
    position: int = 0
    """Where it may start at the latest: behind all that has come."""
    kv_tokens: int = 0
    """In the engine's cache, by the batches that have ended."""
    last_ran: int = 0
    """`schedule.Ready.number` of its last step."""
    done: int = 0
    """Steps run and sent on."""
    keep: tuple[bytes, ...] = ()
    """Names of blocks that the engine may keep when it is closed."""
    suspended_s: float | None = None
    """Its chain is broken since then: its KV is kept for a while, for a new route."""

    @property
    def stage(self) -> Stage:
        return self.held.stage

    @property
    def key(self) -> Key:
        return self.route.sequence.session, self.route.hop

    @property
    def session(self) -> str:
        return self.route.sequence.session

    @property
    def own(self) -> Hop:
        """This hop."""
        return self.route.chain[self.route.hop]

    @property
    def head(self) -> NodeId:
        return NodeId(self.route.sequence.head)

    @property
    def upstream(self) -> NodeId:
        """The hop before, or the head."""
        return upstream_of(self.route)

    @property
    def downstream(self) -> NodeId | None:
        """The next stage; None for the tail."""
        return None if self.is_tail else NodeId(self.route.chain[self.route.hop + 1].node_id)

    @property
    def first(self) -> NodeId:
        return NodeId(self.route.chain[0].node_id)

    @property
    def is_tail(self) -> bool:
        return self.route.hop == len(self.route.chain) - 1

    def is_decode(self, position: int) -> bool:
        """Whether a step there is of an answer that streams, or goes on after a break from what was kept."""
        return is_decode(self.route, position)

    @property
    def token_bytes(self) -> float:
        """Of its keys and values, for one token and its layers."""
        own, held = self.own, self.held
        return self.stage.info.kv_bytes_per_token * (own.end - own.start) / (held.end - held.start)

    @property
    def room_tokens(self) -> int:
        """That it takes of the KV cache: what it began with, and what it has grown to."""
        return in_blocks(max(self.first_tokens, self.kv_tokens), self.stage.info.block_tokens)

    @property
    def reserved_bytes(self) -> int:
        """KV cache that it takes, for its layers."""
        return ceil(self.room_tokens * self.token_bytes)

    def needs_link(self, peer: NodeId) -> bool:
        """Whether it cannot go on without the link to `peer`. Links of other pairs of its chain are theirs to tell."""
        tail = NodeId(self.route.chain[-1].node_id)
        return (
            peer in (self.head, self.upstream, self.downstream)
            or (self.is_tail and peer == self.first)
            or (self.route.hop == 0 and peer == tail)
        )

    @property
    def streams(self) -> bool:
        """Whether its answer does, as far as is known here."""
        return self.suspended_s is None and self.is_decode(self.kv_tokens)

    @property
    def stages(self) -> int:
        """Nodes that its steps go through, one after another."""
        return len({hop.node_id for hop in self.route.chain})

    @property
    def needs_bulk(self) -> bool:
        """Whether something of its prompt may be under way: until a step behind it comes, after which nothing is."""
        return self.route.position == 0 and self.position <= self.route.input_tokens

    def members(self) -> set[NodeId]:
        """The nodes without which it cannot go on."""
        return {self.head, *(NodeId(hop.node_id) for hop in self.route.chain)}

    def take(self, route: Route) -> bool:
        """Go on along a new route; False where what it must have kept for that is not here, or cannot be taken back."""
        back = route.position < self.kv_tokens and not self.stage.info.can_rewind
        if route.position > self.kv_tokens or back or route.chain[route.hop] != self.own:
            return False
        self.route, self.suspended_s = route, None
        self.due, self.done, self.position = 0, 0, route.position
        self.waiting_rows = self.waiting_steps = 0
        return True

    def judge(self, peer: NodeId, part: StepPart) -> Verdict:
        """Whether a step is the one that is due, a repetition of an earlier one, or cannot be.

        A step from anyone but the hop that it should come from is ignored, whatever it says, and so is a repetition.
        """
        if peer != self.upstream or part.attempt != self.route.attempt or self.suspended_s is not None:
            return "ignore"
        if part.step < self.due:
            return "ignore"
        if part.step > self.due or len(part.timings) != self.route.hop:
            return "refuse"
        return self._take_rows(part.position, part.count)

    def judge_sampled(self, peer: NodeId, part: SampledPart) -> Verdict:
        """The same for a token that the tail has sampled, as the next input."""
        ring = self.route.sequence.feed == "ring" and part.finish is None
        if not ring or self.suspended_s is not None:
            return "ignore"
        if peer != NodeId(self.route.chain[-1].node_id) or part.attempt != self.route.attempt:
            return "ignore"
        if part.step + 1 < self.due:
            return "ignore"
        if part.step + 1 > self.due or len(part.tokens) != 1:
            return "refuse"
        return self._take_rows(part.position, 1)

    def _take_rows(self, position: int, count: int) -> Verdict:
        """Rows ahead of the credit are as wrong as rows behind a gap: an honest head keeps to both."""
        back = position < self.position and not self.stage.info.can_rewind
        if position > self.position or back or position + count > self.route.sequence.max_tokens:
            return "refuse"
        if count > self.stage.info.max_batch_rows or self.waiting_rows + count > self.credit_rows:
            return "refuse"
        self.due += 1
        self.position = position + count
        self.waiting_rows += count
        self.waiting_steps += 1
        return "run"

    def finish_after(self, token: int, position: int) -> Literal["stop", "length"] | None:
        """Whether the sequence ends with a token just sampled, whose place in it is `position`. Tail only."""
        sequence = self.route.sequence
        if token in sequence.stop_tokens:
            return "stop"
        return "length" if position + 1 - sequence.prompt_tokens >= sequence.max_new_tokens else None


def is_decode(route: Route, position: int) -> bool:
    """Whether a step at `position` is of an answer that streams, not a chunk of what the head feeds first."""
    return position >= route.input_tokens or route.position > 0


def upstream_of(route: Route) -> NodeId:
    """Who alone may send rows, and the route itself, to the hop that it names."""
    return NodeId(route.sequence.head if route.hop == 0 else route.chain[route.hop - 1].node_id)
