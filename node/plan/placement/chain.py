"""One chain of stages: how its layers are shared out and what it achieves.

For one user's latency every layer goes to the fastest stage with room, for the time is the sum. Else stages fill by
speed to one level (water-filling), for throughput is set by the slowest; the head's time counts as layers of its stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from node.plan.placement.pool_table import LARGE_BATCH, PoolTable
from node.plan.placement.water_filling import water_fill


@dataclass(frozen=True, slots=True)
class Chain:
    """Classes in stage order, with the layers of each stage."""

    order: tuple[int, ...]
    counts: tuple[int, ...]
    token_ms: float
    """One user's time per generated token."""
    tokens_per_s: float
    """Of as many users as the KV cache has room for."""
    sequences: int
    """That many."""


def capacities(table: PoolTable, order: Sequence[int]) -> list[int]:
    """Layers that each stage has room for, the ends' weights considered."""
    last = len(order) - 1
    return [table.classes[c].capacity[(i == 0) + 2 * (i == last)] for i, c in enumerate(order)]


def hops_ms(table: PoolTable, order: Sequence[int]) -> float:
    """Once around: every stage's overhead and hop, and the sampled token's way back."""
    if len(order) < 2:
        return sum(table.classes[c].node.overhead_ms for c in order)
    total = sum(table.hop_ms(a, b) for a, b in pairwise(order))
    return total + table.return_ms(order[-1], order[0])


def share_out(table: PoolTable, order: Sequence[int]) -> list[int] | None:
    """Layers of each stage, or None when these classes cannot hold them or one would hold none."""
    room = capacities(table, order)
    if sum(room) < table.layers or len(order) > table.layers or min(room) < 1:
        return None
    counts = _fastest_first(table, order, room) if table.objective == "latency" else _level(table, order, room)
    return counts if min(counts) > 0 else None


def token_ms(table: PoolTable, order: Sequence[int], counts: Sequence[int]) -> float:
    """One user's time per generated token on these stages."""
    time = sum(table.classes[c].layer_ms * n for c, n in zip(order, counts, strict=True))
    return time + hops_ms(table, order) + (table.classes[order[-1]].head_ms if table.has_last else 0.0)


def build_chain(table: PoolTable, order: Sequence[int]) -> Chain | None:
    """The chain of these classes, or None when they cannot hold the layers or one would hold none."""
    counts = share_out(table, order)
    return chain_of_counts(table, order, counts) if counts is not None else None


def chain_of_counts(table: PoolTable, order: Sequence[int], counts: Sequence[int]) -> Chain:
    """The chain that runs `counts` layers on these classes."""
    sequences = _sequences(table, order, counts)
    rate = _rate(table, order, counts, sequences)
    return Chain(tuple(order), tuple(counts), token_ms(table, order, counts), rate, sequences)


def _fastest_first(table: PoolTable, order: Sequence[int], room: Sequence[int]) -> list[int]:
    counts = [1] * len(order)
    left = table.layers - len(order)
    for i in sorted(range(len(order)), key=lambda i: (table.classes[order[i]].layer_ms, i)):
        more = min(room[i] - 1, left)
        counts[i] += more
        left -= more
    return counts


def _level(table: PoolTable, order: Sequence[int], room: Sequence[int]) -> list[int]:
    """Water-filled; then layers leave the tail while its head makes it the slowest."""
    if len(order) == 1:
        return [table.layers]
    times = [table.classes[c].layer_ms for c in order]
    counts = water_fill(room, [1 / ms for ms in times], table.layers)
    for i, count in enumerate(counts):
        if count == 0:  # a stage too slow for one by its share is in the chain for its room: from who is done last
            last = max((j for j in range(len(order)) if counts[j] > 1), key=lambda j: (counts[j] * times[j], j))
            counts[last] -= 1
            counts[i] = 1
    head_ms = table.classes[order[-1]].head_ms if table.has_last else 0.0
    while head_ms and counts[-1] > 1:
        takers = [i for i in range(len(order) - 1) if counts[i] < room[i]]
        if not takers:
            break
        taker = min(takers, key=lambda i: ((counts[i] + 1) * times[i], i))
        if (counts[taker] + 1) * times[taker] >= counts[-1] * times[-1] + head_ms:
            break
        counts[taker] += 1
        counts[-1] -= 1
    return counts


def _sequences(table: PoolTable, order: Sequence[int], counts: Sequence[int]) -> int:
    """Sequences of the workload's length that fit beside the weights on every stage."""
    model, most = table.model, 1 << 20
    cache = max(1, model.kv_layer_bytes(table.context))
    last = len(order) - 1
    for i, (c, layers) in enumerate(zip(order, counts, strict=True)):
        first = i == 0 and table.has_first
        weights = layers * model.sparse_layer_bytes + model.ends_bytes(first=first, last=i == last and table.has_last)
        if first and model.experts:
            dense = min(layers, model.dense_layers)
            weights += dense * (model.dense_layer_bytes - model.sparse_layer_bytes)
        most = min(most, (table.classes[c].node.memory_bytes - weights) // (layers * cache))
    return max(1, most)


def _rate(table: PoolTable, order: Sequence[int], counts: Sequence[int], sequences: int) -> float:
    """Tokens per second with one micro-batch of m sequences per stage: min(sequences / T(m), m / slowest stage(m)).

    Stages that wait for one another lose up to a quarter of that, 6 % on the median in the simulator.
    Sequences are bounded by the KV room, and by the chain's share of the users: its part of the pool's room. More than
    LARGE_BATCH per stage are not counted on.
    """
    stages = len(order)
    share = table.users * sum(table.classes[c].room for c in order) / max(1, table.room)
    running = max(1.0, min(float(sequences), share, float(LARGE_BATCH * stages)))
    batch = max(1.0, running / stages)
    part = (batch - 1) / (LARGE_BATCH - 1)
    around, slowest = hops_ms(table, order), 0.0
    for i, (c, layers) in enumerate(zip(order, counts, strict=True)):
        node = table.classes[c]
        busy = layers * (node.layer_ms + (node.large_layer_ms - node.layer_ms) * part)
        if i == stages - 1 and table.has_last:
            busy += node.head_ms + (node.large_head_ms - node.head_ms) * part
        around, slowest = around + busy, max(slowest, busy)
    return 1000 * min(running / around, batch / slowest)
