"""Why a model is or is not split, in a sentence that figures bear out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from node.plan.costs.model import ModelCost
from node.plan.machines.pool import Pool, Workload
from node.plan.outlook.figures import figure
from node.plan.placement.allocation import Pipeline
from node.plan.placement.chains import as_rows, shared_out, timed
from node.plan.placement.pool_table import PoolTable


def note_on(model: ModelCost, pipelines: Sequence[Pipeline], pool: Pool, workload: Workload) -> str:
    """About the fastest pipeline: alone or split. (Where a split begins to pay is told by `outlook.crossover`.)"""
    fastest = min(pipelines, key=lambda p: p.token_ms)
    names = {node.node_id: node.label for node in pool.nodes}
    token_ms = figure(fastest.token_ms)
    if len(fastest.stages) > 1:
        kinds = "pipeline" if len(pipelines) == 1 else "pipelines"
        longest = max(len(p.stages) for p in pipelines)
        what = f"{len(pipelines)} {kinds} of up to {longest} stages"
        return f"{what}; the fastest gives a token in {token_ms} ms, its share of the prompt included"
    if len(pool.nodes) == 1:
        return "one node holds the whole model"
    alone = fastest.stages[0].node_id
    said = f"not split: {names[alone]} alone gives a token in {token_ms} ms"
    best = _best_pair(model, pool, workload, alone)
    if best is None:
        return f"{said}; no other node has room for a layer beside it"
    other, pair_ms = best
    return f"{said}, {names[alone]} and {names[other]} together in {figure(pair_ms)} ms"


def _best_pair(model: ModelCost, pool: Pool, workload: Workload, alone: str) -> tuple[str, float] | None:
    """Who splits the model best with the node that holds it alone, and what a token takes so."""
    able = [node for node in pool.nodes if not node.barred]
    table = PoolTable(model, able, pool.links, workload)
    one = table.row_of.get(alone)
    if one is None or model.layers < 2:
        return None
    others = [row for row in range(len(able)) if row != one and table.room(1)[row].max() > 0]
    if not others:
        return None
    order = as_rows([pair for row in others for pair in ((one, row), (row, one))])
    leveled = np.repeat([False, True], len(order))
    order = np.concatenate([order, order])
    counts, ok = shared_out(table, order, leveled, np.ones(len(order), dtype=np.int64))
    found = timed(table, order, counts, ok, rates=False)
    if not found.ok.any():
        return None
    best = int(np.where(found.ok, found.token_ms, np.inf).argmin())
    other = next(row for row in order[best].tolist() if row != one)
    return table.nodes[other].node_id, float(found.token_ms[best])
