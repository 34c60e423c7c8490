"""Bytes of a file without reading it: the system brings the pages that are looked at, and may drop them again."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

from node.errors import DamagedModel
from node.weights.blocks import Bytes


class MappedFile:
    """A file that stays mapped while any view of it lives.

    A file that becomes shorter under a mapping ends the process that looks at it; what lies in the cache of models is
    replaced as a whole, never written to.

    Raises:
        DamagedModel: it cannot be opened or is empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._bytes = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)
        except OSError as error:
            raise DamagedModel(str(path), f"cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise DamagedModel(str(path), "is empty") from error

    def view(self, start: int, end: int) -> Bytes:
        """Bytes [start, end).

        Raises:
            DamagedModel: the file does not have them.
        """
        if not 0 <= start <= end <= len(self._bytes):
            raise DamagedModel(str(self.path), f"{len(self._bytes)} bytes long, bytes {start} to {end} are wanted")
        return self._bytes[start:end]
