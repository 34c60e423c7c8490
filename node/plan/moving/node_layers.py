"""What a node holds and shall hold while plans change, and whether layers fit on it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from node.plan.costs.model import ModelCost
from node.plan.live.members import memory_for_model, siblings_of
from node.wire.ids import NodeId
from node.wire.plans import Plan
from node.wire.records import NodeRecord


@dataclass(frozen=True, slots=True)
class NodeLayers:
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

    @property
    def waits(self) -> bool:
        """Others count on it to load something."""
        return self.awaited and bool(self.missing)

    def has_room_for(self, model: ModelCost, layers: AbstractSet[int], context: int) -> bool:
        """Whether these layers fit beside those held, `context` tokens of KV cache for each. Layers in both are held
        once."""
        return bytes_of(model, self.held | layers, context) <= self.memory_bytes

    def can_finish(self, model: ModelCost, context: int) -> bool:
        """Whether it has room for all that it misses; or there is nothing to load, or nothing left to drop."""
        return not self.surplus or not self.missing or self.has_room_for(model, self.wanted, context)


def holdings_of(plan: Plan, records: Mapping[NodeId, NodeRecord], silent: Collection[str] = ()) -> list[NodeLayers]:
    """What the members' records say, by node id. `silent` are those that should have acted long ago."""
    siblings = siblings_of({node: record for node, record in records.items() if record.hardware is not None})
    targets = {a.node_id: frozenset(range(a.start, a.end)) for a in plan.assignments}
    binding = plan.settings.binding
    holdings = []
    for node, record in sorted(records.items()):
        failed = record.state == "failed" or record.hardware is None
        most_bytes = binding[node].memory_bytes if node in binding else None
        holdings.append(
            NodeLayers(
                node,
                _layers(record, plan, "ready") | _layers(record, plan, "draining"),
                targets.get(node, frozenset()),
                memory_for_model(record, siblings[record.machine_id], most_bytes) if record.hardware is not None else 0,
                loading=not failed and bool(_layers(record, plan, "loading")),
                awaited=not failed and node not in silent,
                keeps=not failed and record.plan_epoch == plan.epoch,
            )
        )
    return holdings


def kept_layers(holdings: Iterable[NodeLayers]) -> frozenset[int]:
    """Layers that a node holds and will go on holding."""
    return frozenset[int]().union(*(h.held & h.wanted for h in holdings if h.keeps))


def bytes_of(model: ModelCost, layers: AbstractSet[int], context: int) -> int:
    """Bytes of these layers on one node, `context` tokens of KV cache for each."""
    return weights_of(model, layers) + len(layers) * model.kv_layer_bytes(context)


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


def _layers(record: NodeRecord, plan: Plan, state: str) -> frozenset[int]:
    """Of the plan's model: ranges of another one are on their way out, and cover nothing."""
    ranges = (held for held in record.held if held.state == state and held.weights == plan.weights)
    return frozenset(layer for held in ranges for layer in range(held.start, held.end))
