"""One sequence at one hop: where it comes from, where it goes, and which position is due. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from node.engine.base import Stage
from node.wire.frames import Activations, HopTiming, Open, Sampled, Tokens
from node.wire.ids import NodeId
from node.wire.models import DTYPE_BYTES

Verdict = Literal["run", "ignore", "refuse"]


@dataclass(slots=True)
class StageSession:
    """What a stage remembers of a sequence between steps."""

    opened: Open
    stage: Stage
    last_active_s: float
    due: int = 0
    """Position that the next frame must start at."""
    generated: int = 0
    """Tokens that this tail has sampled."""

    @property
    def key(self) -> tuple[str, int]:
        return self.opened.session, self.opened.hop

    @property
    def head(self) -> NodeId:
        return NodeId(self.opened.head)

    @property
    def downstream(self) -> NodeId | None:
        """The next stage; None for the tail."""
        hop = self.opened.hop
        return None if self.is_tail else NodeId(self.opened.chain[hop + 1].node_id)

    @property
    def first(self) -> NodeId:
        return NodeId(self.opened.chain[0].node_id)

    @property
    def is_tail(self) -> bool:
        return self.opened.hop == len(self.opened.chain) - 1

    def needs(self) -> set[NodeId]:
        """The nodes without which the sequence cannot go on."""
        return {self.head, *(NodeId(hop.node_id) for hop in self.opened.chain)}

    def judge(self, peer: NodeId, frame: Tokens | Activations | Sampled, body_bytes: int) -> Verdict:
        """Whether a frame is the one that is due, a repetition of an earlier one, or out of order.

        A frame from anyone but the hop it should come from is ignored, whatever it says, and so is a repetition.
        """
        if peer != sender_of(self.opened, frame) or frame.epoch != self.opened.epoch:
            return "ignore"
        if body_bytes != expected_body_bytes(frame) or not self._fits(frame):
            return "refuse"
        if frame.position < self.due:
            return "ignore"
        count = 1 if isinstance(frame, Sampled) else frame.count
        if frame.position > self.due or self.due + count > self.opened.max_tokens:
            return "refuse"
        self.due += count
        return "run"

    def _fits(self, frame: Tokens | Activations | Sampled) -> bool:
        """Whether activations have the model's width, and one stamp of each hop before us."""
        if not isinstance(frame, Activations):
            return True
        before = [hop.node_id for hop in self.opened.chain[: self.opened.hop]]
        return frame.width == self.stage.info.hidden_size and [t.node_id for t in frame.timings] == before

    def finish_after(self, token: int) -> Literal["stop", "length"] | None:
        """Whether the sequence ends with the token just sampled. Tail only; counts it."""
        self.generated += 1
        if token in self.opened.stop_tokens:
            return "stop"
        return "length" if self.generated >= self.opened.max_new_tokens else None


def sender_of(opened: Open, frame: Tokens | Activations | Sampled) -> NodeId:
    """Who alone may send this frame to the hop that was opened."""
    if isinstance(frame, Sampled):
        return NodeId(opened.chain[-1].node_id)
    return NodeId(opened.head if opened.hop == 0 else opened.chain[opened.hop - 1].node_id)


def expected_body_bytes(frame: Tokens | Activations | Sampled) -> int:
    """What the header says that the body is."""
    match frame:
        case Tokens():
            return 4 * frame.count
        case Activations():
            return DTYPE_BYTES[frame.dtype] * frame.count * frame.width
        case Sampled():
            return 0


def timing(
    session: StageSession, self_id: NodeId, *, wire_ms: float, queue_ms: float, compute_ms: float, total_ms: float
) -> HopTiming:
    """This hop's stamp: what the step took beyond queue and compute is serialising."""
    hop = session.opened.chain[session.opened.hop]
    serialise_ms = max(0.0, total_ms - queue_ms - compute_ms)
    return HopTiming(self_id, hop.start, hop.end, wire_ms, queue_ms, compute_ms, serialise_ms)
