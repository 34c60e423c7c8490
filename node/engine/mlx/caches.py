"""Keys and values of sequences: alone, or several side by side so that their decode steps share each product.

Sequences side by side are padded to the longest of them. Only those of about one length are put together, so that the
padding takes half as much again at most, and that much is counted from the start: room is given out in rungs.
Who steps together stays together: joining and leaving copies keys and values once, steps in between copy nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

BLOCK_TOKENS = 256
"""The library's caches grow by so many."""


def rung(tokens: int) -> int:
    """The room that so many tokens are given: 256, 512, 768, 1024, 1536, 2048, 3072 … Half as much again at most, but
    for the first ones."""
    room = BLOCK_TOKENS
    while room < tokens:
        power = 1 << (room.bit_length() - 1)
        room = room + power // 2 if room == power and power >= 2 * BLOCK_TOKENS else 2 * power
    return room


def joined(alone: Sequence[list[Any]]) -> list[Any]:
    """The caches of several sequences side by side, layer by layer."""
    return [layer[0].merge(list(layer)) for layer in zip(*alone, strict=True)]


def taken_out(together: list[Any], index: int) -> list[Any]:
    """The caches of one of them, of its own."""
    return [layer.extract(index) for layer in together]


def copied(held: Held, tokens: int) -> Held:
    """The first tokens of a sequence, as one of its own. Only where all keys and values are kept."""
    copies = []
    for layer in held.alone():
        copy = type(layer)()
        copy.keys, copy.values = (mx.contiguous(kept[..., :tokens, :]) for kept in (layer.keys, layer.values))
        copy.offset = tokens
        copies.append(copy)
    mx.eval([value for copy in copies for value in (copy.keys, copy.values)])
    return Held(copies)


def settle(states: mx.array, caches: Sequence[Any]) -> None:
    """Compute states and what they left in the caches, so that no step holds the one before it."""
    kept = [value for cache in caches for value in (cache.keys, cache.values) if value is not None]
    mx.eval(states, kept)


class Held:
    """One sequence's caches, alone or as a member of a group."""

    def __init__(self, caches: list[Any]) -> None:
        self._alone: list[Any] = caches
        self._group: Group | None = None

    @property
    def group(self) -> Group | None:
        return self._group

    def alone(self) -> list[Any]:
        """Its own caches; leaves its group, which ends."""
        if self._group is not None:
            self._group.dissolve()
        return self._alone

    def forget(self) -> None:
        """It is closed; the others of its group go on without it."""
        if self._group is not None:
            self._group.dissolve()
        self._alone = []


class Group:
    """Sequences that step together."""

    def __init__(self, members: Sequence[Held]) -> None:
        self.members = tuple(members)
        self.caches = joined([member.alone() for member in members])
        for member in self.members:
            member._group, member._alone = self, []

    def dissolve(self) -> None:
        """Give each member its caches back."""
        for index, member in enumerate(self.members):
            member._alone, member._group = taken_out(self.caches, index), None
        self.caches = []


def group_of(members: Sequence[Held]) -> Group:
    """The group of just these, in this order: the one that they make already, or a new one."""
    group = members[0].group
    return group if group is not None and group.members == tuple(members) else Group(members)
