"""The node's log: one line per record on stderr, as text for people or JSON for machines."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from typing import Literal

from node.wire.text import printable

NOISY = ("libp2p", "multiaddr", "httpx", "httpcore", "filelock", "asyncio", "zeroconf", "async_service")

REFUSALS_TOLD_EVERY_S = 60.0


class JsonLines(logging.Formatter):
    """One JSON object per record."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time_s": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": printable(record.getMessage()),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)


class TextLines(logging.Formatter):
    """`12:30:01 warning swarm  text`."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        message = printable(record.getMessage())
        line = f"{clock} {record.levelname.lower():7} {record.name.removeprefix('node.')}: {message}"
        if record.exc_info:
            line += "\n" + "\n".join(map(printable, self.formatException(record.exc_info).splitlines()))
        return line


class RareRefusals(logging.Filter):
    """The accept loops of the libraries write a traceback ten times a second while no more files may be opened."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock, self._told_s = clock, float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written: as one sentence, once a minute."""
        if self._clock() - self._told_s < REFUSALS_TOLD_EVERY_S:
            return False
        self._told_s = self._clock()
        error = record.exc_info[1] if record.exc_info else None
        record.msg, record.args = "no connection can be taken in: %s; raise the limit of open files", (error or "busy",)
        record.exc_info = record.exc_text = None
        return True


def set_up(log_format: Literal["text", "json"], level: str = "info") -> None:
    """Send everything from `level` on to stderr; libraries only from `warning` on, the chattiest from `error` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if log_format == "json" else TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(logging.WARNING, getattr(logging, level.upper())))
    logging.getLogger("node").setLevel(level.upper())
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    accepting = logging.getLogger("trio.serve_listeners")
    accepting.filters[:] = [RareRefusals()]
