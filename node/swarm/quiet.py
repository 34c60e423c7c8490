"""Keeps the log readable: the library silent, and what strangers provoke told once in a while."""

from __future__ import annotations

import logging
from collections.abc import Hashable

EVERY_S = 60.0
REMEMBERED = 1024


class Seldom:
    """Says yes once a minute for each key."""

    def __init__(self) -> None:
        self._told_s: dict[Hashable, float] = {}

    def now(self, key: Hashable, now: float) -> bool:
        """Whether it is time to tell of `key` (again)."""
        if now - self._told_s.get(key, -EVERY_S) < EVERY_S:
            return False
        self._told_s.pop(key, None)
        if len(self._told_s) >= REMEMBERED:
            del self._told_s[next(iter(self._told_s))]
        self._told_s[key] = now
        return True


def hush_libp2p() -> None:
    """Turn py-libp2p's loggers off: what matters of it is told by us, and what peers send must not flood a log.

    Without a handler of its own, Python would print its warnings to stderr.
    """
    logger = logging.getLogger("libp2p")
    logger.setLevel(logging.CRITICAL + 1)
    logger.addHandler(logging.NullHandler())
    logging.getLogger("zeroconf").setLevel(logging.CRITICAL + 1)
