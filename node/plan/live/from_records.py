"""From what nodes say of themselves to a pool: measured figures, what was set by hand, and who may hold nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from node.errors import BadPool
from node.plan.live.members import memory_for_model, siblings_of
from node.plan.live.round_trips import LEAST_MBPS, RoundTrips, apart
from node.plan.live.round_trips import SAME_MACHINE_MS as SAME_MACHINE_MS
from node.plan.live.round_trips import UNKNOWN_MS as UNKNOWN_MS
from node.plan.machines.pool import DRAINS, PRIOR_NEAR_MS, Links, Pair, Pool, PoolNode
from node.wire.ids import NodeId
from node.wire.plans import Override, PlanSettings
from node.wire.records import NodeRecord

USUAL_OVERHEAD_MS = 0.5
"""Of a step at a node that has not run one yet: the way to the engine and back, checks, packing."""
RELAYED_MS = 20.0
"""Added to the round trip of members that are apart: their frames wait at the third for its own work. Keeps them from
being neighbours in a plan where another order does as well."""
NO_WAY_MS = 10_000.0
"""Round trip of members that are apart where no third reaches both: they are neighbours only where a plan must."""
LEAST_RATE = 1e6
"""Bytes or FLOPs per second: whatever computes does more."""
MOST_BANDWIDTH = 1e15
"""Bytes per second: beyond a rack of accelerators."""
MOST_FLOPS = 1e19
"""Likewise."""
MOST_MS = 1e6
"""A quarter of an hour for one layer, one head or one step's handling: nobody waits so long for a token."""
LEAST_MS = 1e-6
"""Less than a nanosecond for a layer or a head is no measurement."""
MOST_MEMORY_BYTES = 2**50


@dataclass(frozen=True, slots=True)
class ReadRecords:
    """A pool, and what was wrong with the records."""

    pool: Pool
    problems: tuple[str, ...]
    """One sentence for each node or figure that is left out."""


def pool_of_records(records: Iterable[NodeRecord], settings: PlanSettings | None = None) -> ReadRecords:
    """The pool of the members that have measured themselves, with what `settings` say of each by hand.

    An owner's `--layers` goes before a range set from elsewhere, and the smaller memory cap binds. Memory is divided
    among the nodes of a machine; round trips are the smaller of what both ends say. A figure that cannot be is taken
    as not measured, a node without one that it needs is left out; either is told of.
    """
    by_hand = settings.binding if settings is not None else {}
    measured = {record.id: record for record in records if record.hardware is not None}
    siblings = siblings_of(measured)
    nodes: list[PoolNode] = []
    problems: list[str] = []
    for _, record in sorted(measured.items()):
        override = by_hand.get(record.node_id, Override(record.node_id))
        try:
            nodes.append(_node(record, override, siblings[record.machine_id], problems))
        except BadPool as error:
            problems.append(str(error))
    links = _around(measured, Links(_round_trips(measured), _rates(measured), near_ms=UNKNOWN_MS, far_ms=UNKNOWN_MS))
    return ReadRecords(Pool(tuple(nodes), links), tuple(problems))


def node_of_record(record: NodeRecord) -> PoolNode:
    """One node by itself, for the times that it tells; with memory that it does not share and nothing set by hand."""
    problems: list[str] = []
    if record.hardware is not None:
        try:
            return _node(record, Override(record.node_id), 1, problems)
        except BadPool:
            pass  # its memory cannot be; it may serve all the same
    return PoolNode(record.node_id, 0, region=record.region, overhead_ms=USUAL_OVERHEAD_MS)


