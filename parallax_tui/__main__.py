"""The first step of the `parallax` command: from here on ctrl-c is quiet, long before the rest has been imported."""

from __future__ import annotations

import os
import signal
import sys


def main() -> int:
    """Run the command line; returns the exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # an exception in the middle of an import may be swallowed by whoever imports; nothing has been opened yet
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
    from parallax_tui.cli import main as run

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return run()


if __name__ == "__main__":
    sys.exit(main())
