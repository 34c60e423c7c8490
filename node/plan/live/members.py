"""Which members count: for planning, for holding layers, and with how much memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from node.wire.ids import NodeId
from node.wire.records import NodeRecord

MEMORY_SHARE = 0.7
"""Of the measured memory; the rest is the operating system's, the runtime's and the activations'."""


def eligible(records: Mapping[NodeId, NodeRecord]) -> dict[NodeId, NodeRecord]:
    """Members that can hold layers: measured, and not failed."""
    return {
        node: record for node, record in records.items() if record.hardware is not None and record.state != "failed"
    }


def planner_of(
    records: Mapping[NodeId, NodeRecord], *, first: bool = False, aside: Collection[NodeId] = ()
) -> NodeId | None:
    """Whose word counts now: the eligible member with the smallest id, so that any member can take over.

    The `first` plan of a swarm that was started again is made by who followed its last one: it knows what was set.
    Members who are `aside` have made plans that ended the service, and make none for a while; who leaves plans only
    where nobody stays.
    """
    able = {node: record for node, record in eligible(records).items() if node not in aside}
    return min(able, key=lambda node: (able[node].leaving, -able[node].plan_epoch if first else 0, node), default=None)


def memory_for_model(record: NodeRecord, siblings: int, most_bytes: int | None = None) -> int:
    """Bytes that this node may use for weights and KV cache; machine memory is divided among its nodes.

    `most_bytes` is set for it by hand from elsewhere. The owner's own cap counts as it is.
    """
    assert record.hardware is not None
    own = record.memory_cap_bytes
    if own is None:
        own = int(record.hardware.memory_bytes * MEMORY_SHARE / max(1, siblings))
    return own if most_bytes is None else min(own, most_bytes)


def siblings_of(records: Mapping[NodeId, NodeRecord]) -> Counter[str]:
    """How many members each machine runs."""
    return Counter(record.machine_id for record in records.values())
