"""A step that waits for the engine, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass

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
