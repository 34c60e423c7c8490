"""From what nodes say of themselves to a pool: measured figures, hand-set ones, and who may not serve."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from node.errors import BadPool
from node.plan.decide import memory_for_model, siblings_of
from node.plan.pool import Links, Pair, Pool, PoolNode
from node.wire.records import NodeRecord


@dataclass(frozen=True, slots=True)
class ReadRecords:
    """A pool, and what was wrong with records that are not in it."""

    pool: Pool
    problems: tuple[str, ...]


def pool_of_records(
    records: Iterable[NodeRecord], excluded: frozenset[str] = frozenset(), draining: frozenset[str] = frozenset()
) -> ReadRecords:
    """The pool of the members that have measured themselves. A record that cannot be is left out and told of.

    Memory is divided among the nodes of a machine; round trips are the smaller of what both ends say.
    """
    by_id = {record.id: record for record in records}
    measured = {node: record for node, record in by_id.items() if record.hardware is not None}
    siblings: Counter[str] = siblings_of(measured)
    nodes: list[PoolNode] = []
    problems: list[str] = []
    for _, record in sorted(measured.items()):
        barred = "excluded by hand" if record.node_id in excluded else ""
        if record.node_id in draining:
            barred = barred or "drains"
        if record.state == "failed":
            barred = barred or f"failed: {record.problem or 'for an unknown reason'}"
        try:
            nodes.append(_node(record, memory_for_model(record, siblings[record.machine_id]), barred))
        except BadPool as error:
            problems.append(str(error))
    rtt: dict[Pair, float] = {}
    for record in measured.values():
        for peer, milliseconds in record.rtt_ms.items():
            if peer in measured and peer != record.node_id:
                pair = min(record.node_id, peer), max(record.node_id, peer)
                rtt[pair] = min(milliseconds, rtt.get(pair, milliseconds))
    same_machine = {record.node_id: record.machine_id for record in measured.values()}
    for pair in rtt:
        if same_machine[pair[0]] == same_machine[pair[1]]:
            rtt[pair] = min(rtt[pair], 1.0)
    return ReadRecords(Pool(tuple(nodes), Links(rtt, near_ms=UNKNOWN_MS, far_ms=UNKNOWN_MS)), tuple(problems))


UNKNOWN_MS = 100.0
"""Round trip between members that have not measured it yet: pessimistic, never infinite."""


def _node(record: NodeRecord, memory_bytes: int, barred: str) -> PoolNode:
    assert record.hardware is not None
    latency = record.layer_latency
    return PoolNode(
        node_id=record.node_id,
        memory_bytes=memory_bytes,
        bandwidth_bytes_per_s=record.hardware.bandwidth_bytes_per_s or None,
        flops_per_s=record.hardware.matmul_flops_per_s or None,
        layer_ms=((1, latency.p50_ms),) if latency is not None and latency.p50_ms > 0 else (),
        pinned=record.pinned_layers,
        barred=barred,
        name=record.name,
    )
