"""What a head knows of beginnings whose keys and values its former sequences have left with the stages of a chain.

A block of `BLOCK_TOKENS` tokens has a name, which follows from it, from all tokens before it, from the model's weights
and from the arithmetic of every node that computed it: so equal names mean equal keys and values, however the layers
are divided at the time. Only the head knows tokens; stages know names, and bind them to the head that gave them.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Collection, Sequence
from hashlib import blake2b

from node.engine.base import BLOCK_TOKENS

NAME_BYTES = 16
LEAST_LEFT_TOKENS = 2
"""Of a prompt, to be computed in any case: the last one gives the first token of the answer, and a row alone ends in
other last bits than several."""
MOST_REMEMBERED = 65_536
"""Blocks that a head remembers: four million tokens, a few megabytes."""


def names_of(tokens: Sequence[int], weights: str, arithmetics: Collection[str]) -> tuple[bytes, ...]:
    """The names of the whole blocks that `tokens` begin with.

    `arithmetics` are the drift classes of the nodes of the chain, in any order.
    """
    seed = "\n".join([weights, *sorted(set(arithmetics))]).encode()
    last = blake2b(seed, digest_size=NAME_BYTES).digest()
    names: list[bytes] = []
    for at in range(0, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        packed = struct.pack(f"<{BLOCK_TOKENS}i", *tokens[at : at + BLOCK_TOKENS])
        last = blake2b(packed, key=last, digest_size=NAME_BYTES).digest()
        names.append(last)
    return tuple(names)


def bound_to(head: str, names: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Names as a stage uses them: what one member says of its tokens is not believed of another one's."""
    key = blake2b(head.encode(), digest_size=32).digest()
    return tuple(blake2b(name, key=key, digest_size=NAME_BYTES).digest() for name in names)


class KnownPrefixes:
    """Names that stages were asked to keep. They may have given them up meanwhile; what a stage has it says itself."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, None] = OrderedDict()

    def note(self, names: tuple[bytes, ...]) -> None:
        """Stages were asked to keep these."""
        for name in names:
            self._known[name] = None
            self._known.move_to_end(name)
        while len(self._known) > MOST_REMEMBERED:
            self._known.popitem(last=False)

    def worth_asking_for(self, names: tuple[bytes, ...], prompt_tokens: int) -> tuple[bytes, ...]:
        """Of the blocks of a prompt those that stages may have; empty where it is not worth while to ask: they are
        waited for."""
        most = max(0, prompt_tokens - LEAST_LEFT_TOKENS) // BLOCK_TOKENS
        for count in range(min(most, len(names)), 0, -1):
            if names[count - 1] in self._known:
                return names[:count]
        return ()
