"""Who must make room for whom: no one member takes all sequences or all KV of a node while others ask.

A member may have everything while nobody else wants it. When it is full and one asks who has less than a fair share,
sequences are ended for it, newest first, of the member that has most, as long as that one keeps a fair share itself.
Those whose chain is broken go before all others: their KV is kept on a chance. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


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
        newest = max((each for each in left if each.member == most), key=lambda each: each.number, default=None)
        if most is None or newest is None or most == asks or has[most] - newest.amount < min(share, has[asks] + amount):
            return None
        ended.append(newest.item)
        left.remove(newest)
        has[most] -= newest.amount
        free += newest.amount
    return ended


def _by_member(taken: Iterable[Taken[T]]) -> Counter[str]:
    has: Counter[str] = Counter()
    for each in taken:
        has[each.member] += each.amount
    return has
