"""What may be written to a stream: a terminal that knows how to place text gets lines that change, all others none."""

from __future__ import annotations

import os
from typing import TextIO


def can_repaint(stream: TextIO) -> bool:
    """Whether control characters do there what they say."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"
