"""How the room for keys and values is divided: into how many streams of how many tokens. Pure.

The library gives every sequence a stream of its own, all of one length, set when its context is made. A few long
streams or many short ones take the same room; which of them is better shows as sequences come and grow. So the shape
follows them: the room is divided anew, and what is there is carried over, when a sequence grows beyond its stream or
one more comes than there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

CELLS_STEP = 256
"""The library rounds a stream up to a multiple of this."""
MOST_STREAMS = 16
"""More rows in one product gain little on the kernels of K-quants, and each stream takes room."""
COMFORTABLE = (4, 1024)
"""So many streams of so many tokens at least, where there is room: the first sequences need no other shape."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Streams and the tokens that each has room for."""

    streams: int
    tokens: int

    @property
    def cells(self) -> int:
        """Of all streams."""
        return self.streams * self.tokens


def shape_for(room_tokens: int, longest_tokens: int, needed: Iterable[int], now: Shape | None = None) -> Shape | None:
    """The smallest comfortable shape for sequences that need so many tokens each; None where they do not fit.

    Streams and their length are doubled, never changed by one: each change carries all sequences over. What there is
    now is kept while it suits.
    """
    sizes = list(needed)
    most = max(sizes, default=0)

    def suits(shape: Shape) -> bool:
        return shape.streams >= len(sizes) and shape.tokens >= max(1, most)

    if now is not None and suits(now):
        return now
    able = [shape for shape in _shapes(room_tokens, longest_tokens) if suits(shape)]
    streams, tokens = COMFORTABLE
    tokens = min(tokens, longest_tokens)
    return min(
        able,
        key=lambda shape: (-min(shape.tokens, tokens), -min(shape.streams, streams), shape.cells),
        default=None,
    )


def room_for_one_more(room_tokens: int, longest_tokens: int, held: Iterable[int]) -> int:
    """Tokens that another sequence could take beside those that hold so many."""
    sizes = list(held)
    able = (
        shape.tokens
        for shape in _shapes(room_tokens, longest_tokens)
        if shape.streams > len(sizes) and shape.tokens >= max(sizes, default=0)
    )
    return max(able, default=0)


def _shapes(room_tokens: int, longest_tokens: int) -> Iterator[Shape]:
    """All that there may be."""
    longest = -(-longest_tokens // CELLS_STEP) * CELLS_STEP
    streams = 1
    while streams <= MOST_STREAMS:
        cap = min(room_tokens // streams // CELLS_STEP * CELLS_STEP, longest)
        tokens = CELLS_STEP
        while tokens < cap:
            yield Shape(streams, tokens)
            tokens *= 2
        if cap:
            yield Shape(streams, cap)
        streams *= 2
