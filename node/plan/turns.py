"""Whose turn it is to load and to drop while nodes change what they hold: make before break, over the whole swarm.

All members look at the same records and come to the same answer, so nobody has to be asked:

1. Who has room for old and new layers side by side loads at once.
2. Who has not drops, at any time, layers that another node holds and keeps under the plan.
3. When nobody can load any more, one node alone drops layers that nobody keeps: those that leave the fewest layers
   without a node. The others wait for what that makes possible.

Rules 1 and 2 commute, in whatever order they are carried out, so rule 3 always finds the same state: the swarm takes
the way that `steps.ordered_steps` foretells.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from node.plan.members import memory_for_model, siblings_of
from node.plan.model_cost import ModelCost
from node.wire.ids import NodeId
from node.wire.plans import Plan
from node.wire.records import NodeRecord


@dataclass(frozen=True, slots=True)
class Holding:
    """What one node holds, and what it shall hold."""

    node_id: str
    held: frozenset[int]
    """Layers that it could serve now."""
    wanted: frozenset[int]
    """Layers that the plan gives it."""
    memory_bytes: int
    """For weights and KV cache."""
    loading: bool = False
    """It loads now: it has the room, and is waited for."""
    awaited: bool = True
    """It will do its part. One that has failed, or that should act and does not, holds up nobody."""
    keeps: bool = True
    """It has the plan: what it holds of `wanted` stays."""

    @property
    def missing(self) -> frozenset[int]:
        """To be loaded."""
        return self.wanted - self.held

    @property
    def surplus(self) -> frozenset[int]:
        """To be dropped in the end."""
        return self.held - self.wanted


def has_room(model: ModelCost, holding: Holding, context: int) -> bool:
    """Whether old and new layers fit side by side, `context` tokens of KV cache for each; or there is nothing to load,
    or nothing left to drop.

    Layers in both are held once.
    """
    layers = holding.held | holding.wanted
    needed = weights_of(model, layers) + len(layers) * model.kv_layer_bytes(context)
    return needed <= holding.memory_bytes or not holding.surplus or not holding.missing


def loads_due(model: ModelCost, holdings: Iterable[Holding], context: int) -> list[Holding]:
    """Nodes that can load what they miss."""
    return [h for h in holdings if h.loading or (h.awaited and h.missing and has_room(model, h, context))]


def drops_due(model: ModelCost, holdings: Sequence[Holding], context: int) -> dict[str, frozenset[int]]:
    """Layers that nodes without room drop now, by node; who waits for its turn is not among them."""
    able = {h.node_id for h in loads_due(model, holdings, context)}
    waiting = [h for h in holdings if h.awaited and h.missing and h.node_id not in able]
    kept = kept_layers(holdings)
    backed = {h.node_id: h.surplus & kept for h in waiting if h.surplus & kept}
    if backed or able or not waiting:
        return backed
    hosts = Counter(layer for h in holdings for layer in h.held)
    choices = [(sum(hosts[i] < 2 for i in run), h.node_id, min(run), run) for h in waiting for run in runs(h.surplus)]
    _, node, _, run = min(choices, key=lambda choice: choice[:3])
    return {node: run}


def kept_layers(holdings: Iterable[Holding]) -> frozenset[int]:
    """Layers that a node holds and will go on holding."""
    return frozenset[int]().union(*(h.held & h.wanted for h in holdings if h.keeps))


def holdings_of(plan: Plan, records: Mapping[NodeId, NodeRecord], silent: Collection[str] = ()) -> list[Holding]:
    """What the members' records say, by node id. `silent` are those that should have acted long ago."""
    siblings = siblings_of({node: record for node, record in records.items() if record.hardware is not None})
    targets = {a.node_id: frozenset(range(a.start, a.end)) for a in plan.assignments}
    binding = plan.settings.binding
    holdings = []
    for node, record in sorted(records.items()):
        failed = record.state == "failed" or record.hardware is None
        most_bytes = binding[node].memory_bytes if node in binding else None
        holdings.append(
            Holding(
                node,
                _layers(record, "ready") | _layers(record, "draining"),
                targets.get(node, frozenset()),
                memory_for_model(record, siblings[record.machine_id], most_bytes) if record.hardware is not None else 0,
                loading=not failed and bool(_layers(record, "loading")),
                awaited=not failed and node not in silent,
                keeps=not failed and record.plan_epoch == plan.epoch,
            )
        )
    return holdings


def weights_of(model: ModelCost, layers: AbstractSet[int]) -> int:
    """Bytes of these layers' weights, and of the ends that belong to them, on one node."""
    dense = sum(layer < model.dense_layers for layer in layers)
    ends = model.ends_bytes(first=0 in layers, last=model.layers - 1 in layers)
    return dense * model.dense_layer_bytes + (len(layers) - dense) * model.sparse_layer_bytes + ends


def runs(layers: Iterable[int]) -> list[frozenset[int]]:
    """Neighbouring layers together."""
    found: list[set[int]] = []
    for layer in sorted(layers):
        if found and layer - 1 in found[-1]:
            found[-1].add(layer)
        else:
            found.append({layer})
    return [frozenset(run) for run in found]


def _layers(record: NodeRecord, state: str) -> frozenset[int]:
    return frozenset(layer for held in record.held if held.state == state for layer in range(held.start, held.end))
