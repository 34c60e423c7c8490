"""Ends a child process with its parent, also when the parent was killed without a word.

The parent holds the write end of the child's stdin and never writes to it again; the system closes it whenever and
however the parent ends. This works alike on every platform and needs nothing from the parent.

Run as a program it is pip on such a tether: `python -m node.models.tether download …`.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

GRACE_S = 3.0
"""For the clean-up after the polite signal."""


def end_with_parent(*, politely: bool) -> None:
    """Watch stdin from a thread, and end this process once it is at its end.

    Args:
        politely: raise SIGTERM in the main thread first, so that its handler can clean up.
    """
    main = threading.main_thread().ident
    assert main is not None

    def watch() -> None:
        while os.read(0, 4096):
            pass
        if politely:
            if sys.platform == "win32":
                import _thread

                _thread.interrupt_main(signal.SIGTERM)
            else:
                signal.pthread_kill(main, signal.SIGTERM)  # also wakes a blocking system call
            time.sleep(GRACE_S)
        os._exit(1)

    threading.Thread(target=watch, name="tether", daemon=True).start()


if __name__ == "__main__":
    end_with_parent(politely=False)
    sys.argv[0] = "pip"
    runpy.run_module("pip", run_name="__main__", alter_sys=True)
