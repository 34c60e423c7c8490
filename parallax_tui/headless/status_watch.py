"""`parallax status` on a terminal: shown again every second, until ctrl-c."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

from node.errors import ParallaxError

EVERY_S = 1.0


def _pause() -> None:
    time.sleep(EVERY_S)


def watch(report: Callable[[], str], out: TextIO, wait: Callable[[], None] = _pause) -> None:
    """Show the report over and over, in place. A node that goes away may come back: that is shown, not raised.

    Args:
        report: asks the node; its lines.
        out: a terminal.
        wait: between two askings; ctrl-c ends it.

    Raises:
        ParallaxError: the first asking failed.
    """
    try:
        shown = report()
        while True:
            lines = [*shown.splitlines(), "", "ctrl-c to leave"]
            out.write("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
            out.flush()
            wait()
            try:
                shown = report()
            except ParallaxError as error:
                shown = f"{error}\nstill trying"
    except KeyboardInterrupt:
        out.write("\n")
