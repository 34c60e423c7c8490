"""The layer map: who serves which layers, as one bar over the model, and its gaps in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from node.journal.state import State
from node.wire.ids import NodeId
from parallax_tui.state.cells import NODE_TONES, Cell, Line, Tone, padded, safe, shorten, wrapped
from parallax_tui.state.choices import objective_words
from parallax_tui.state.figures import layers
from parallax_tui.state.live import Live

Kind = Literal["ready", "draining", "loading", "none"]
_ORDER: tuple[Kind, ...] = ("ready", "draining", "loading")
_PATTERN: dict[Kind, str] = {"ready": "█", "draining": "▓", "loading": "▒", "none": "╌"}
"""The kind is told by the pattern, so that the map can be read without colours."""


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


def segments(state: State) -> tuple[Segment, ...]:
    """The whole model in order, without overlap; the best holder of each layer counts."""
    if state.plan is None:
        return ()
    found: list[Segment] = []
    for layer in range(state.plan.facts.layers):
        segment = _holder(state, layer)
        last = found[-1] if found else None
        if last and (last.kind, last.node_id, last.replicas) == (segment.kind, segment.node_id, segment.replicas):
            found[-1] = Segment(last.start, layer + 1, last.kind, last.node_id, last.replicas)
        else:
            found.append(segment)
    return tuple(found)


def _holder(state: State, layer: int) -> Segment:
    holders = sorted(
        (_ORDER.index(held.state), held.start, node_id)
        for node_id, view in state.nodes.items()
        for held in view.record.held
        if held.start <= layer < held.end
    )
    if not holders:
        return Segment(layer, layer + 1, "none", None)
    rank, _, node_id = holders[0]
    return Segment(layer, layer + 1, _ORDER[rank], node_id, len(holders) - 1)


def gap_sentences(live: Live) -> tuple[str, ...]:
    """One sentence per stretch of layers that cannot serve, and whom it waits for."""
    state = live.state
    if state is None or state.plan is None:
        return ()
    sentences = []
    for segment in segments(state):
        named = f"layers {layers(segment.start, segment.end)}"
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
    for segment in segments(state):
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
        numbers.append(Cell(_label(layers(segment.start, segment.end), space), "muted"))
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
