"""Which piece to move next where nobody has room for all that it shall hold: swaps that leave no layer out.

A node with a little room loads a piece; whoever held these layers drops them, and has room for a piece itself. So room
goes round, like the blank of a sliding puzzle, and which piece is first matters: room that goes to a node which owes
the others nothing does not come back. A depth-first search looks for an order in which all that wait arrive, or else
for one after which the fewest layers are left to load. Pieces come first whose room may come back, as bridges come last
in Fleury's walk over every edge of a graph.

Each node searches for itself, and finds the same in the same state: the search counts what it looks at, not time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from node.plan.costs.model import ModelCost
from node.plan.moving.node_layers import NodeLayers, bytes_of, kept_layers, runs

MOST_LOOKS = 100
"""States that a search looks at without getting further, before it gives up."""
MOST_WAITING = 128
"""Nodes that a search can deal with. Where more wait, layers have several holders: dropping one's leaves none out."""
MOST_RUNS = 7
"""Ranges that a node may hold for it: a record has room for eight, one of which is being loaded."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Neighbouring layers that one node loads or drops while the others wait."""

    kind: Literal["load", "drop"]
    node_id: str
    layers: frozenset[int]

    def and_then(self, piece: Piece) -> Piece | None:
        """Both at once, where the same node does the same with neighbouring layers."""
        layers = self.layers | piece.layers
        same = (self.kind, self.node_id) == (piece.kind, piece.node_id)
        return Piece(self.kind, self.node_id, layers) if same and len(runs(layers)) == 1 else None

    def moved(self, held: frozenset[int]) -> frozenset[int]:
        """What its node holds afterwards."""
        return held | self.layers if self.kind == "load" else held - self.layers


Situation = tuple[tuple[str, frozenset[int]], ...]
"""Of each node that still misses layers, what it holds."""
Ways = dict[Situation, tuple[Piece, Situation]]
"""What was found before for the same nodes and wishes: the next piece, and where it leads."""


def next_piece(
    model: ModelCost, holdings: Sequence[NodeLayers], context: int, ways: Ways | None = None
) -> Piece | None:
    """The next piece to move; None where none can be moved without leaving a layer to nobody, or none helps.

    Of those that miss layers and are awaited none may have room for all of them, or hold what another one keeps.
    `ways` spares searching again in the situations that a search has found on its way; it is filled here.
    """
    if sum(holding.waits for holding in holdings) > MOST_WAITING:
        return None
    ways = {} if ways is None else ways
    search = _Search(model, holdings, context)
    if search.situation not in ways:
        ways |= search.way()
    if search.situation not in ways:
        return None
    piece, situation = ways[search.situation]
    while situation in ways:
        further, situation = ways[situation]
        longer = piece.and_then(further)
        if longer is None or not search.can(longer):
            break
        piece = longer
    return piece


State = tuple[frozenset[int], ...]
"""What each of those that wait holds."""


@dataclass(frozen=True, slots=True)
class _Look:
    """What can be done in a state."""

    choices: Iterator[tuple[Piece, State]]
    """Single layers to load or drop, and what follows; the most hopeful first."""
    stuck: int
    """Layers that will be missing whatever is done: those of nodes that no room can come to."""


@dataclass(frozen=True, slots=True)
class _Choice:
    order: tuple[int, ...]
    """Lower is more hopeful."""
    effect: tuple[object, ...]
    """Of those that lead to the same one is enough."""
    at: int
    piece: Piece


