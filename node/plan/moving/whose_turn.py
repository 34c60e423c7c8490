"""Whose turn it is to load and to drop while nodes change what they hold: make before break, over the whole swarm.

All members look at the same records and come to the same answer, so nobody has to be asked:

1. Who has room for old and new layers side by side loads at once. Who has not loads, as far as there is room, what
   nobody holds and only it shall hold.
2. Who has no room for all drops, at any time, layers that another node holds and keeps under the plan.
3. When nobody can do either, one node alone loads a piece of what it misses, as much as it has room for, that a node
   gives up which waits for room itself: this one then drops it (rule 2), and has room for a piece in its turn. So two
   nodes swap what they hold with room for one layer more on one of them, and no layer is ever left out. Pieces go first
   to who holds what the other wants, for that room comes back.
4. When there is none, one node alone drops layers that nobody keeps: those that leave the fewest layers without a
   node, and no more than it needs. The model stands still then, until others can load what that makes possible. (An
   order of pieces that spares this is sometimes there to be found, around three nodes or more; looking for it saved one
   standstill of 35.)

Rules 1 and 2 commute, in whatever order they are carried out, so that 3 and 4 always find the same state: the swarm
takes the way that `order.ordered_steps` foretells.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from node.plan.costs.model import ModelCost
from node.plan.moving.node_layers import NodeLayers, kept_layers, runs


@dataclass(frozen=True, slots=True)
class Turns:
    """Who acts now."""

    loads: dict[str, frozenset[int]] = field(default_factory=dict)
    """By node, the layers that it can load now; none for one that is at it already."""
    drops: dict[str, frozenset[int]] = field(default_factory=dict)
    """By node, the layers that it drops to make room."""


MOST_RUNS = 7
"""Ranges that a node may hold for a swap: a record has room for eight, one of which is being loaded."""

NOBODY = Turns()
"""All have what they shall hold, or none that misses anything is awaited."""


def turns(model: ModelCost, holdings: Sequence[NodeLayers], context: int) -> Turns:
    """Whose turn it is, `context` tokens of KV cache counted for each layer."""
    hosts = Counter(layer for holding in holdings for layer in holding.held)
    heirs = Counter(layer for holding in holdings if holding.awaited for layer in holding.missing)
    loads = {holding.node_id: frozenset[int]() for holding in holdings if holding.loading}
    waiting: list[NodeLayers] = []
    for holding in holdings:
        if holding.loading or not holding.waits:
            continue
        if holding.can_finish(model, context):
            loads[holding.node_id] = holding.missing
        else:
            waiting.append(holding)
            unserved = [layer for layer in sorted(holding.missing) if not hosts[layer] and heirs[layer] == 1]
            if layers := _first_piece(model, holding, unserved, context):
                loads[holding.node_id] = layers
    kept = kept_layers(holdings)
    drops = {holding.node_id: holding.surplus & kept for holding in waiting if holding.surplus & kept}
    if loads or drops or not waiting:
        return Turns(loads, drops)
    if swapped := _piece_to_swap(model, waiting, context):
        return Turns(loads=swapped)
    choices = [
        (sum(hosts[layer] < 2 for layer in layers), holding.node_id, min(layers), layers)
        for holding in waiting
        for layers in _makes_room(model, holding, context)
    ]
    _, node, _, layers = min(choices, key=lambda choice: choice[:3])
    return Turns(drops={node: layers})


def _first_piece(model: ModelCost, holding: NodeLayers, layers: Sequence[int], context: int) -> frozenset[int]:
    """The first neighbours among `layers` that fit beside what is held, in order until one does not."""
    taken = frozenset[int]()
    for layer in layers:
        apart = taken and layer - 1 not in taken
        if apart or not holding.has_room_for(model, taken | {layer}, context):
            break
        taken |= {layer}
    return taken


def _piece_to_swap(model: ModelCost, waiting: Sequence[NodeLayers], context: int) -> dict[str, frozenset[int]]:
    """Who loads what, that another one who waits drops thereupon; nobody where there is no such piece."""
    debtors: dict[int, list[NodeLayers]] = {}
    for holding in waiting:
        for layer in holding.surplus:
            debtors.setdefault(layer, []).append(holding)
    choices: list[tuple[bool, int, str, int, frozenset[int]]] = []
    for holding in waiting:
        owed = [layer for layer in sorted(holding.missing) if layer in debtors]
        returns = {layer for layer in owed if any(other.missing & holding.surplus for other in debtors[layer])}
        near = holding.held or holding.wanted
        for some in (returns, set(owed) - returns):
            for run in runs(some):
                piece = _nearest_piece(model, holding, run, context)
                if piece and len(runs(holding.held | piece)) <= max(MOST_RUNS, len(runs(holding.held))):
                    distance = min(abs(layer - held) for layer in piece for held in near)
                    choices.append((some is not returns, distance, holding.node_id, min(piece), piece))
    if not choices:
        return {}
    _, _, node, _, piece = min(choices, key=lambda choice: choice[:4])
    return {node: piece}


def _nearest_piece(model: ModelCost, holding: NodeLayers, run: frozenset[int], context: int) -> frozenset[int]:
    """Of neighbouring layers as many as fit beside what is held, from the end that is nearer to it."""
    upwards = not holding.held or min(run) > min(holding.held)
    taken = frozenset[int]()
    for layer in sorted(run, reverse=not upwards):
        if not holding.has_room_for(model, taken | {layer}, context):
            break
        taken |= {layer}
    return taken


def _makes_room(model: ModelCost, holding: NodeLayers, context: int) -> Iterator[frozenset[int]]:
    """Of each range to be dropped as little, from either end, as makes room for all that is missing; else all of it."""
    for run in runs(holding.surplus):
        start, end = min(run), max(run) + 1
        for size in range(1, len(run) + 1):
            ends = [frozenset(range(start, start + size)), frozenset(range(end - size, end))]
            enough = [part for part in ends if replace(holding, held=holding.held - part).can_finish(model, context)]
            if enough:
                yield from enough
                break
        else:
            yield run
