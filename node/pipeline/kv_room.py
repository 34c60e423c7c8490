"""How much room in KV caches a sequence begins with. Pure.

No worst case is set aside: nobody knows how long an answer gets, and most are short. A sequence is taken where there is
room for what it is fed and for its first tokens, and takes more as it grows. Where a cache is full, some sequence makes
room (`seats.py`): its head keeps its tokens, and has them computed again when there is room.
"""

from __future__ import annotations

GROWTH_TOKENS = 64
"""Of an answer that every stage has room for when it takes a sequence: so each one that is taken gets on by so much,
and those that make room for one another cannot do so for ever."""


def tokens_to_begin(input_tokens: int, max_tokens: int) -> int:
    """Room that a stage must have for a sequence that is fed `input_tokens` and may come to `max_tokens`."""
    return min(max_tokens, input_tokens + GROWTH_TOKENS)


def in_blocks(tokens: int, block_tokens: int) -> int:
    """The room that they take, where it is given out in blocks."""
    return -(-tokens // block_tokens) * block_tokens
