"""Which sequences have room in a stage, and how much. Counts tokens; what a cache holds is its maker's affair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

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
    """All sequences of one stage."""

    def __init__(self, capacity_tokens: int, new_cache: Callable[[], CacheT]) -> None:
        self.capacity_tokens = capacity_tokens
        self._new_cache = new_cache
        self._sequences: dict[str, Sequence[CacheT]] = {}

    @property
    def free_tokens(self) -> int:
        """Tokens that nobody has reserved."""
        return self.capacity_tokens - sum(sequence.reserved for sequence in self._sequences.values())

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
        self._sequences.pop(session, None)

    def clear(self) -> None:
        """Forget all."""
        self._sequences.clear()
