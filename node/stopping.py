"""What asks a node to end: a signal, or the end of the parent that started it. A second signal hurries it."""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING

import trio

from node.home import STOP_SIGNALS

if TYPE_CHECKING:
    from node.task_status import TaskStatus

log = logging.getLogger(__name__)

WITH_PARENT = "PARALLAX_STOP_WITH_PARENT"
"""Set by a parent that holds the other end of our stdin: when it closes, however the parent ended, the node leaves."""


class Stopping:
    """Whether the node shall end, and how soon."""

    def __init__(self) -> None:
        self.asked = trio.Event()
        self.at_once = trio.Event()
        """Set with or after `asked`: nobody is waited for, but the swarm is still told goodbye."""

    async def on_signals(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take signals until cancelled. The third ends the process where it stands."""
        with trio.open_signal_receiver(*STOP_SIGNALS) as signals:
            task_status.started()
            async for number in signals:
                if self.at_once.is_set():
                    log.warning("signal %d once more: ending here and now", number)
                    os._exit(130)
                if self.asked.is_set():
                    log.warning("signal %d again: leaving at once", number)
                    self.at_once.set()
                else:
                    log.info("signal %d: leaving", number)
                    self.asked.set()

    def with_parent(self) -> None:
        """End when stdin closes: nobody is left who would wait for a node to hand its layers over."""
        token = trio.lowlevel.current_trio_token()

        def wait_for_end() -> None:
            while os.read(0, 4096):
                pass
            try:
                token.run_sync_soon(self._orphaned)
            except trio.RunFinishedError:
                return  # the node has ended before its parent

        # A daemon thread, since a read of stdin cannot be cancelled on every platform.
        threading.Thread(target=wait_for_end, name="parent watch", daemon=True).start()

    def _orphaned(self) -> None:
        self.asked.set()
        self.at_once.set()
