"""Thousands of chains at once: how their layers are shared out, and what each achieves.

The formulae are those of `node.plan.chain_time` for one chain, as arrays of (chain, stage); a test holds them together.
Chains are rows of nodes, -1 behind the last one.

A chain's layers are filled "fastest first" (one user's time is a sum) or to one "level" (the rate of many is set by the
slowest): λ such that Σ min(room, max(1, (λ - fixed) / layer time)) is all layers, then one by one to whoever is done
first with one more. Both leave room for the KV cache of as many sequences as is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from node.plan.chain_time import CHUNK_TOKENS, LARGE_BATCH, MET
from node.plan.objectives import Curve
from node.plan.placement.pool_table import Floats, Ints, PoolTable

Bools = NDArray[np.bool_]
MOST_IN_BATCH = 64
"""Sequences in one step of a stage: with more of them a step takes longer for all."""
LEVELLED = 7
"""Newton steps to the level; what is missing then goes to whoever is done first."""


@dataclass(frozen=True, slots=True)
class Chain:
    """Nodes of a table in stage order, with the layers of each."""

    order: tuple[int, ...]
    """Rows of the table."""
    counts: tuple[int, ...]
    token_ms: float
    """One user's time per output token, the prompt's share included."""
    rates: tuple[float, ...]
    """Tokens per second of 1, 2, 4, … users together, `user_levels` of them; no more run than there is KV room for."""
    sequences: int
    """Sequences of the workload's length that the KV cache has room for."""
    curve: Curve
    """The same as (users, tokens per second)."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Many chains; only rows that are `ok` mean anything."""

    order: Ints
    """(chain, stage)"""
    counts: Ints
    """(chain, stage): layers"""
    ok: Bools
    token_ms: Floats
    rates: Floats
    """(chain, level)"""
    running: Floats
    """(chain, level): users that it serves at a time"""
    sequences: Ints

    def chain(self, row: int) -> Chain:
        """One of them."""
        stages = int((self.order[row] >= 0).sum())
        rates = self.rates[row].tolist()
        return Chain(
            tuple(self.order[row, :stages].tolist()),
            tuple(self.counts[row, :stages].tolist()),
            float(self.token_ms[row]),
            tuple(rates),
            int(self.sequences[row]),
            tuple(zip(self.running[row].tolist(), rates, strict=True)),
        )


def user_levels(users: int) -> list[int]:
    """1, 2, 4, … and `users`: between them rates are taken as linear."""
    return [*(1 << i for i in range(max(0, users - 1).bit_length())), users]


def as_rows(orders: Sequence[Sequence[int]], fill: int = -1) -> Ints:
    """Chains as rows of equal length."""
    width = max(len(order) for order in orders)
    return np.array([[*order, *[fill] * (width - len(order))] for order in orders], dtype=np.int64)


def shared_out(table: PoolTable, order: Ints, leveled: Bools, sequences: Ints) -> tuple[Ints, Bools]:
    """(chain, stage) layers, and which chains hold them all. By chain: the rule, and the sequences with KV room."""
    there = order >= 0
    stages = there.sum(axis=1)
    columns = np.arange(order.shape[1])
    kind = (columns == 0)[None, :] + 2 * (columns[None, :] == stages[:, None] - 1)
    room = np.zeros_like(order)
    for number in np.unique(sequences).tolist():
        rows = sequences == number
        room[rows] = table.room(number)[order[rows], kind[rows]]
    room[~there] = 0
    ok = (room.sum(axis=1) >= table.layers) & (stages <= table.layers) & ((room > 0) | ~there).all(axis=1)
    counts = np.zeros_like(order)
    rows = np.flatnonzero(ok & ~leveled)
    if rows.size:
        counts[rows] = _fastest_first(table, order[rows], there[rows], room[rows])
    rows = np.flatnonzero(ok & leveled)
    if rows.size:
        counts[rows] = _level(table, order[rows], there[rows], room[rows], sequences[rows])
    return counts, ok & (counts.sum(axis=1) == table.layers)


