"""The pieces of a model between which a chain may change nodes, and which hosts can run each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

DEEP = 128
"""Layers of the deepest model whose every layer is a segment of its own."""

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


class Ranged(Protocol):
    """Layers [start, end) on somebody."""

    @property
    def start(self) -> int: ...

    @property
    def end(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Segment:
    """Neighbouring layers that a chain runs on one host. H hosts can, in G places."""

    start: int
    """Its first layer."""
    layers: float
    hosts: Indices
    """(H,): sorted by place."""
    places: Indices
    """(G,): theirs, each once."""
    firsts: Indices | None
    """(G,): where each place begins in `hosts`; None where every host is a place of its own."""
    group: Indices
    """(H,): each host's place, as an index into `places`."""
    before: Indices
    """(H,): the host's index in the segment before; -1 where it is not there."""
    entered_inside: Floats
    """(H,): 1 where the held range begins earlier, so that a chain that comes in here uses a part of it."""
    left_inside: Floats
    """(H of the segment before,): 1 where the held range goes on, so that a chain that leaves here uses a part."""


def segments_of(layers: int, hosts: Sequence[Ranged], place: Indices) -> list[Segment]:
    """The segments of a model; hosts are sorted by `place` (one number each, from 0).

    One layer each; in models of more than DEEP layers from edge to edge of held ranges.
    """
    starts = np.array([host.start for host in hosts], dtype=np.int64)
    ends = np.array([host.end for host in hosts], dtype=np.int64)
    edges = {0, layers, *starts.tolist(), *ends.tolist()}
    cuts = np.array(range(layers + 1) if layers <= DEEP else sorted(edges), dtype=np.int64)
    inside = (starts <= cuts[:-1, None]) & (ends >= cuts[1:, None])  # (segments, hosts)
    where, able = np.nonzero(inside)  # all states, segment by segment
    counts = inside.sum(axis=1)
    offset = np.concatenate([[0], counts.cumsum()])
    index = np.where(inside, inside.cumsum(axis=1) - 1, -1)
    before = np.where(where > 0, index[where - 1, able], -1)
    within = place[able]
    first = np.ones(len(able), dtype=bool)
    first[1:] = (within[1:] != within[:-1]) | (where[1:] != where[:-1])
    groups = np.concatenate([[0], first.cumsum()])  # places before each state, over all segments
    group = groups[1:] - 1 - np.repeat(groups[offset[:-1]], counts)
    firsts = np.flatnonzero(first)
    places = within[firsts]
    firsts -= offset[where[firsts]]
    bounds = groups[offset].tolist()
    entered = (starts[able] < cuts[where]).astype(np.float64)
    left = (ends[able] > cuts[where + 1]).astype(np.float64)
    segments: list[Segment] = []
    former = np.zeros(0)
    for i, (begin, end) in enumerate(pairwise(offset.tolist())):
        here, among = slice(begin, end), slice(bounds[i], bounds[i + 1])
        segments.append(
            Segment(
                start=int(cuts[i]),
                layers=float(cuts[i + 1] - cuts[i]),
                hosts=able[here],
                places=places[among],
                firsts=firsts[among] if bounds[i + 1] - bounds[i] < end - begin else None,
                group=group[here],
                before=before[here],
                entered_inside=entered[here],
                left_inside=former,
            )
        )
        former = left[here]
    return segments
