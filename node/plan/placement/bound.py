"""What no plan of a pool exceeds: it tells how far off the one that was found can be.

One user: on k stages no layer is faster than on the fastest nodes' room, fractions and all, each stage has the least
overhead and hop, and what is left of a prompt passes the slowest stage, whose work is no less than the mean. All users:
none is served faster than one alone, and all nodes together do no more than full batches on all of them.
"""

from __future__ import annotations

import numpy as np

from node.plan.chain_time import CHUNK_TOKENS, LARGE_BATCH
from node.plan.objectives import Goal
from node.plan.placement.pool_table import Floats, PoolTable


def upper_bound(table: PoolTable, goal: Goal) -> float:
    """A score that no choice of disjoint chains exceeds; 0 where none holds the layers."""
    room = table.room(1).max(axis=1) if table.nodes else np.zeros(0, dtype=np.int64)
    able = np.flatnonzero(room > 0)
    layers, work = table.layers, table.workload
    if not able.size or int(room[able].sum()) < layers:
        return 0.0
    room = room[able]
    decode, chunk = table.layer_ms[able], table.chunk_ms[able]
    chunks = max(1, -(-work.prompt_tokens // CHUNK_TOKENS))
    last = max(1, work.prompt_tokens - (chunks - 1) * CHUNK_TOKENS) / CHUNK_TOKENS
    outputs, share = work.output_tokens, work.prompt_tokens / work.output_tokens
    head = float(table.head_ms[able].min())
    overhead = float(table.overhead_ms[able].min())
    hop = table.way_ms[np.ix_(able, able)] + np.where(np.eye(len(able), dtype=bool), np.inf, 0.0)
    way = float(hop.min()) if len(able) > 1 else 0.0
    fewest = int(np.searchsorted(np.cumsum(np.sort(room)[::-1]), layers)) + 1
    stages = np.arange(max(1, fewest), min(len(able), layers) + 1, dtype=np.float64)
    hops = np.where(stages > 1, stages, 0.0)
    through = _least(((outputs - 1) * decode + np.maximum(decode, chunk * last)) / outputs, room, layers)
    following = _least(np.maximum(decode, chunk), room, layers) * (chunks - 1) / outputs
    alone = through + head + following / stages + stages * overhead + hops * way * (outputs - 1) / outputs
    around = _least(decode + chunk * (share / CHUNK_TOKENS), room, layers) + head + stages * overhead + hops * way
    grown = np.maximum(0.0, table.large_layer_ms[able] - decode)
    full = (decode + grown) / LARGE_BATCH + chunk * (share / CHUNK_TOKENS)
    together = min(work.users * 1000 / float(around.min()), 1000 * float((1 / full).sum()) / layers)
    return goal.bound(1000 / float(alone.min()), together)


def _least(times: Floats, room: np.ndarray[tuple[int, ...], np.dtype[np.int64]], layers: int) -> float:
    """The least time of so many layers on the nodes' room."""
    order = np.argsort(times, kind="stable")
    taken = np.clip(layers - (np.cumsum(room[order]) - room[order]), 0, room[order])
    return float((taken * times[order]).sum())
