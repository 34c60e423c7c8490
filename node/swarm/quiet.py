"""Keeps the log readable: the library silent, and what strangers provoke told once in a while."""

from __future__ import annotations

import logging
from collections.abc import Hashable

EVERY_S = 60.0
PER_MINUTE = 30


class LogLimiter:
    """Says yes once a minute for each key, and not too often for all together: keys cost a stranger nothing."""

    def __init__(self) -> None:
        self._told_s: dict[Hashable, float] = {}

    def allows(self, key: Hashable, now: float) -> bool:
        """Whether it is time to tell of `key` (again)."""
        self._told_s = {other: told_s for other, told_s in self._told_s.items() if now - told_s < EVERY_S}
        if key in self._told_s or len(self._told_s) >= PER_MINUTE:
            return False
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
