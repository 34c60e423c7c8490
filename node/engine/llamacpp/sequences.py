"""The sequences of a stage, the stream that each has, and the context that holds them: made anew where its shape no
longer suits, with what is there carried over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from node.engine.llamacpp.carrying import State
from node.engine.llamacpp.context import Context
from node.engine.llamacpp.streams import Shape, room_for_one_more, shape_for
from node.engine.memory import WorkerMemory
from node.errors import EngineError, OutOfKV
from node.wire.frames import Sampling


@dataclass(slots=True)
class Held:
    """One sequence."""

    stream: int
    start: int
    end: int
    """It runs through layers [start, end)."""
    sampling: Sampling | None
    promised: int
    """Tokens that there is room for at any rate: its prompt's."""
    cached: int = 0
    """Tokens whose keys and values are there."""
    broken: str = ""
    """Why it cannot go on."""
    junk: bool = False
    """Whether layers that nobody looks at hold whatever came of computing on nothing."""
    poisoned: bool = False
    """Whether what its stream holds, or held, may be no numbers."""
    carried: int = 0
    """Its tokens when it was carried over last, where what is outside of windows is left behind: it cannot go back to
    before them, but to its beginning."""

    @property
    def needed(self) -> int:
        """Tokens that its stream must have room for."""
        return max(self.promised, self.cached)


class Sequences:
    """All sequences of one stage.

    Resource handling: the context is made with the first sequence and freed by `close_all`; its memory is counted in
    the worker's. While a shape changes, the contents of the streams are there twice.
    """

    def __init__(
        self,
        make: Callable[[Shape], Context],
        room_tokens: int,
        longest_tokens: int,
        bytes_per_token: int,
        memory: WorkerMemory,
    ) -> None:
        self._make, self._own_tokens, self._longest = make, room_tokens, longest_tokens
        self._bytes_per_token, self._memory = bytes_per_token, memory
        self._context: Context | None = None
        self._held: dict[str, Held] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Held]:
        return iter(self._held.values())

    @property
    def context(self) -> Context:
        """Where they are; there is one as long as there are any."""
        assert self._context is not None
        return self._context

    @property
    def shape(self) -> Shape | None:
        """Of the context; None where there is none."""
        return None if self._context is None else self._context.shape

    @property
    def free_tokens(self) -> int:
        """That one more sequence could take."""
        return room_for_one_more(self._room, self._longest, [held.needed for held in self])

    @property
    def _room(self) -> int:
        """Tokens of all streams that there may be at present."""
        taken = 0 if self._context is None else self._context.shape.cells
        return min(self._own_tokens, taken + self._memory.free_bytes // self._bytes_per_token)

    def open(self, name: str, layers: tuple[int, int], sampling: Sampling | None, tokens: int) -> None:
        """Begin a sequence with room for so many tokens.

        Raises:
            OutOfKV: there is not that much room.
            EngineError: the name is open.
        """
        if name in self._held:
            raise EngineError(f"sequence {name} has its room in the KV cache already")
        if not self._suit([*(held.needed for held in self), tokens]):
            raise OutOfKV(tokens, self.free_tokens)
        taken = {held.stream for held in self}
        stream = next(number for number in range(self.context.shape.streams) if number not in taken)
        self.context.forget(stream)
        self._held[name] = Held(stream, *layers, sampling, tokens)

    def renew(self) -> None:
        """Have another context of the same shape, and what is there in it."""
        if self._context is not None:
            self._change(self._context.shape)

    def find(self, name: str) -> Held | None:
        """The sequence of this name, if there is one."""
        return self._held.get(name)

    def get(self, name: str) -> Held:
        """The sequence of this name. Raises EngineError where there is none."""
        if (held := self._held.get(name)) is None:
            raise EngineError(f"sequence {name} has no room in the KV cache; open it first")
        return held

    def grow(self, name: str, tokens: int) -> bool:
        """See to it that a sequence has room for so many tokens; whether it has."""
        held = self.get(name)
        if self._context is not None and tokens <= self._context.shape.tokens:
            return True
        return self._suit([max(other.needed, tokens if other is held else 0) for other in self])

    def close(self, name: str) -> None:
        """Forget a sequence. Harmless where it is unknown."""
        if (held := self._held.pop(name, None)) is None or self._context is None:
            return
        self._context.forget(held.stream)
        if held.poisoned or held.junk:
            self._cleanse()

    def rewind(self, held: Held, position: int) -> bool:
        """Forget what a sequence holds at a position and after it; whether that could be done."""
        if not self.context.forget(held.stream, position):
            return False
        held.cached, held.broken = position, ""
        held.carried = min(held.carried, position)
        if held.poisoned:
            held.poisoned = False
            self._cleanse()
        return True

    def _cleanse(self) -> None:
        """Leave nothing in memory of what was forgotten: what is no number would reach whoever comes after it, for a
        masked token counts 0 times what it holds, and that is no number either."""
        if not self._held:
            self._free()
        else:
            self.renew()

    def close_all(self) -> None:
        """Forget all and give the context back."""
        self._held.clear()
        self._free()

    # --- the context ------------------------------------------------------------------------------------------------

    def _suit(self, needed: list[int]) -> bool:
        """Have a context for sequences that need so many tokens each; whether there is one."""
        shape = shape_for(self._room, self._longest, needed, self.shape)
        if shape is None:
            return False
        return shape == self.shape or self._change(shape)

    def _change(self, shape: Shape) -> bool:
        """Have a context of this shape; whether there is one. Where not, that of before is there again."""
        before = self.shape
        states = {name: self.context.take_state(held.stream) for name, held in self._held.items() if held.cached}
        self._free()
        try:
            self._begin(shape, states)
        except EngineError:
            self._free()
            # there is less memory than was told; what was there fits surely, unless others have taken it meanwhile
            if before is not None:
                self._begin_again(before, states)
            return False
        return True

    def _begin_again(self, shape: Shape, states: dict[str, State]) -> None:
        try:
            self._begin(shape, states)
        except EngineError as error:
            self._free()
            for held in self:
                held.broken, held.cached = f"its keys and values are lost: {error}", 0
            raise

    def _begin(self, shape: Shape, states: dict[str, State]) -> None:
        self._context = self._make(shape)
        self._memory.reserved_bytes += shape.cells * self._bytes_per_token
        for stream, (name, held) in enumerate(self._held.items()):
            held.stream = stream
            if name in states:
                self._context.put_state(stream, states[name])
                held.carried = held.cached if states[name].rest_bytes else 0

    def _free(self) -> None:
        if self._context is not None:
            self._memory.reserved_bytes -= self._context.shape.cells * self._bytes_per_token
            self._context.free()
            self._context = None