def _node(record: NodeRecord, override: Override, siblings: int, problems: list[str]) -> PoolNode:
    assert record.hardware is not None

    def credible(key: str, value: float | None, least: float, most: float) -> float | None:
        if value is None or least <= value <= most:
            return value
        problems.append(str(BadPool(record.name, key, f"{value:g} cannot be; it is taken as not measured")))
        return None

    memory_bytes = memory_for_model(record, siblings, override.memory_bytes)
    if memory_bytes > MOST_MEMORY_BYTES:
        raise BadPool(record.name, "memory", f"{memory_bytes} bytes are beyond any machine")
    latency = record.layer_latency
    overhead_ms = credible("overhead_ms", record.overhead_ms, 0, MOST_MS)
    # The mean is what an answer's tokens take; bounded, since one long pause is no speed.
    expected_ms = min(latency.mean_ms, latency.p95_ms) if latency is not None else None
    layer_ms = credible("layer_latency", expected_ms, LEAST_MS, MOST_MS)
    return PoolNode(
        node_id=record.node_id,
        memory_bytes=memory_bytes,
        bandwidth_bytes_per_s=credible(
            "bandwidth", record.hardware.bandwidth_bytes_per_s or None, LEAST_RATE, MOST_BANDWIDTH
        ),
        flops_per_s=credible("flops", record.hardware.matmul_flops_per_s or None, LEAST_RATE, MOST_FLOPS),
        region=record.region,
        layer_ms=((latency.sequences, layer_ms),) if latency is not None and layer_ms else (),
        head_ms=credible("head_ms", record.head_ms, LEAST_MS, MOST_MS),
        prompt_row_ms=credible("prompt_row_ms", record.prompt_row_ms, LEAST_MS, MOST_MS),
        overhead_ms=USUAL_OVERHEAD_MS if overhead_ms is None else overhead_ms,
        pinned=None if record.leaving else record.pinned_layers or override.layers,
        barred=_why_barred(record, override),
        name=record.name,
    )


def _why_barred(record: NodeRecord, override: Override) -> str:
    if override.duty == "exclude":
        return "excluded by hand"
    if override.duty == "drain" or record.leaving:
        return DRAINS
    if record.state == "failed":
        return f"failed: {record.problem or 'for an unknown reason'}"
    return ""


def _rates(measured: Mapping[NodeId, NodeRecord]) -> dict[Pair, float]:
    """By direction, as the receiver has seen it."""
    return {
        (peer, record.node_id): max(LEAST_MBPS, rate)
        for record in measured.values()
        for peer, rate in record.mbps.items()
        if peer in measured and peer != record.node_id
    }


def _round_trips(measured: Mapping[NodeId, NodeRecord]) -> dict[Pair, float]:
    """Between nodes, and inside each region that has a name: there the usual one until it has been measured."""
    rtt: dict[Pair, float] = {(r.region, r.region): PRIOR_NEAR_MS for r in measured.values() if r.region}
    for record in measured.values():
        for peer, milliseconds in record.rtt_ms.items():
            if peer in measured and peer != record.node_id:
                pair = min(record.node_id, peer), max(record.node_id, peer)
                rtt[pair] = min(milliseconds, rtt.get(pair, milliseconds))
    on_machine: dict[str, list[str]] = {}
    for node_id, record in measured.items():
        on_machine.setdefault(record.machine_id, []).append(node_id)
    for neighbours in on_machine.values():
        for pair in combinations(sorted(neighbours), 2):
            rtt[pair] = min(SAME_MACHINE_MS, rtt.get(pair, SAME_MACHINE_MS))
    return rtt


def _around(measured: Mapping[NodeId, NodeRecord], links: Links) -> Links:
    """Members that are apart are as far from one another as by way of a third, and some more."""
    records = list(measured.values())
    away = apart(records, {record.node_id: i for i, record in enumerate(records)})
    if not away.any():
        return links
    relayed = RoundTrips(records).relayed()
    between = relayed.distances([PoolNode(r.node_id, 0, region=r.region) for r in records])
    rtt, mbps = dict(links.rtt_ms), dict(links.mbps)
    for i, j in zip(*np.nonzero(away), strict=True):
        pair = records[i].node_id, records[j].node_id
        if records[i].machine_id != records[j].machine_id:
            rtt[pair] = min(NO_WAY_MS, float(between.rtt_ms[i, j]) + RELAYED_MS)
            mbps[pair] = float(between.mbps[i, j])
    return replace(links, rtt_ms=rtt, mbps=mbps)
