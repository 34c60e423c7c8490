"""A step that waits for the engine, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from node.engine.base import SlotResult
from node.pipeline.stage_session import StageSession
from node.wire.frames import Buffer, HopTiming, StepPart, Want
from node.wire.ids import NodeId
from node.wire.models import Dtype


@dataclass(slots=True, eq=False)
class Work:
    """One sequence's next rows."""

    session: StageSession
    attempt: int
    step: int
    position: int
    count: int
    want: Want
    data: Buffer
    dtype: Dtype | None
    """None: token ids."""
    timings: tuple[HopTiming, ...]
    """Of the hops before this one."""
    received_s: float
    """By `perf_counter`."""
    wire_ms: float
    replay: bool = False
    """Its rows are computed one after another."""
    ran: int = 0
    """Rows that have been run: the engine may take it in pieces."""
    taken: int = 0
    """Rows that are with the engine, or are about to be."""
    pieces: list[Buffer] = field(default_factory=list)
    """What those that have been run gave."""
    compute_ms: float = 0.0
    """That they took."""
    queue_ms: float = 0.0
    """That they waited."""
    ready_s: float = 0.0
    """Since when the next of them have waited, by `perf_counter`."""

    def __post_init__(self) -> None:
        self.taken, self.ready_s = self.count, self.received_s

    @property
    def at(self) -> int:
        """Position of the first row that has not been run."""
        return self.position + self.ran

    @property
    def left(self) -> int:
        """Rows that have not been run."""
        return self.count - self.ran

    @property
    def is_last_piece(self) -> bool:
        """Whether nothing is left of it behind what is taken."""
        return self.ran + self.taken == self.count

    def rows(self) -> Buffer:
        """Those that are taken."""
        if self.taken == self.count:
            return self.data
        row_bytes = len(self.data) // self.count
        return memoryview(self.data)[self.ran * row_bytes : (self.ran + self.taken) * row_bytes]

    def whole(self, last: Buffer) -> Buffer:
        """What all of it gave, the last piece included."""
        return b"".join([*self.pieces, last]) if self.pieces else last

    @property
    def is_decode(self) -> bool:
        """Of an answer that streams, not a prompt's chunk."""
        return self.session.is_decode(self.position)

    @property
    def is_current(self) -> bool:
        """Whether its route is still the sequence's."""
        return self.session.route.attempt == self.attempt and self.session.suspended_s is None


@dataclass(frozen=True, slots=True)
class Done:
    """A step that was run."""

    work: Work
    data: Buffer
    """Its rows, for the next stage; empty from a tail."""
    slot: SlotResult
    timing: HopTiming


@dataclass(frozen=True, slots=True)
class Incoming:
    """Rows of one sequence as they came in, before anybody has looked whether they are due."""

    peer: NodeId
    part: StepPart
    data: Buffer
    width: int
    dtype: Dtype | None
    whole: bool
    """Whether the frame had as many bytes as it said."""
    received_s: float
    wire_ms: float
