"""A signal that comes before the node is there to leave in order: nothing has been opened, so it may end at once.

Importing the network's libraries takes seconds on a slow machine, and an exception in the middle of an import may be
swallowed by whoever imports. Light to import: this comes first.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

ENDS_A_NODE = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)
)
"""What asks a node to leave."""


def end_quietly_on_signals() -> None:
    """Until somebody else takes these signals, each ends this process with exit code 0, as a node that leaves does."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in ENDS_A_NODE:
        if signal.getsignal(number) is not signal.SIG_IGN:  # of nohup
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(0)
