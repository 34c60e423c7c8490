"""Who must make room for whom: no one member takes all sequences or all KV of a node while others ask. Pure.

A member may have everything while nobody else wants it. When it is full and one asks who has less than a fair share,
sequences are ended for it, newest first, of the member that has most, as long as that one keeps a fair share itself; a
single sequence that takes more than that goes too, after it has had its time. Those whose chain is broken go before
all others: their KV is kept on a chance.

Sequences that are here already and need more go on in the order in which they came: the newest makes room, so that the
oldest always comes to its end, and with it each one after another. Only a member that has more than a fair share makes
room for the others first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Generic, TypeVar

T = TypeVar("T")

KEEPS_S = 10.0
"""A single large sequence is not ended for others' sake sooner than this after it was opened: what is taken and given
up again and again comes to no end."""


@dataclass(frozen=True, slots=True)
class Taken(Generic[T]):
    """A sequence that is open here."""

    item: T
    member: str
    """Its head."""
    amount: int
    """What it takes: 1 of the places, or bytes of KV."""
    number: float
    """Newer ones have higher ones."""
    suspended: bool = False
    open_for_s: float = inf


@dataclass(frozen=True, slots=True)
class Needs(Generic[T]):
    """A sequence that is open here and cannot go on without more."""

    taken: Taken[T]
    amount: int
    """More than it takes."""


def to_end(taken: Sequence[Taken[T]], asks: str, amount: int, free: int, total: int) -> list[T] | None:
    """Which sequences to end so that `amount` more fits for the member `asks`; None where that would be unfair.

    `free` of `total` is free now. An empty list where it fits anyway.
    """
    ended: list[T] = []
    left = list(taken)
    for each in sorted((each for each in taken if each.suspended), key=lambda each: each.number):
        if free >= amount:
            return ended
        ended.append(each.item)
        left.remove(each)
        free += each.amount
    has = _by_member(left)
    share = total / len({*has, asks})
    while free < amount:
        if has[asks] + amount > share:
            return None
        most = max(has, key=lambda member: has[member], default=None)
        own = [each for each in left if each.member == most]
        newest = max(own, key=lambda each: each.number, default=None)
        if most is None or newest is None or most == asks:
            return None
        hog = len(own) == 1 and newest.amount > share and newest.open_for_s >= KEEPS_S
        if not hog and has[most] - newest.amount < min(share, has[asks] + amount):
            return None
        ended.append(newest.item)
        left.remove(newest)
        has[most] -= newest.amount
        free += newest.amount
    return ended


def to_preempt(taken: Sequence[Taken[T]], needs: Iterable[Needs[T]], free: int, total: int) -> list[T]:
    """Which sequences to end so that those in need go on, the oldest of them first. One of them may be among those.

    `free` of `total` is free now, and counts for none of `needs` yet.
    """
    left = list(taken)
    ended: list[T] = []

    def end(item: T) -> None:
        nonlocal free
        gone = next(each for each in left if each.item is item)
        left.remove(gone)
        ended.append(item)
        free += gone.amount

    for need in sorted(needs, key=lambda need: need.taken.number):
        while free < need.amount and any(each.item is need.taken.item for each in left):
            others = [each for each in left if each.item is not need.taken.item]
            fair = to_end(left, need.taken.member, need.amount, free, total)
            if fair:
                for item in fair:
                    end(item)
            else:
                newest = max([*others, need.taken], key=lambda each: each.number)
                end(newest.item)
        if any(each.item is need.taken.item for each in left):
            free -= need.amount
    return ended


def _by_member(taken: Iterable[Taken[T]]) -> Counter[str]:
    has: Counter[str] = Counter()
    for each in taken:
        has[each.member] += each.amount
    return has
