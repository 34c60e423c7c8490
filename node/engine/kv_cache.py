"""Which sequences have room in a stage, and how much. Counts tokens; what a cache holds is its maker's affair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from node.engine.base import BLOCK_TOKENS
from node.engine.kept_prefixes import Kept, KeptPrefixes
from node.engine.memory import WorkerMemory
from node.errors import EngineError, OutOfKV
from node.wire.frames import Sampling
from node.wire.layer_range import layer_range

CacheT = TypeVar("CacheT")


@dataclass(slots=True)
class Sequence(Generic[CacheT]):
    """One sequence's keys and values in this stage."""

    cache: CacheT
    start: int
    end: int
    """It runs through layers [start, end)."""
    sampling: Sampling | None
    token_bytes: int
    """Of one token, in its layers."""
    room: int
    """Tokens that it has room for. It takes more as it grows."""
    cached: int = 0
    """Tokens it holds."""
    broken: str = ""
    """Why it cannot go on: a step failed half way and left some layers with more tokens than others."""

    @property
    def room_bytes(self) -> int:
        return self.room * self.token_bytes


class Sequences(Generic[CacheT]):
    """All sequences of one stage, whose layers [start, …) take `layer_bytes` each for one token's keys and values."""

    def __init__(self, start: int, layer_bytes: tuple[int, ...], capacity_tokens: int, most: int) -> None:
        self._start, self._layer_bytes, self._most = start, layer_bytes, most
        self.bytes_per_token = max(1, sum(layer_bytes))
        """Of a sequence over all layers."""
        self._capacity_bytes = capacity_tokens * self.bytes_per_token
        self._memory: WorkerMemory | None = None
        self._kept: KeptPrefixes[CacheT] = KeptPrefixes()
        self._sequences: dict[str, Sequence[CacheT]] = {}

    def share(self, memory: WorkerMemory) -> None:
        """Take room from what all stages of the worker have together."""
        self._memory = memory
        memory.keepers.add(self)

    @property
    def free_bytes(self) -> int:
        """That nobody has taken, here or on other stages of the worker. What is kept of former sequences is free."""
        own = self._capacity_bytes - sum(sequence.room_bytes for sequence in self._sequences.values())
        return own if self._memory is None else min(own, self._memory.free_bytes)

    @property
    def free_tokens(self) -> int:
        """That a sequence over all layers could take."""
        return max(0, self.free_bytes // self.bytes_per_token)

    def ranges(self) -> set[tuple[int, int]]:
        """The layers that sequences run through."""
        return {(sequence.start, sequence.end) for sequence in self._sequences.values()}

    def open(
        self,
        name: str,
        start: int,
        end: int,
        sampling: Sampling | None,
        tokens: int,
        new_cache: Callable[[], CacheT],
    ) -> None:
        """Begin a sequence on layers [start, end) with room for so many tokens.

        Raises:
            OutOfKV: there is not that much room.
            EngineError: layers that are not here, a name that is open, or as many sequences as there may be.
        """
        if not self._start <= start < end <= self._start + len(self._layer_bytes):
            held = layer_range(self._start, self._start + len(self._layer_bytes))
            raise EngineError(f"sequence {name} on layers {layer_range(start, end)}, but the stage holds {held}")
        if name in self._sequences:
            raise EngineError(f"sequence {name} has its room in the KV cache already")
        if len(self._sequences) >= self._most:
            raise EngineError(f"{self._most} sequences are open already, which is the most; close some first")
        per_token = sum(self._layer_bytes[start - self._start : end - self._start])
        if tokens * per_token > (free := max(0, self.free_bytes)):
            raise OutOfKV(tokens, free // per_token)
        self._sequences[name] = Sequence(new_cache(), start, end, sampling, per_token, tokens)
        self._count(tokens * per_token)

    def find(self, name: str) -> Sequence[CacheT] | None:
        """The sequence of this name, if there is one."""
        return self._sequences.get(name)

    def get(self, name: str) -> Sequence[CacheT]:
        """The sequence of this name.

        Raises:
            EngineError: there is none.
        """
        if (sequence := self._sequences.get(name)) is None:
            raise EngineError(f"sequence {name} has no room in the KV cache; open it first")
        return sequence

    def at(self, name: str, position: int, count: int) -> Sequence[CacheT]:
        """The sequence that `count` rows at `position` continue.

        Raises:
            EngineError: no such sequence, it is elsewhere, or an earlier step of it failed.
        """
        sequence = self.get(name)
        if sequence.broken:
            raise EngineError(f"sequence {name} cannot go on: {sequence.broken}")
        if position != sequence.cached:
            raise EngineError(
                f"sequence {name}: a step at position {position}, but the KV cache holds {sequence.cached} tokens"
            )
        return sequence

    def grow(self, sequence: Sequence[CacheT], tokens: int) -> bool:
        """Have room for so many tokens of it; False, and nothing is taken, where there is none."""
        more = tokens - sequence.room
        if more <= 0:
            return True
        if more * sequence.token_bytes > self.free_bytes:
            return False
        sequence.room = tokens
        self._count(more * sequence.token_bytes)
        return True

    def close(self, name: str) -> None:
        """Forget a sequence. Harmless when it is unknown."""
        if sequence := self._sequences.pop(name, None):
            self._count(-sequence.room_bytes)

    def take_up(self, name: str, prefix: tuple[bytes, ...], copy: Callable[[CacheT, int], CacheT]) -> int:
        """Have a sequence that is empty begin with what is kept of these blocks; how many tokens of it there are.

        `copy` gives a cache of its own with the first tokens of another one.
        """
        sequence = self.get(name)
        found = self._kept.find(sequence.start, sequence.end, prefix)
        if found is None:
            return 0
        tokens = min(found[1] * BLOCK_TOKENS, sequence.room // BLOCK_TOKENS * BLOCK_TOKENS)
        sequence.cache, sequence.cached = copy(found[0], tokens), tokens
        return tokens

    def keep(self, name: str, prefix: tuple[bytes, ...], copy: Callable[[CacheT, int], CacheT]) -> None:
        """Keep what a sequence holds of these blocks, which is about to be closed, as long as nobody needs the room."""
        sequence = self._sequences.get(name)
        if sequence is None or sequence.broken:
            return
        names = prefix[: sequence.cached // BLOCK_TOKENS]
        tokens = len(names) * BLOCK_TOKENS
        room_bytes = self.free_bytes + sequence.room_bytes
        if not names or tokens * sequence.token_bytes > room_bytes:
            return
        cache = copy(sequence.cache, tokens)
        self.close(name)
        self._kept.add(Kept(cache, sequence.start, sequence.end, names, tokens * sequence.token_bytes))
        self._give_up()

    @property
    def kept_bytes(self) -> int:
        """Of former sequences."""
        return self._kept.size_bytes

    def drop_oldest_kept(self) -> None:
        """Give up the former sequence that was used longest ago."""
        self._kept.drop_oldest()

    def _give_up(self) -> None:
        """Former sequences, until those that are open have what they took."""
        while self._kept.size_bytes > max(0, self.free_bytes):
            self._kept.drop_oldest()
        if self._memory is not None:
            self._memory.give_up_kept()

    def clear(self) -> None:
        """Forget all."""
        for name in list(self._sequences):
            self.close(name)
        self._kept.clear()

    def _count(self, taken_bytes: int) -> None:
        if self._memory is not None:
            self._memory.reserved_bytes += taken_bytes
        if taken_bytes > 0:
            self._give_up()
