"""SIGTERM and SIGHUP (a closed terminal) as an orderly end: what we started is stopped, what we wrote is removed.

Their default action ends the process on the spot, and no `finally` runs. Only the first signal counts, since shells
and kernels send SIGHUP twice.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name))


class Ending:
    """Whether a signal has asked us to end, and what is done then."""

    def __init__(self) -> None:
        self.code: int | None = None
        """The exit code, 128 and the signal's number, once one has come."""
        self.act: Callable[[int], None] = sys.exit
        """Called with the code, in the main thread, wherever it is. Who runs an event loop puts a milder way here."""

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self.code is None:
            self.code = 128 + number
            self.act(self.code)


@contextmanager
def ending_in_order() -> Iterator[Ending]:
    """Inside the block a signal raises `SystemExit`. A signal that is ignored (`nohup`) stays ignored."""
    ending = Ending()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    ours = [number for number in SIGNALS if before[number] != signal.SIG_IGN]
    for number in ours:
        signal.signal(number, ending.receive)
    try:
        yield ending
    finally:
        for number in ours:
            signal.signal(number, before[number])
