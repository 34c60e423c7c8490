"""From who holds what to what it gives: the pipelines that held ranges make, timed and scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from node.plan.machines.pool import Pool, PoolNode
from node.plan.outlook.figures import figure
from node.plan.placement.allocation import Allocation, Objective, Pipeline, Stage
from node.plan.placement.chain import Chain, chain_of_counts
from node.plan.placement.exact_search import score_of
from node.plan.placement.pool_table import PoolTable
from node.plan.routing.disjoint import most_disjoint, route_disjoint
from node.plan.routing.router import Host, Request, route, uncovered

CHAINS_JUDGED = 8
"""Chains over ranges that make no whole pipeline by themselves which are looked for."""


def hosts_of(plan: Allocation, stages: Sequence[Stage], pool: Pool) -> list[Host]:
    """Stages as phase 2 sees them, idle."""
    by_id = {node.node_id: node for node in pool.nodes}
    times: dict[str, float] = {}
    hosts = []
    for stage in stages:
        node = by_id.get(stage.node_id)
        if node is None:
            continue
        if stage.node_id not in times:
            whole = (0, plan.layers)
            table = PoolTable(plan.model, [node], pool.links, plan.objective, plan.workload, whole)
            times[stage.node_id] = table.classes[0].layer_ms
        hosts.append(Host(stage.node_id, stage.start, stage.end, times[stage.node_id], node.region))
    return hosts


def pipelines_of(plan: Allocation, stages: Sequence[Stage], pool: Pool) -> list[Pipeline]:
    """The pipelines among held ranges: those of `plan` that are whole, then node-disjoint chains over the others: one,
    or as many as there are, whichever scores better."""
    time = _Times(plan, pool)
    held = {stage.node_id: stage for stage in stages}
    whole = [p for p in plan.pipelines if all(held.get(s.node_id) == s for s in p.stages)]
    runs = [run for run in (_run_over(plan, p.stages, pool) for p in whole) if len(dict(run)) == len(run)]
    in_whole = {node for run in runs for node, _ in run}
    known = [time.pipeline(run, [held[node] for node, _ in run]) for run in runs]
    hosts = hosts_of(plan, [stage for stage in stages if stage.node_id not in in_whole], pool)
    if not hosts or uncovered(plan.layers, hosts) is not None:
        return best_of(known, plan.objective)
    choices = [best_of(known, plan.objective)] if known else []
    for chains in {1, min(CHAINS_JUDGED, most_disjoint(plan.layers, hosts))}:
        pipelines, used = list(known), set[str]()
        for found in route_disjoint(plan.layers, hosts, pool.links, Request(plan.model.hop_bytes(1)), chains):
            if used.isdisjoint(found.nodes) and len(set(found.nodes)) == len(found.nodes):
                run = [(stage.node_id, stage.layers) for stage in found.stages]
                pipelines.append(time.pipeline(run, [held[node] for node in found.nodes]))
                used.update(found.nodes)
        choices.append(best_of(pipelines, plan.objective))
    return max(choices, key=lambda pipelines: (score_pipelines(pipelines, plan.objective), -len(pipelines)))


def _run_over(plan: Allocation, stages: Sequence[Stage], pool: Pool) -> list[tuple[str, int]]:
    """How many layers each node of a pipeline runs: of layers that two of them hold, the faster one runs them."""
    if sum(stage.layers for stage in stages) == plan.layers:
        return [(stage.node_id, stage.layers) for stage in stages]
    request = Request(plan.model.hop_bytes(1))
    found = route(plan.layers, hosts_of(plan, stages, pool), pool.links, request)
    return [(stage.node_id, stage.layers) for stage in found.stages]


def judged(plan: Allocation, stages: Sequence[Stage], pool: Pool) -> Allocation:
    """`plan` with these ranges held instead: its pipelines found, the rest as replicas, its score told."""
    pipelines = pipelines_of(plan, stages, pool)
    used = {stage.node_id for pipeline in pipelines for stage in pipeline.stages}
    replicas = [stage for stage in stages if stage.node_id not in used]
    score = score_pipelines(pipelines, plan.objective)
    return replace(
        plan,
        pool=Pool(tuple(sorted(pool.nodes, key=lambda node: node.node_id)), pool.links),
        pipelines=tuple(sorted(pipelines, key=lambda p: (p.token_ms, p.stages[0].node_id))),
        replicas=tuple(sorted(replicas, key=lambda s: (s.start, s.end, s.node_id))),
        score=score,
        bound=max(score, plan.bound),
        note=note_on(pipelines, pool.nodes) if pipelines and plan.objective != "share" else plan.note,
    )


def best_of(pipelines: Sequence[Pipeline], objective: Objective) -> list[Pipeline]:
    """For balanced: as many of the fastest as score best together. Else all."""
    ordered = sorted(pipelines, key=lambda p: (p.token_ms, p.stages[0].node_id))
    if objective != "balanced" or not ordered:
        return ordered
    most = max(range(1, len(ordered) + 1), key=lambda k: (score_pipelines(ordered[:k], objective), -k))
    return ordered[:most]


class _Times:
    """Times pipelines as phase 1 does: by the users of the whole pool, of whom each has its part."""

    def __init__(self, plan: Allocation, pool: Pool) -> None:
        self._table = PoolTable(plan.model, pool.nodes, pool.links, plan.objective, plan.workload, (0, plan.layers))
        self._class_of = {node.node_id: c for c, kind in enumerate(self._table.classes) for node in kind.members}

    def pipeline(self, run: Sequence[tuple[str, int]], held: Sequence[Stage]) -> Pipeline:
        """One that runs so many layers on each node in turn; `held` is what these hold."""
        counts = tuple(layers for _, layers in run)
        chain = chain_of_counts(self._table, [self._class_of[node] for node, _ in run], list(counts))
        return Pipeline(tuple(held), chain.token_ms, chain.tokens_per_s, chain.sequences, counts)


def score_pipelines(pipelines: Sequence[Pipeline], objective: Objective) -> float:
    """What the objective maximises; 0 for none."""
    chains = [Chain((), (), p.token_ms, p.tokens_per_s, p.sequences) for p in pipelines]
    return score_of(chains, objective)


def note_on(pipelines: Sequence[Pipeline], nodes: Sequence[PoolNode]) -> str:
    """Why the model is or is not split."""
    fastest = min(pipelines, key=lambda p: p.token_ms)
    names = {node.node_id: node.label for node in nodes}
    if len(fastest.stages) == 1:
        if len(nodes) == 1:
            return "one node holds the whole model"
        name = names[fastest.stages[0].node_id]
        return f"not split: {name} alone gives a token in {figure(fastest.token_ms)} ms, faster than any chain of nodes"
    kinds = "pipeline" if len(pipelines) == 1 else "pipelines"
    longest = max(len(p.stages) for p in pipelines)
    token_ms = figure(fastest.token_ms)
    what = f"{len(pipelines)} {kinds} of up to {longest} stages"
    return f"{what}; the fastest gives a token in {token_ms} ms, its share of the prompt included"
