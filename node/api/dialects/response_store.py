"""Responses that clients may come back to: for a day, and no more of them than fit.

They are in memory alone, and gone with the node: what people ask is on no disk.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from node.api.asking import Message

KEPT_S = 24 * 3600.0
MOST_BYTES = 64 * 1024 * 1024
MOST = 4096


@dataclass(frozen=True, slots=True)
class Kept:
    """One response, and all that was said up to its end."""

    response: bytes
    """JSON."""
    messages: bytes
    """JSON too: as objects they would take ten times as much."""
    at_s: float

    @property
    def size_bytes(self) -> int:
        return len(self.response) + len(self.messages)


class ResponseStore:
    """The oldest go first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, most_bytes: int = MOST_BYTES) -> None:
        self._clock, self._most_bytes = clock, most_bytes
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._bytes = 0

    def keep(self, response: dict[str, Any], messages: list[Message]) -> None:
        """One that is whole."""
        kept = Kept(msgspec.json.encode(response), msgspec.json.encode(messages), self._clock())
        self.forget(response["id"])
        self._kept[response["id"]] = kept
        self._bytes += kept.size_bytes
        while self._kept and (self._bytes > self._most_bytes or len(self._kept) > MOST):
            self.forget(next(iter(self._kept)))
        self._drop_old()

    def get(self, response_id: str) -> Kept | None:
        self._drop_old()
        return self._kept.get(response_id)

    def messages(self, response_id: str) -> list[Message] | None:
        """What had been said when that response was whole."""
        kept = self.get(response_id)
        return None if kept is None else msgspec.json.decode(kept.messages, type=list[dict[str, Any]])  # type: ignore[return-value]

    def forget(self, response_id: str) -> bool:
        """Whether it was there."""
        kept = self._kept.pop(response_id, None)
        if kept is None:
            return False
        self._bytes -= kept.size_bytes
        return True

    def _drop_old(self) -> None:
        before_s = self._clock() - KEPT_S
        while self._kept and (oldest := next(iter(self._kept.items())))[1].at_s < before_s:
            self.forget(oldest[0])