def _fastest_first(table: PoolTable, order: Ints, there: Bools, room: Ints) -> Ints:
    share = table.workload.output_tokens
    cost = np.where(there, table.layer_ms[order] + table.chunk_ms[order] / share, np.inf)
    by_cost = np.argsort(cost, axis=1, kind="stable")
    more = np.take_along_axis(np.maximum(room - 1, 0), by_cost, axis=1)
    before = np.cumsum(more, axis=1) - more
    left = (table.layers - there.sum(axis=1))[:, None]
    counts = there.astype(np.int64)
    np.put_along_axis(
        counts, by_cost, np.take_along_axis(counts, by_cost, axis=1) + np.clip(left - before, 0, more), axis=1
    )
    return counts


def _level(table: PoolTable, order: Ints, there: Bools, room: Ints, sequences: Ints) -> Ints:
    stages = there.sum(axis=1)
    batch = np.maximum(1.0, sequences / stages)[:, None]
    chunks = batch * table.workload.prompt_tokens / table.workload.output_tokens / CHUNK_TOKENS
    part = (batch - 1) / (LARGE_BATCH - 1)
    one = table.layer_ms[order]
    times = one + np.maximum(0.0, table.large_layer_ms[order] - one) * part + chunks * table.chunk_ms[order]
    head = table.head_ms[order] + np.maximum(0.0, table.large_head_ms[order] - table.head_ms[order]) * part
    is_last = np.arange(order.shape[1])[None, :] == stages[:, None] - 1
    fixed = np.where(there, table.overhead_ms[order] + np.where(is_last, head, 0.0), 0.0)
    speed = np.where(there, 1 / times, 0.0)
    least = there.astype(np.float64)
    level = (table.layers + (fixed * speed).sum(axis=1)) / speed.sum(axis=1)
    for _ in range(LEVELLED):
        wanted = (level[:, None] - fixed) * speed
        held = np.minimum(room, np.maximum(least, wanted))
        lacking = table.layers - held.sum(axis=1)
        if np.abs(lacking).max() < 1e-6:
            break
        slope = (speed * (held == wanted)).sum(axis=1)
        level += np.where(slope > 0, lacking / np.maximum(slope, 1e-300), np.sign(lacking) * level * 0.5)
    held = np.minimum(room, np.maximum(least, (level[:, None] - fixed) * speed))
    counts: Ints = (held + 1e-9).astype(np.int64)
    rows = np.flatnonzero(counts.sum(axis=1) < table.layers)
    for _ in range(2 * order.shape[1]):
        if not rows.size:
            break
        now = counts[rows]
        after = np.where(now < room[rows], fixed[rows] + (now + 1) * times[rows], np.inf)
        counts[rows, after.argmin(axis=1)] += 1  # there is room: all together have enough
        rows = rows[counts[rows].sum(axis=1) < table.layers]
    rows = np.flatnonzero(counts.sum(axis=1) > table.layers)
    for _ in range(2 * order.shape[1]):
        if not rows.size:
            break
        now = counts[rows]
        before = np.where(now > 1, fixed[rows] + now * times[rows], -np.inf)
        counts[rows, before.argmax(axis=1)] -= 1
        rows = rows[counts[rows].sum(axis=1) > table.layers]
    return counts


