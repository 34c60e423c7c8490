"""What was measured of this machine, and what it computed with, from one start to the next.

Measuring takes most of a second of every core, and says the same each time while processor, memory and our software are
the same. What is used by layers is timed in service all the same (`live.remeasuring`). Light to import: what was
computed with last is asked before anything else is there.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from node import __version__
from node.home import write_private

if TYPE_CHECKING:
    from node.wire.records import Hardware

log = logging.getLogger(__name__)

MOST_BYTES = 64 * 1024
MOST_BACKENDS, MOST_NAME = 8, 32


class RememberedMachine:
    """A file of one home. One that cannot be read, or tells of another machine, is as good as none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fields = _read(path)

    @property
    def backends(self) -> tuple[str, ...]:
        """The names of what was computed with last; empty where that is not known."""
        told = self._fields.get("backends")
        if not isinstance(told, list) or len(told) > MOST_BACKENDS:
            return ()
        names = [name for name in told if isinstance(name, str) and name.isalnum() and len(name) <= MOST_NAME]
        return tuple(dict.fromkeys(names))

    def hardware(self) -> Hardware | None:
        """What was measured, if it was this machine and this version of ours that did it."""
        import msgspec

        from node.wire.records import Hardware

        if self._fields.get("machine") != _machine():
            return None
        try:
            return msgspec.convert(self._fields.get("hardware"), Hardware)
        except (ValueError, TypeError, RecursionError) as error:
            log.info("%s: %s; the machine is measured again", self._path, error)
            return None

    def measured(self, hardware: Hardware) -> None:
        """Keep this. Blocks for as long as the disk takes."""
        import msgspec

        self._write({"machine": _machine(), "hardware": msgspec.to_builtins(hardware)})

    def computes_with(self, backends: tuple[str, ...]) -> None:
        """Keep what the next start shall import at once. Blocks."""
        self._write({"backends": list(backends[-MOST_BACKENDS:])})

    def _write(self, changes: dict[str, object]) -> None:
        if all(self._fields.get(name) == value for name, value in changes.items()):
            return
        self._fields = {**self._fields, **changes}
        try:
            write_private(self._path, json.dumps(self._fields).encode())
        except OSError as error:  # a full disk is no reason not to serve
            log.warning("%s cannot be written: %s", self._path, error)


def _machine() -> dict[str, object]:
    """What a measurement is of."""
    from node.engine.machine import core_count, memory_bytes, processor_name

    return {
        "processor": processor_name(),
        "memory_bytes": memory_bytes(),
        "cores": core_count(),
        "software": __version__,
    }


def _read(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            fields = json.loads(file.read(MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}
