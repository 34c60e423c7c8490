"""Which sequence has which slot of the cache, and how much room. Counts; touches no tensors but to give pages back."""

from __future__ import annotations

from dataclasses import dataclass

from node.engine.base import BLOCK_TOKENS
from node.engine.kept_prefixes import Kept, KeptPrefixes
from node.engine.memory import WorkerMemory
from node.engine.ort.kv_memory import KvMemory, in_blocks
from node.errors import EngineError, OutOfKV, TooLong
from node.wire.frames import Sampling
from node.wire.layer_range import layer_range


@dataclass(slots=True, eq=False)
class Sequence:
    """One sequence's place in this stage."""

    name: str
    start: int
    end: int
    """It runs through layers [start, end)."""
    sampling: Sampling | None
    slot: int
    token_bytes: int
    """Of one token's keys and values in its layers."""
    room: int
    """Tokens that memory is counted for: whole blocks."""
    cached: int = 0
    """Tokens that it holds."""
    broken: str = ""
    """Why it cannot go on: a step failed half way."""


class Slots:
    """All sequences of one stage, whose layers [start, …) take `layer_bytes` each for one token's keys and values."""

    def __init__(
        self,
        start: int,
        layer_bytes: tuple[int, ...],
        capacity_bytes: int,
        most_tokens: int,
        kv: KvMemory,
        memory: WorkerMemory,
        one_table_tokens: int | None = None,
    ) -> None:
        """`most_tokens`: of one sequence, however much memory there is. `one_table_tokens`: up to where its rotary
        table does not depend on its length; None: it never does."""
        self._start, self._layer_bytes, self._capacity_bytes = start, layer_bytes, capacity_bytes
        self._most_tokens, self._one_table_tokens = most_tokens, one_table_tokens
        self._kv, self._memory = kv, memory
        self._sequences: dict[str, Sequence] = {}
        self._kept_tokens: dict[int, int] = {}
        """Of former sequences, by slot."""
        self._kept: KeptPrefixes[int] = KeptPrefixes(self._drop_kept)
        memory.keepers.add(self)
        self._free = list(range(kv.slots - 1, -1, -1))
        """The lowest last: the fewer holes there are between those in use, the less runs for nothing."""

    @property
    def bytes_per_token(self) -> int:
        """Of a sequence over all layers."""
        return sum(self._layer_bytes)

    @property
    def free_bytes(self) -> int:
        """That nobody has taken, here or on other stages of the worker."""
        own = self._capacity_bytes - sum(one.room * one.token_bytes for one in self._sequences.values())
        return max(0, min(own, self._memory.free_bytes))

    @property
    def free_tokens(self) -> int:
        """That a sequence over all layers could take."""
        return self.free_bytes // self.bytes_per_token

    def lengths(self) -> dict[int, int]:
        """Tokens in each slot that is in use, also by what is kept."""
        return self._kept_tokens | {one.slot: one.cached for one in self._sequences.values()}

    def open(self, name: str, start: int, end: int, sampling: Sampling | None, tokens: int) -> None:
        """Begin a sequence on layers [start, end) with room for `tokens` tokens; more is taken as it grows.

        Raises:
            OutOfKV: there is not that much room.
            TooLong: the rotary table is another one for so long a text.
            EngineError: layers that are not here, a name that is open, more tokens than the model was made for, or as
                many sequences as there may be.
        """
        if not self._start <= start < end <= self._start + len(self._layer_bytes):
            held = layer_range(self._start, self._start + len(self._layer_bytes))
            raise EngineError(f"sequence {name} on layers {layer_range(start, end)}, but the stage holds {held}")
        if name in self._sequences:
            raise EngineError(f"sequence {name} has its room in the KV cache already")
        if not self._free and self._kept_tokens:
            self._kept.drop_oldest()
        if not self._free:
            raise EngineError(f"{self._kv.slots} sequences are open already, which is the most; close some first")
        token_bytes = sum(self._layer_bytes[start - self._start : end - self._start])
        room = in_blocks(max(tokens, 1))
        if room * token_bytes > (free := self.free_bytes):
            raise OutOfKV(tokens, free // token_bytes // BLOCK_TOKENS * BLOCK_TOKENS)
        self._refuse_too_long(tokens)
        self._sequences[name] = Sequence(name, start, end, sampling, self._free.pop(), token_bytes, room)
        self._take(room * token_bytes)

    def find(self, name: str) -> Sequence | None:
        """The sequence of this name, if there is one."""
        return self._sequences.get(name)

    def get(self, name: str) -> Sequence:
        """The sequence of this name.

        Raises:
            EngineError: there is none.
        """
        if (sequence := self._sequences.get(name)) is None:
            raise EngineError(f"sequence {name} has no room in the KV cache; open it first")
        return sequence

    def at(self, name: str, position: int, count: int) -> Sequence:
        """The sequence that `count` rows at `position` continue.

        Raises:
            EngineError: no such sequence, it is elsewhere, an earlier step of it failed, or it would be too long.
        """
        sequence = self.get(name)
        if sequence.broken:
            raise EngineError(f"sequence {name} cannot go on: {sequence.broken}")
        if position != sequence.cached:
            raise EngineError(
                f"sequence {name}: a step at position {position}, but the KV cache holds {sequence.cached} tokens"
            )
        self._refuse_too_long(position + count)
        return sequence

    def grow(self, sequence: Sequence, tokens: int) -> bool:
        """Take room for `tokens` tokens in all; False where there is none, and nothing has changed."""
        more = in_blocks(tokens) - sequence.room
        if more <= 0:
            return True
        if more * sequence.token_bytes > self.free_bytes:
            return False
        sequence.room += more
        self._take(more * sequence.token_bytes)
        return True

    def rewind(self, name: str, position: int) -> None:
        """Go on from `position`; what is behind it is written over. Its room stays its own.

        Raises:
            EngineError: no such sequence, or a position beyond its end.
        """
        sequence = self.get(name)
        if not 0 <= position <= sequence.cached:
            raise EngineError(f"sequence {name} back to {position}, but the KV cache holds {sequence.cached} tokens")
        sequence.cached, sequence.broken = position, ""

    def close(self, name: str) -> None:
        """Forget a sequence, and give its memory back. Harmless when it is unknown."""
        if (sequence := self._sequences.pop(name, None)) is None:
            return
        self._memory.reserved_bytes -= sequence.room * sequence.token_bytes
        self._give_back(sequence.slot)

    def clear(self) -> None:
        """Forget all."""
        for name in list(self._sequences):
            self.close(name)
        self._kept.clear()

    # --- what is kept of former sequences -----------------------------------------------------------------------------

    def take_up(self, name: str, prefix: tuple[bytes, ...]) -> int:
        """Have a sequence that is empty begin with what is kept of these blocks; how many tokens of it there are."""
        sequence = self.get(name)
        found = self._kept.find(sequence.start, sequence.end, prefix)
        if found is None or sequence.cached:
            return 0
        slot, blocks = found
        tokens = min(blocks * BLOCK_TOKENS, sequence.room // BLOCK_TOKENS * BLOCK_TOKENS)
        self._kv.copy(slot, sequence.slot, tokens, self._layers(sequence))
        sequence.cached = tokens
        return tokens

    def keep(self, name: str, prefix: tuple[bytes, ...]) -> None:
        """Keep what a sequence holds of these blocks, which is about to be closed, as long as nobody needs the room.

        It moves to the highest free slot: between those in use it would ride along with their steps.
        """
        sequence = self._sequences.get(name)
        if sequence is None or sequence.broken:
            return
        names = prefix[: sequence.cached // BLOCK_TOKENS]
        tokens = len(names) * BLOCK_TOKENS
        size_bytes = tokens * sequence.token_bytes
        if not self._free and self._kept_tokens:
            self._kept.drop_oldest()
        if not names or not self._free or size_bytes > self.free_bytes + sequence.room * sequence.token_bytes:
            return
        slot = self._free.pop(0)
        self._kv.copy(sequence.slot, slot, tokens, self._layers(sequence))
        self._kept_tokens[slot] = tokens
        self.close(name)
        self._kept.add(Kept(slot, sequence.start, sequence.end, names, size_bytes))
        self._give_up()

    @property
    def kept_bytes(self) -> int:
        """Of former sequences. They count as free: whoever needs the room gets it."""
        return self._kept.size_bytes

    def drop_oldest_kept(self) -> None:
        """Give up the former sequence that was used longest ago."""
        self._kept.drop_oldest()

    def _layers(self, sequence: Sequence) -> range:
        return range(sequence.start - self._start, sequence.end - self._start)

    def _take(self, size_bytes: int) -> None:
        """Count room that an open sequence takes; former ones make place for it."""
        self._memory.reserved_bytes += size_bytes
        self._give_up()

    def _give_up(self) -> None:
        while self._kept.size_bytes > self.free_bytes:
            self._kept.drop_oldest()
        self._memory.give_up_kept()

    def _drop_kept(self, slot: int) -> None:
        del self._kept_tokens[slot]
        self._give_back(slot)

    def _give_back(self, slot: int) -> None:
        self._kv.give_back(slot)
        self._free.append(slot)
        self._free.sort(reverse=True)

    def _refuse_too_long(self, tokens: int) -> None:
        if self._one_table_tokens is not None and tokens > self._one_table_tokens:
            raise TooLong(tokens, self._one_table_tokens)
        if tokens > self._most_tokens:
            raise EngineError(
                f"{tokens} tokens in one sequence, but there is room for {self._most_tokens}, the model's own context "
                "or what this machine's addresses allow; use a shorter prompt or answer"
            )