class _Search:
    """Over what those hold who wait; the others stay as they are."""

    def __init__(self, model: ModelCost, holdings: Sequence[NodeLayers], context: int) -> None:
        self._model, self._context = model, context
        waiting = {holding.node_id: holding for holding in holdings if holding.waits}
        self._waiting = [waiting[node] for node in sorted(waiting)]
        self._wanted = [holding.wanted for holding in self._waiting]
        self._kept = kept_layers(holdings)
        self._elsewhere = Counter(layer for h in holdings if h.node_id not in waiting for layer in h.held)
        self._bytes: dict[frozenset[int], int] = {}

    @property
    def situation(self) -> Situation:
        return self._situation(tuple(holding.held for holding in self._waiting))

    def can(self, piece: Piece) -> bool:
        """Whether its node has room for all of it now."""
        at = next(at for at, holding in enumerate(self._waiting) if holding.node_id == piece.node_id)
        return self._can(piece, self._waiting[at].held, at)

    def way(self) -> Ways:
        """Single layers, to the best state found."""
        state = tuple(holding.held for holding in self._waiting)
        best: list[tuple[Piece, State]] = []
        way: list[tuple[Piece, State]] = []
        fewest, seen = self._left(state), {state}
        looks = [self._look(state)]
        in_vain = 0
        while looks and fewest > looks[0].stuck and in_vain < MOST_LOOKS:
            found = next(looks[-1].choices, None) if looks[-1].stuck < fewest else None
            if found is None:
                looks.pop()
                del way[-1:]
            elif found[1] not in seen:
                state = found[1]
                seen.add(state)
                way.append(found)
                looks.append(self._look(state))
                in_vain += 1
                if self._left(state) < fewest:
                    best, fewest, in_vain = list(way), self._left(state), 0
        situations = [self.situation, *(self._situation(state) for _, state in best)]
        return {before: (piece, after) for (piece, _), (before, after) in zip(best, pairwise(situations), strict=True)}

    def _situation(self, state: State) -> Situation:
        return tuple((h.node_id, held) for h, held in zip(self._waiting, state, strict=True) if h.wanted - held)

    def _left(self, state: State) -> int:
        return sum(len(wanted - held) for wanted, held in zip(self._wanted, state, strict=True))

    def _look(self, state: State) -> _Look:
        missing = [wanted - held for wanted, held in zip(self._wanted, state, strict=True)]
        hosts = self._elsewhere + Counter(layer for held in state for layer in held)
        debtors: dict[int, int] = {}
        """By layer, a bit for each node that gets room when another one loads it."""
        for at, held in enumerate(state):
            for layer in held - self._wanted[at] if missing[at] else ():
                debtors[layer] = debtors.get(layer, 0) | 1 << at
        useful = [[layer for layer in layers if layer in debtors or not hosts[layer]] for layers in missing]
        reach = _reachable([_together(debtors.get(layer, 0) for layer in layers) for layers in useful])
        choices = [
            choice
            for at, layers in enumerate(useful)
            for choice in (*self._loads(state, at, layers, hosts, debtors, reach), *self._drops(state, at, hosts))
            if missing[at] and self._can(choice.piece, state[at], at)
        ]
        lively = _together(reach[choice.at] for choice in choices)
        stuck = sum(len(layers) for at, layers in enumerate(missing) if not lively >> at & 1)
        return _Look(self._outcomes(state, choices), stuck)

    def _loads(
        self,
        state: State,
        at: int,
        layers: Iterable[int],
        hosts: Mapping[int, int],
        debtors: Mapping[int, int],
        reach: Sequence[int],
    ) -> Iterator[_Choice]:
        near = state[at] or self._wanted[at]
        for layer in layers:
            freed = debtors.get(layer, 0)
            returns = any(reach[other] >> at & 1 for other in _members(freed))
            urgency = 0 if not hosts[layer] else 1 if returns else 2
            order = (urgency, min(abs(layer - held) for held in near), at, layer)
            piece = Piece("load", self._waiting[at].node_id, frozenset({layer}))
            yield _Choice(order, ("load", at, self._size(layer), freed, urgency), at, piece)

    def _drops(self, state: State, at: int, hosts: Mapping[int, int]) -> Iterator[_Choice]:
        """Of layers that others hold, but do not keep."""
        for layer in state[at] - self._wanted[at]:
            if hosts[layer] > 1:
                holders = tuple(other for other, held in enumerate(state) if layer in held)
                piece = Piece("drop", self._waiting[at].node_id, frozenset({layer}))
                yield _Choice((3, 0, at, layer), ("drop", at, self._size(layer), holders, hosts[layer]), at, piece)

    def _can(self, piece: Piece, held: frozenset[int], at: int) -> bool:
        then = piece.moved(held)
        fits = piece.kind == "drop" or self._bytes_of(then) <= self._waiting[at].memory_bytes
        return fits and len(runs(then)) <= max(MOST_RUNS, len(runs(held)))

    def _outcomes(self, state: State, choices: Iterable[_Choice]) -> Iterator[tuple[Piece, State]]:
        tried: set[tuple[object, ...]] = set()
        for choice in sorted(choices, key=lambda choice: choice.order):
            if choice.effect not in tried:
                tried.add(choice.effect)
                at = choice.at
                yield choice.piece, self._settled([*state[:at], choice.piece.moved(state[at]), *state[at + 1 :]], at)

    def _settled(self, state: list[frozenset[int]], moved: int) -> State:
        """After all have dropped what others keep, and loaded what they miss where there is room for all of it."""
        kept = self._kept.union(*(held & wanted for wanted, held in zip(self._wanted, state, strict=True)))
        settled = False
        while not settled:
            settled = True
            for at, wanted in enumerate(self._wanted):
                held = state[at]
                if wanted <= held:
                    continue
                then = held - (kept - wanted)
                if then == held and at != moved:
                    continue
                if then <= wanted or self._bytes_of(then | wanted) <= self._waiting[at].memory_bytes:
                    then |= wanted
                    kept |= wanted
                if then != held:
                    state[at], settled = then, False
        return tuple(state)

    def _bytes_of(self, layers: frozenset[int]) -> int:
        if layers not in self._bytes:
            self._bytes[layers] = bytes_of(self._model, layers, self._context)
        return self._bytes[layers]

    def _size(self, layer: int) -> tuple[bool, ...]:
        """Equal for layers that take as much memory."""
        return layer < self._model.dense_layers, layer == 0, layer == self._model.layers - 1


def _together(masks: Iterable[int]) -> int:
    together = 0
    for mask in masks:
        together |= mask
    return together


def _members(mask: int) -> Iterator[int]:
    while mask:
        yield (mask & -mask).bit_length() - 1
        mask &= mask - 1


def _reachable(edges: Sequence[int]) -> list[int]:
    """For each node a bit for each that can be reached from it, itself among them (Warshall's algorithm)."""
    reach = [mask | 1 << at for at, mask in enumerate(edges)]
    for middle in range(len(reach)):
        for at in range(len(reach)):
            if reach[at] >> middle & 1:
                reach[at] |= reach[middle]
    return reach