def timed(table: PoolTable, order: Ints, counts: Ints, ok: Bools, *, rates: bool = True) -> Batch:
    """What chains with these layers achieve; not `ok` where one does not fit beside the KV cache of one sequence.

    Without `rates` nothing is told of many users."""
    work, model = table.workload, table.model
    there = order >= 0
    stages = there.sum(axis=1)
    rows, columns = np.arange(len(order)), np.arange(order.shape[1])
    is_last = columns[None, :] == stages[:, None] - 1
    sequences = _sequences(table, order, counts, there, is_last)
    decode = table.layer_ms[order] * counts
    chunk = table.chunk_ms[order] * counts
    overhead = np.where(there, table.overhead_ms[order], 0.0)
    head = np.where(is_last, table.head_ms[order], 0.0)
    following = np.roll(order, -1, axis=1)
    following[rows, stages - 1] = order[:, 0]
    way = np.where(there, table.way_ms[order, following], 0.0)
    sent_ms = np.where(there & ~is_last, table.byte_ms[order, following], 0.0) * model.hop_bytes(1)
    step = (decode + overhead + head + way + sent_ms).sum(axis=1)
    chunks = max(1, -(-work.prompt_tokens // CHUNK_TOKENS))
    last_tokens = max(1, work.prompt_tokens - (chunks - 1) * CHUNK_TOKENS)
    last = np.empty((len(order), 2 * order.shape[1]))
    last[:, ::2] = np.maximum(decode, chunk * (last_tokens / CHUNK_TOKENS)) + overhead + head
    last[:, 1::2] = sent_ms * last_tokens
    longest = last.sum(axis=1)
    if chunks > 1:
        full = np.empty_like(last)
        full[:, ::2], full[:, 1::2] = np.maximum(decode, chunk) + overhead, sent_ms * CHUNK_TOKENS
        after = longest[:, None] - np.cumsum(last, axis=1) + last
        through = np.cumsum(full, axis=1) + (chunks - 2) * np.maximum.accumulate(full, axis=1)
        longest = (through + after).max(axis=1)
    prompt = longest + np.where(is_last, 0.0, way).sum(axis=1)
    token_ms = (prompt + (work.output_tokens - 1) * step) / work.output_tokens
    if not rates:
        none = np.zeros((len(order), 1))
        return Batch(order, counts, ok & (sequences > 0), token_ms, none, none + 1, sequences)
    running = np.minimum(
        np.array(user_levels(work.users), dtype=np.float64)[None, :],
        np.maximum(1, np.minimum(sequences, MOST_IN_BATCH * stages))[:, None],
    )
    batch = np.maximum(1.0, running / stages[:, None])
    grown = np.maximum(0.0, table.large_layer_ms[order] * counts - decode)
    grown += np.where(is_last, np.maximum(0.0, table.large_head_ms[order] - table.head_ms[order]), 0.0)
    share = work.prompt_tokens / work.output_tokens
    slope = grown / (LARGE_BATCH - 1) + chunk * (share / CHUNK_TOKENS)
    base = decode + overhead + head - grown / (LARGE_BATCH - 1)
    link = sent_ms * (1 + share)
    around = (base + way).sum(axis=1)[:, None] + batch * (slope + link).sum(axis=1)[:, None]
    often = np.minimum(1.0, batch * (share / CHUNK_TOKENS))
    variance = often * (1 - often) * (chunk * chunk).sum(axis=1)[:, None]
    around += np.maximum(0.0, running / batch - 1) * np.minimum(around, MET * variance / around)
    slowest = (base[:, None, :] + batch[:, :, None] * slope[:, None, :]).max(axis=2)
    slowest = np.maximum(slowest, batch * link.max(axis=1)[:, None])
    together = 1000 * np.minimum(running / around, batch / slowest)
    return Batch(order, counts, ok & (sequences > 0), token_ms, together, running, sequences)


def _sequences(table: PoolTable, order: Ints, counts: Ints, there: Bools, is_last: Bools) -> Ints:
    """Sequences whose KV cache fits beside the weights on every stage; 0 where one has no room for one."""
    model = table.model
    weights = counts * model.sparse_layer_bytes
    if table.dense:
        ends = np.cumsum(counts, axis=1)
        dense = np.clip(np.minimum(ends, table.dense) - (ends - counts), 0, None)
        weights = weights + dense * (model.dense_layer_bytes - model.sparse_layer_bytes)
    is_first = np.arange(order.shape[1])[None, :] == 0
    one = model.embedding_bytes
    first, last = is_first & table.has_first, is_last & table.has_last
    weights = weights + one * (first.astype(np.int64) + last) - (one * (first & last) if model.tied else 0)
    cache = max(1, model.kv_layer_bytes(table.context))
    left = (table.memory[order] - weights) // np.maximum(1, counts * cache)
    fitting: Ints = np.maximum(0, np.where(there & (counts > 0), left, 1 << 20).min(axis=1))
    return fitting


def chain_of_counts(table: PoolTable, order: Sequence[int], counts: Sequence[int]) -> Chain:
    """The chain that runs `counts` layers on these nodes, whether or not there is room for them."""
    return timed(table, as_rows([order]), as_rows([counts], 0), np.ones(1, dtype=bool)).chain(0)


def fits(table: PoolTable, order: Sequence[int], counts: Sequence[int]) -> bool:
    """Whether these nodes have room for these layers and the KV cache of one sequence."""
    return bool(timed(table, as_rows([order]), as_rows([counts], 0), np.ones(1, dtype=bool)).ok[0])
