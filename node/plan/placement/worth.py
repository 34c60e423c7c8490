"""What candidate chains count together, timed in numpy many at once. It spends the search's effort."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from node.plan.objectives import Goal
from node.plan.placement.chains import Batch, Bools, Chain, as_rows, shared_out, timed, user_levels
from node.plan.placement.pool_table import Floats, Ints, PoolTable

STAGE_WORTH = 0.002
"""What a chain must gain for another stage, as a part of what it gives."""
RESERVE_WORTH = 0.03
"""What a chain counts less for each halving of the KV room that the objective asks for."""
CALL_EFFORT, ROW_EFFORT = 600, 1.0
"""Of timing some chains at once, and of each stage of each chain; measured."""


@dataclass(frozen=True, slots=True)
class Style:
    """How a chain's layers are shared out."""

    level: bool
    sequences: int
    """With KV room for so many."""


@dataclass(frozen=True, slots=True)
class PlannedChain:
    """A chain of the plan so far, and what it counts."""

    chain: Chain
    style: Style
    token_ms: float
    """Its stages and its lack of KV room counted."""
    curve: tuple[tuple[float, float], ...]


class Worth:
    """Times chains of one table and says what they count for one objective; notes the effort that this takes."""

    def __init__(self, table: PoolTable, goal: Goal, effort: int) -> None:
        self.table, self.goal, self.left = table, goal, float(effort)
        self.users = table.workload.users
        self.rated = goal.speed_weight < 1
        self.levels = len(user_levels(self.users)) if self.rated else 1
        self.reserves = goal.reserves(self.users)
        self.styles = [Style(rule == "level", m) for rule in goal.layer_rules for m in self.reserves]
        self.useful = [row for row, room in enumerate(table.room(1).max(axis=1).tolist()) if room > 0]
        self.chance = random.Random(1)
        self.turn = 0
        sent = table.model.hop_bytes(1)
        self.hop_ms: Floats = table.way_ms + table.byte_ms * sent + table.overhead_ms
        """(from, to): what another stage costs a step."""

    def score(self, chains: Sequence[PlannedChain]) -> float:
        return self.goal.score(chains, self.users)

    def timed(self, order: Ints, level: Bools, sequences: Ints) -> Batch:
        self.left -= CALL_EFFORT + ROW_EFFORT * order.size
        counts, ok = shared_out(self.table, order, level, sequences)
        if not ok.all():
            kept = np.flatnonzero(ok)
            found = timed(self.table, order[kept], counts[kept], ok[kept], rates=self.rated) if kept.size else None
            return _spread(found, kept, order, counts, ok, self.levels)
        return timed(self.table, order, counts, ok, rates=self.rated)

    def counted(self, batch: Batch) -> tuple[Floats, Floats]:
        """(chain,) and (chain, level): times and rates as they count."""
        worth = 1 + STAGE_WORTH * (batch.order >= 0).sum(axis=1)
        if self.goal.speed_weight == 1:
            lacking = np.log2(self.reserves[0] / np.clip(batch.sequences, 1, self.reserves[0]))
            worth = worth * (1 + RESERVE_WORTH * lacking)
        return np.where(batch.ok, batch.token_ms * worth, np.inf), np.where(
            batch.ok[:, None], batch.rates / worth[:, None], 0.0
        )

    def planned(self, batch: Batch, row: int, style: Style) -> PlannedChain:
        token_ms, rates = self.counted(_one(batch, row))
        curve = tuple(zip(batch.running[row].tolist(), rates[0].tolist(), strict=True))
        return PlannedChain(batch.chain(row), style, float(token_ms[0]), curve)

    def values(self, rest: Sequence[PlannedChain], batches: Sequence[Batch]) -> Floats:
        """(candidate,): the score of `rest` with the row's chain of every batch (one or two)."""
        counted = [self.counted(batch) for batch in batches]
        fastest = min((held.token_ms for held in rest), default=float("inf"))
        token_ms = (
            np.minimum(fastest, counted[0][0])
            if len(counted) == 1
            else np.minimum(fastest, np.minimum(counted[0][0], counted[1][0]))
        )
        possible = batches[0].ok if len(batches) == 1 else batches[0].ok & batches[1].ok
        alone = np.where(possible, 1000 / token_ms, 0.0)
        weight = self.goal.speed_weight
        if weight == 1:
            return alone
        users, rates = self.filled(rest)
        if len(batches) == 1:
            others = np.interp(self.users - batches[0].running, users, rates)
            others[batches[0].running > self.users] = -np.inf
            most = np.maximum(counted[0][1] + others, 0.0).max(axis=1)
        else:
            running = batches[0].running[:, :, None] + batches[1].running[:, None, :]
            # Users beyond those there are: their part of the rate is left out.
            part = np.minimum(1.0, self.users / running)
            both = (counted[0][1][:, :, None] + counted[1][1][:, None, :]) * part
            both += np.interp(np.maximum(0.0, self.users - running), users, rates)
            most = both.reshape(len(both), -1).max(axis=1)
            none = np.interp(self.users, users, rates)
            most = np.maximum(most, none)
        most = np.where(possible, most, 0.0)
        return most if weight == 0 else np.asarray(alone**weight * most ** (1 - weight), dtype=np.float64)

    def filled(self, rest: Sequence[PlannedChain]) -> tuple[list[float], list[float]]:
        """Tokens per second of so many users on `rest`, where they add most."""
        gains = []
        for held in rest:
            before = rate = 0.0
            for number, tokens_per_s in held.curve:
                if number > before:
                    gains.append(((tokens_per_s - rate) / (number - before), number - before))
                    before, rate = number, tokens_per_s
        gains.sort(reverse=True)
        users, rates = [0.0], [0.0]
        for gain, width in gains:
            users.append(users[-1] + width)
            rates.append(rates[-1] + gain * width)
            if users[-1] >= self.users:
                break
        return users, rates

    def restyled(self, order: tuple[int, ...]) -> PlannedChain | None:
        """The chain of these nodes, its layers shared out by the rule that suits best."""
        styles = self.styles
        rows = as_rows([order] * len(styles))
        batch = self.timed(rows, np.array([s.level for s in styles]), np.array([s.sequences for s in styles]))
        values = self.values((), [batch])
        best = int(values.argmax())
        return self.planned(batch, best, styles[best]) if batch.ok[best] else None

    def free(self, chains: Sequence[PlannedChain]) -> list[int]:
        taken = {row for held in chains for row in held.chain.order}
        return [row for row in self.useful if row not in taken]


def _one(batch: Batch, row: int) -> Batch:
    at = slice(row, row + 1)
    return Batch(
        batch.order[at],
        batch.counts[at],
        batch.ok[at],
        batch.token_ms[at],
        batch.rates[at],
        batch.running[at],
        batch.sequences[at],
    )


def _spread(found: Batch | None, kept: Ints, order: Ints, counts: Ints, ok: Bools, levels: int) -> Batch:
    """`found` are the rows `kept` of many; the others are not ok."""
    size = len(order)
    all_ok, sequences = np.zeros(size, dtype=bool), np.zeros(size, dtype=np.int64)
    token_ms, rates, running = np.full(size, np.inf), np.zeros((size, levels)), np.ones((size, levels))
    if found is not None:
        all_ok[kept], token_ms[kept], sequences[kept] = found.ok, found.token_ms, found.sequences
        rates[kept], running[kept] = found.rates, found.running
    return Batch(order, counts, all_ok & ok, token_ms, rates, running, sequences)
