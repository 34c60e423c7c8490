"""Which rows of a batch go into which call of the library. Pure.

A call has equally many rows of each of its sequences (see `context`). Decode steps are such a call together; chunks of
prompts are cut where a call is full, but never so that one row is left alone: kernels for one row and for several end
in different last bits, and another stage may cut elsewhere.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive rows of one slot."""

    slot: int
    """Its index in the batch."""
    begin: int
    """The first of them, counted in the slot."""
    count: int


@dataclass(frozen=True, slots=True)
class SlotRows:
    """What a slot asks for."""

    slot: int
    stream: int
    count: int
    one_by_one: bool


def calls_for(slots: Sequence[SlotRows], most_rows: int) -> Iterator[list[Rows]]:
    """The calls, in order; each one's rows are in the order of their streams."""
    together: dict[int, list[SlotRows]] = defaultdict(list)
    alone: list[SlotRows] = []
    for slot in slots:
        if slot.one_by_one or slot.count > most_rows:
            alone.append(slot)
        else:
            together[slot.count].append(slot)
    for count in sorted(together):
        group = sorted(together[count], key=lambda slot: slot.stream)
        per_call = most_rows // count
        for first in range(0, len(group), per_call):
            yield [Rows(slot.slot, 0, count) for slot in group[first : first + per_call]]
    for slot in alone:
        begin = 0
        for count in [1] * slot.count if slot.one_by_one else pieces(slot.count, most_rows):
            yield [Rows(slot.slot, begin, count)]
            begin += count


def pieces(count: int, most_rows: int) -> list[int]:
    """Row counts of at most `most_rows`, at least 2, that sum up to `count`; none is 1 unless `count` is."""
    full, rest = divmod(count, most_rows)
    found = [most_rows] * full + ([rest] if rest else [])
    if rest == 1 and full:
        found[-2:] = [most_rows - 1, 2]
    return found
