"""Which sequences have room in a stage, and how much. Counts tokens; what a cache holds is its maker's affair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from node.engine.memory import WorkerMemory
from node.errors import EngineError, OutOfKV

CacheT = TypeVar("CacheT")


@dataclass(slots=True)
class Sequence(Generic[CacheT]):
    """One sequence's keys and values in this stage."""

    cache: CacheT
    reserved: int
    """Tokens it may grow to."""
    cached: int = 0
    """Tokens it holds."""
    broken: str = ""
    """Why it cannot go on: a step failed half way and left some layers with more tokens than others."""


class Sequences(Generic[CacheT]):
    """All sequences of one stage, each of whose tokens takes `bytes_per_token` of the worker's memory."""

    def __init__(
        self,
        capacity_tokens: int,
        new_cache: Callable[[], CacheT],
        memory: WorkerMemory | None = None,
        bytes_per_token: int = 0,
    ) -> None:
        self.capacity_tokens = capacity_tokens
        self._new_cache = new_cache
        self._memory, self._bytes_per_token = memory, bytes_per_token
        self._sequences: dict[str, Sequence[CacheT]] = {}

    @property
    def free_tokens(self) -> int:
        """Tokens that nobody has reserved, here or on other stages of the worker."""
        own = self.capacity_tokens - sum(sequence.reserved for sequence in self._sequences.values())
        if self._memory is None or not self._bytes_per_token:
            return own
        return min(own, self._memory.free_bytes // self._bytes_per_token)

    def reserve(self, session: str, tokens: int) -> None:
        """Set room aside for a new sequence.

        Raises:
            OutOfKV: there is not that much room.
            EngineError: the sequence has its room already.
        """
        if session in self._sequences:
            raise EngineError(f"session {session} has its room in the KV cache already")
        if tokens > self.free_tokens:
            raise OutOfKV(tokens, self.free_tokens)
        self._sequences[session] = Sequence(self._new_cache(), tokens)
        self._count(tokens)

    def at(self, session: str, position: int, count: int) -> Sequence[CacheT]:
        """The sequence that a step of `count` tokens at `position` continues.

        Raises:
            EngineError: no such sequence, it is elsewhere, it is full, or an earlier step of it failed.
        """
        sequence = self._sequences.get(session)
        if sequence is None:
            raise EngineError(f"session {session} has no room in the KV cache; reserve it first")
        if sequence.broken:
            raise EngineError(f"session {session} cannot go on: {sequence.broken}")
        if position != sequence.cached:
            raise EngineError(
                f"session {session}: a step at position {position}, but the KV cache holds {sequence.cached} tokens"
            )
        if count < 1 or position + count > sequence.reserved:
            raise EngineError(
                f"session {session}: {count} tokens at position {position}, but {sequence.reserved} are reserved"
            )
        return sequence

    def free(self, session: str) -> None:
        """Forget a sequence. Harmless when it is unknown."""
        if sequence := self._sequences.pop(session, None):
            self._count(-sequence.reserved)

    def clear(self) -> None:
        """Forget all."""
        for session in list(self._sequences):
            self.free(session)

    def _count(self, tokens: int) -> None:
        if self._memory is not None:
            self._memory.reserved_bytes += tokens * self._bytes_per_token
