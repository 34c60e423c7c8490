"""Where the terminal app tells what went wrong: a file, since its screen is taken."""

from __future__ import annotations

import logging
import os
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path

FILE = "app.log"
LIMIT_BYTES = 1_000_000


def log_to(folder: Path) -> None:
    """Warnings and errors of this package go to `folder`/app.log, which only its owner can read.

    Made with the first line; a folder that cannot be written costs the log, never the app.
    """
    handler = _PrivateFile(folder / FILE, maxBytes=LIMIT_BYTES, backupCount=1, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    log = logging.getLogger("parallax_tui")
    log.addHandler(handler)
    log.setLevel(logging.WARNING)
    log.propagate = False


class _PrivateFile(RotatingFileHandler):
    def _open(self) -> TextIOWrapper:
        return TextIOWrapper(open(self.baseFilename, "ab", opener=_private), encoding=self.encoding)

    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing: standard error is the screen."""


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
