"""Whether nodes can hold a model at all, and if not, how much memory one more machine would need."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Capacity = tuple[int, int, int, int]
"""Layers that fit into a node beside: nothing, the embedding, the LM head, both."""


def ends_that_fit(capacities: Sequence[Capacity], layers: int) -> tuple[int, int] | None:
    """The nodes to begin and to end a chain of all of them that holds `layers`; one that does alone, where there is.

    The ends' weights cost whoever holds them some layers: those two whom they cost least.
    """
    for i, (_, _, _, both) in enumerate(capacities):
        if both >= layers:
            return i, i
    begins = _by_gain([(first - plain, i) for i, (plain, first, _, _) in enumerate(capacities) if first > 0])
    finishes = _by_gain([(last - plain, i) for i, (plain, _, last, _) in enumerate(capacities) if last > 0])
    pairs = [(g + h, i, j) for g, i in begins[:2] for h, j in finishes[:2] if i != j]
    if not pairs or layers < 2:
        return None
    gain, i, j = max(pairs, key=lambda pair: (pair[0], -pair[1], -pair[2]))
    return (i, j) if sum(plain for plain, _, _, _ in capacities) + gain >= layers else None


def missing_bytes(
    capacities: Sequence[Capacity], layers: int, capacity_of: Callable[[int], Capacity], most_bytes: int
) -> int:
    """The least memory of one more node that makes the model fit; 0 where it fits already.

    Args:
        capacities: of the nodes that are there.
        layers: to be held.
        capacity_of: what a node with so many bytes has room for; never less for more bytes.
        most_bytes: a node with so much holds all layers alone.
    """
    if ends_that_fit(capacities, layers) is not None:
        return 0
    enough, short = most_bytes, 0
    while enough - short > 1:
        middle = (enough + short) // 2
        if ends_that_fit([*capacities, capacity_of(middle)], layers) is not None:
            enough = middle
        else:
            short = middle
    return enough


def _by_gain(found: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return sorted(found, key=lambda pair: (-pair[0], pair[1]))
