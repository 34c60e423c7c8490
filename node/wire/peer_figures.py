"""Figures of many peers in few bytes: nine for each, since every member tells them to every other.

A peer is named by a mark of eight bytes, and a round trip or a rate is a step on a scale of 10 %: nearer than two
measurements of it are to one another.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from functools import lru_cache

MARK_BYTES = 8
"""Of a peer's name. Two members of one swarm have the same one by chance once in 10^13 swarms of a thousand; who makes
such an id on purpose can spoil a round trip of another, and nothing else."""

LEAST, STEP, STEPS = 0.01, 1.1, 256
"""The smallest figure (milliseconds, or megabits a second), the ratio of two steps, and how many there are."""

Mark = bytes


@lru_cache(maxsize=8192)
def mark_of(node_id: str) -> Mark:
    """What stands for a node among figures."""
    return hashlib.blake2b(node_id.encode(), digest_size=MARK_BYTES).digest()


def pack_figures(figures: Mapping[str, float]) -> bytes:
    """By node id, in an order that equal figures give equal bytes for."""
    return b"".join(sorted(mark_of(peer) + bytes((_step(figure),)) for peer, figure in figures.items()))


def unpack_figures(packed: bytes) -> dict[Mark, float]:
    """By mark.

    Raises:
        ValueError: it is no whole number of figures.
    """
    width = MARK_BYTES + 1
    if len(packed) % width:
        raise ValueError(f"{len(packed)} bytes are no figures of {width} bytes each")
    return {packed[at : at + MARK_BYTES]: _FIGURES[packed[at + MARK_BYTES]] for at in range(0, len(packed), width)}


def pack_marks(node_ids: Iterable[str]) -> bytes:
    """Names alone, in order."""
    return b"".join(sorted(mark_of(node_id) for node_id in node_ids))


def unpack_marks(packed: bytes) -> list[Mark]:
    """The names again.

    Raises:
        ValueError: it is no whole number of them.
    """
    if len(packed) % MARK_BYTES:
        raise ValueError(f"{len(packed)} bytes are no names of {MARK_BYTES} bytes each")
    return [packed[at : at + MARK_BYTES] for at in range(0, len(packed), MARK_BYTES)]


def _step(figure: float) -> int:
    return min(STEPS - 1, max(0, round(math.log(max(figure, LEAST) / LEAST, STEP))))


_FIGURES = [float(f"{LEAST * STEP**step:.3g}") for step in range(STEPS)]
