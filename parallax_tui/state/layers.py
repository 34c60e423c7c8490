"""The layer map: who serves which layers, as one bar over the model, and its gaps in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import pairwise
from typing import Literal

from node.journal.state import State
from node.wire.ids import NodeId
from node.wire.layer_range import layer_range
from parallax_tui.state.cells import NODE_TONES, Cell, Line, Tone, padded, safe, shorten, wrapped
from parallax_tui.state.choices import objective_words
from parallax_tui.state.live import Live

Kind = Literal["ready", "draining", "loading", "none"]
_ORDER: tuple[Kind, ...] = ("ready", "draining", "loading")
_PATTERN: dict[Kind, str] = {"ready": "█", "draining": "▓", "loading": "▒", "none": "╌"}
"""The kind is told by the pattern, so that the map can be read without colours."""


_Hold = tuple[int, int, NodeId]
"""Rank of its state, where its range starts, whose it is: the least is the best."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Layers [start, end) that are in the same hands."""

    start: int
    end: int
    kind: Kind
    node_id: NodeId | None
    """None where nobody holds them."""
    replicas: int = 0
    """How many other nodes hold them too."""


_latest: tuple[State, tuple[Segment, ...]] | None = None
"""Four views of one picture ask for the same state's segments."""


def segments(state: State) -> tuple[Segment, ...]:
    """The whole model in order, without overlap; the best holder of each layer counts."""
    global _latest
    if _latest is None or _latest[0] is not state:
        _latest = state, _swept(state)
    return _latest[1]


def _swept(state: State) -> tuple[Segment, ...]:
    """One sweep over the edges of the ranges that are held: n log n in members, whatever the number of layers."""
    if state.plan is None:
        return ()
    total = state.plan.facts.layers
    begins: dict[int, list[_Hold]] = {}
    ends: dict[int, list[_Hold]] = {}
    for node_id, view in state.nodes.items():
        for held in view.record.held:
            start, end = max(0, held.start), min(held.end, total)
            if start < end:
                hold = (_ORDER.index(held.state), held.start, node_id)
                begins.setdefault(start, []).append(hold)
                ends.setdefault(end, []).append(hold)
    edges = sorted({0, total, *begins, *ends})
    holding: Counter[_Hold] = Counter()
    best: list[_Hold] = []
    """A heap of those that have begun; who has ended is dropped when it comes to the top."""
    found: list[Segment] = []
    for start, end in pairwise(edges):
        for hold in begins.get(start, ()):
            holding[hold] += 1
            heappush(best, hold)
        holding.subtract(ends.get(start, ()))
        while best and not holding[best[0]]:
            del holding[heappop(best)]
        found.append(_segment(start, end, best[0] if best else None, holding.total()))
    return tuple(_joined(found))


def _segment(start: int, end: int, best: _Hold | None, holders: int) -> Segment:
    if best is None:
        return Segment(start, end, "none", None)
    rank, _, node_id = best
    return Segment(start, end, _ORDER[rank], node_id, holders - 1)


def _joined(parts: Iterable[Segment]) -> Iterator[Segment]:
    """Neighbours in the same hands as one."""
    last: Segment | None = None
    for part in parts:
        if last and (last.kind, last.node_id, last.replicas) == (part.kind, part.node_id, part.replicas):
            last = replace(last, end=part.end)
            continue
        if last:
            yield last
        last = part
    if last:
        yield last


def gap_sentences(live: Live) -> tuple[str, ...]:
    """One sentence per stretch of layers that cannot serve, and whom it waits for."""
    state = live.state
    if state is None or state.plan is None:
        return ()
    sentences = []
    for segment in segments(state):
        named = f"layers {layer_range(segment.start, segment.end)}"
        if segment.kind == "loading" and segment.node_id is not None:
            sentences.append(f"{named} are being loaded by {live.name_of(segment.node_id)}")
        elif segment.kind == "none":
            sentences.append(f"{named} have no node: {_awaited(live, state, segment)}")
    return tuple(sentences)


def _awaited(live: Live, state: State, segment: Segment) -> str:
    """Whom the plan expects there."""
    assert state.plan is not None
    owners = [a.id for a in state.plan.assignments if a.start < segment.end and a.end > segment.start]
    gone = [live.name_of(owner) for owner in owners if owner not in state.nodes]
    here = [live.name_of(owner) for owner in owners if owner in state.nodes]
    if gone:
        return f"waiting for {' and '.join(gone)} to return"
    if here:
        return f"waiting for {' and '.join(here)} to begin"
    return "another machine has to join"


def layer_title(live: Live) -> str:
    """What the map shows: `layers · plan 3 · balanced`."""
    plan = live.state.plan if live.state is not None else None
    return f"layers · plan {plan.epoch} · {objective_words(plan)}" if plan is not None else "layers"


def layer_map(live: Live, width: int) -> tuple[Line, ...]:
    """Names over the bar, the bar, layer numbers under it, and the gaps in words; without gaps, the plan's note."""
    state = live.state
    if state is None or state.plan is None:
        problem = safe(state.plan_problem) if state is not None else ""
        if problem:
            return tuple(_marked(problem, width, "plain"))
        waiting = wrapped("no plan yet: the nodes are still measuring themselves", width)
        return tuple((Cell(piece, "muted"),) for piece in waiting)
    total = state.plan.facts.layers
    names: list[Cell] = []
    bar: list[Cell] = []
    numbers: list[Cell] = []
    tones = {node_id: NODE_TONES[index % len(NODE_TONES)] for index, node_id in enumerate(_in_order(state))}
    parts = segments(state)
    for segment in parts:
        left, right = segment.start * width // total, segment.end * width // total
        space = right - left
        if space <= 0:
            continue
        tone = tones[segment.node_id] if segment.node_id is not None else "bad"
        name = live.name_of(segment.node_id) if segment.node_id is not None else "no node"
        if segment.replicas:
            name += f" +{segment.replicas}"
        names.append(Cell(_label(name, space), tone))
        bar.append(Cell(_PATTERN[segment.kind] * (space - 1) + ("▌" if segment.kind == "ready" else " "), tone))
        numbers.append(Cell(_label(layer_range(segment.start, segment.end), space), "muted"))
    sentences = [
        line
        for sentence in gap_sentences(live)
        for line in _marked(sentence, width, "bad" if "no node" in sentence else "warn")
    ]
    sentences += _marked(safe(state.plan_problem), width, "bad")
    if not sentences and state.plan.note:
        sentences = [(Cell(shorten(safe(state.plan.note), width), "muted"),)]
    return (tuple(names), tuple(bar), tuple(numbers), *sentences)


def _in_order(state: State) -> list[NodeId]:
    """All nodes of the map. Those of the plan keep their place, and so their tone, when one of them goes."""
    planned = [assigned.id for assigned in state.plan.assignments] if state.plan is not None else []
    holding = [segment.node_id for segment in segments(state) if segment.node_id is not None]
    return list(dict.fromkeys([*planned, *holding]))


def _marked(sentence: str, width: int, tone: Tone) -> list[Line]:
    """The sentence behind a mark that says that something is wrong."""
    return [
        (Cell("✕ " if index == 0 else "  ", "bad"), Cell(piece, tone))
        for index, piece in enumerate(wrapped(sentence, width - 2))
    ]


def _label(text: str, space: int) -> str:
    """The text at the left of its segment, with a column between neighbours."""
    return padded(text, space - 1) + " "
