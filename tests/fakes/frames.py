"""A frame with a body and a stamp, for tests of what carries frames."""

from __future__ import annotations

from node.wire.frames import Step, StepPart


def step_frame(session: str, position: int, sent_s: float = 0.0) -> Step:
    """One row at `position`; nobody asks whether its body is of that size."""
    return Step((StepPart(session, 1, 0, position, position, 1, "token", ()),), 1, None, sent_s)
