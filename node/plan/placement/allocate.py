"""Phase 1: which node holds which layers.

    Z(k) = k^alpha / (T_comp + (s*/k)·r_RTT)

is the published score of k pipelines that need s* nodes. Here T_comp and r are not one figure for all: a chain's time
is summed over its own stages and hops, so that Z(k) = k^alpha / mean time, and the k chains of the least total time
take the place of s*(k). alpha is 0 for one user's latency, 1 for the balanced choice; throughput adds up tokens per
second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from node.errors import BadLayers, BadPool, DoesNotFit
from node.plan.costs.model import ModelCost
from node.plan.machines.pool import Links, Pool, PoolNode, Workload
from node.plan.placement.allocation import Allocation, Objective, Pipeline, Stage, Standby
from node.plan.placement.around_pins import around_pins
from node.plan.placement.by_memory import shared
from node.plan.placement.chain import Chain, build_chain, capacities, chain_of_counts
from node.plan.placement.evaluate import note_on, score_pipelines
from node.plan.placement.exact_search import MOST_STATES, best_partition, score_of, state_count
from node.plan.placement.large_pools import good_partition, upper_bound
from node.plan.placement.pool_table import PoolTable
from node.plan.placement.replicas import TOO_SLOW, Spares

KEEP = 0.1
"""The plan in force stays while a new one would score at most this much better."""
SLOWER = 3.0
"""Where latency counts, a further pipeline may take this many times the best one's time."""
ROOM_WORTH = 1.15
"""A plan with KV room for fewer users must score this much better to be preferred."""
REORDER = 0.03
"""A chain may be this much slower for its nodes to keep the order in which they hold layers now."""

RESERVED: dict[Objective, int] = {"latency": 4, "balanced": 16, "throughput": 16}
"""Sequences that every chain has KV room for, where memory allows."""

DEFAULT_WORKLOAD = Workload()


def allocate(
    model: ModelCost,
    nodes: Sequence[PoolNode],
    links: Links,
    objective: Objective = "balanced",
    current: Allocation | None = None,
    workload: Workload = DEFAULT_WORKLOAD,
) -> Allocation:
    """The plan for a pool. For up to twelve nodes proven optimal among pipelines with KV room for several users whose
    layers are shared out by `chain.share_out` (for throughput within `gap`); good beyond.

    `current` is the plan in force: it stays while nothing better than KEEP is found, and equal nodes go on with what
    they hold. Nodes with a range set by hand hold exactly that.

    Raises:
        BadPool: two nodes have one id.
        BadLayers: a range set by hand reaches beyond the model, or overfills its node.
        DoesNotFit: no chain of these nodes holds the model; says how much memory is missing.
    """
    _check(model, nodes)
    if objective == "share":
        return shared(model, nodes, links, workload, current)
    free = [node for node in nodes if not node.barred and node.pinned is None]
    pinned = [node for node in nodes if not node.barred and node.pinned is not None]
    pipelines: list[Pipeline] = []
    if pinned:
        chain, used = around_pins(model, pinned, free, links, objective, workload)
        pipelines.append(chain)
        free = [node for node in free if node.node_id not in used]
    score = bound = 0.0
    table, chains, bound = _with_room_for_users(model, free, links, objective, workload)
    score = score_of(chains, objective)
    if not chains and not pipelines:
        raise DoesNotFit(model.name, table.missing_bytes)
    found = realise(table, chains, current)
    kept = _still_good(model, table, nodes, current, score) if current is not None and not pinned else None
    if kept is not None:
        found, score = list(kept), score_pipelines(kept, objective)
    pipelines += found
    if pinned:
        score = bound = score_pipelines(pipelines, objective)
    used = {stage.node_id for pipeline in pipelines for stage in pipeline.stages}
    beside = _overflow(table, [node for node in free if node.node_id not in used], pipelines, current)
    replicas, standby = _place_spares(model, nodes, links, workload, pipelines, pinned, beside, current)
    return Allocation(
        model,
        Pool(tuple(sorted(nodes, key=lambda node: node.node_id)), links),
        workload,
        objective,
        tuple(sorted(pipelines, key=lambda p: (p.token_ms, p.stages[0].node_id))),
        replicas,
        standby,
        score,
        max(bound, score),
        note_on(pipelines, nodes),
    )


def best_chains(table: PoolTable) -> tuple[list[Chain], float]:
    """Disjoint chains and the bound on their score: by exhaustive search where the pool is small, else by clusters."""
    if not table.classes:
        return [], 0.0
    if state_count(table) <= MOST_STATES:
        return best_partition(table)
    return good_partition(table)


def _with_room_for_users(
    model: ModelCost, nodes: Sequence[PoolNode], links: Links, objective: Objective, workload: Workload
) -> tuple[PoolTable, list[Chain], float]:
    """Chains with KV room for several users each; for fewer where that makes much better chains, or the only ones."""

    def table_for(sequences: int) -> PoolTable:
        return PoolTable(model, nodes, links, objective, workload, (0, model.layers), sequences)

    bare = table_for(1)
    most = upper_bound(bare) if bare.classes else 0.0
    sequences = max(RESERVED[objective], workload.users if objective != "throughput" else 1)
    best: tuple[PoolTable, list[Chain], float] = (bare, [], 0.0)
    while most > 0:
        table = bare if sequences == 1 else table_for(sequences)
        chains, bound = best_chains(table)
        score = score_of(chains, objective)
        if score > score_of(best[1], objective) * ROOM_WORTH:
            best = table, _worth_waiting_for(chains, objective), bound
        enough = state_count(table) > MOST_STATES  # in a large pool some nodes always have the room that others lack
        if sequences == 1 or score * ROOM_WORTH >= most or (chains and enough):
            break
        # Throughput's score counts the room, so that it has to be asked only once more, without a claim to any.
        sequences = 1 if objective == "throughput" else max(1, sequences // 4)
    chosen, picked, bound = best
    return chosen, picked, max(bound, most) if objective == "throughput" and sequences > 1 else bound


def _worth_waiting_for(chains: list[Chain], objective: Objective) -> list[Chain]:
    """For one user's latency, not those that take several times the best's time: their nodes do better as replicas."""
    if objective != "latency" or not chains:
        return chains
    best_ms = min(chain.token_ms for chain in chains)
    return [chain for chain in chains if chain.token_ms <= SLOWER * best_ms]


def _overflow(
    table: PoolTable, left: Sequence[PoolNode], pipelines: Sequence[Pipeline], current: Allocation | None
) -> list[Stage]:
    """Whole chains of nodes that the score has no use for: slower ones, that serve when the better are busy."""
    if not pipelines or sum(node.memory_bytes for node in left) < table.model.total_bytes:
        return []
    rest = PoolTable(table.model, left, table.links, table.objective, table.workload, (0, table.layers), 1)
    best_ms = min(pipeline.token_ms for pipeline in pipelines)
    chains = [chain for chain in good_partition(rest)[0] if chain.token_ms <= TOO_SLOW * best_ms]
    return [stage for pipeline in realise(rest, chains, current) for stage in pipeline.stages]


def realise(table: PoolTable, chains: Sequence[Chain], current: Allocation | None) -> list[Pipeline]:
    """Chains of classes as pipelines of nodes: of equal nodes the one that holds most of the range now, then by id."""
    held = {stage.node_id: stage for stage in current.stages()} if current is not None else {}
    free = [list(kind.members) for kind in table.classes]
    pipelines = []
    for chosen_chain in chains:
        chain = _as_held(table, chosen_chain, held) if held else chosen_chain
        stages, start = [], 0
        for c, layers in zip(chain.order, chain.counts, strict=True):
            end = start + layers
            chosen = free[c][0]
            if held and len(free[c]) > 1:
                chosen = min(free[c], key=lambda node: (-_overlap(held.get(node.node_id), start, end), node.node_id))
            free[c].remove(chosen)
            stages.append(Stage(chosen.node_id, start, end))
            start = end
        pipelines.append(Pipeline(tuple(stages), chain.token_ms, chain.tokens_per_s, chain.sequences))
    return pipelines


def _as_held(table: PoolTable, chain: Chain, held: Mapping[str, Stage]) -> Chain:
    """The same nodes in the order in which they hold layers now, where that costs little: less is to be loaded."""
    places = {c: [held[n.node_id].start for n in table.classes[c].members if n.node_id in held] for c in chain.order}
    if any(not starts for starts in places.values()):
        known = [start for starts in places.values() for start in starts]
        if not known:
            return chain
    order = sorted(chain.order, key=lambda c: min(places[c], default=table.layers))
    again = build_chain(table, order)
    return again if again is not None and again.token_ms <= chain.token_ms * (1 + REORDER) else chain


def _overlap(stage: Stage | None, start: int, end: int) -> int:
    return max(0, min(stage.end, end) - max(stage.start, start)) if stage is not None else 0


def _check(model: ModelCost, nodes: Sequence[PoolNode]) -> None:
    seen: set[str] = set()
    for node in nodes:
        if node.node_id in seen:
            raise BadPool(node.label, "name", "two nodes have this name")
        seen.add(node.node_id)
        if node.pinned is not None and node.pinned[1] > model.layers:
            raise BadLayers(f"{node.pinned[0]}:{node.pinned[1]}", f"{node.label}: the model has {model.layers} layers")


def _still_good(
    model: ModelCost, table: PoolTable, nodes: Sequence[PoolNode], current: Allocation, best: float
) -> tuple[Pipeline, ...] | None:
    """The pipelines in force, timed anew, when they still stand and score within KEEP of `best`."""
    if current.layers != model.layers or not current.pipelines:
        return None
    of_member = {node.node_id: c for c, kind in enumerate(table.classes) for node in kind.members}
    timed: list[Pipeline] = []
    for pipeline in current.pipelines:
        order = [of_member.get(stage.node_id, -1) for stage in pipeline.stages]
        if -1 in order or [s.start for s in pipeline.stages] != [0, *(s.end for s in pipeline.stages[:-1])]:
            return None
        chain = build_chain(table, order)
        if chain is None:
            return None
        if chain.counts != tuple(stage.layers for stage in pipeline.stages):
            chain = _timed_as_held(table, chain, pipeline)
            if chain is None:
                return None
        timed.append(
            replace(pipeline, token_ms=chain.token_ms, tokens_per_s=chain.tokens_per_s, sequences=chain.sequences)
        )
    return tuple(timed) if score_pipelines(timed, current.objective) * (1 + KEEP) >= best else None


def _timed_as_held(table: PoolTable, chain: Chain, pipeline: Pipeline) -> Chain | None:
    """`chain` with the layers that are held rather than those that would be best; None when they no longer fit."""
    counts = [stage.layers for stage in pipeline.stages]
    room = capacities(table, chain.order)
    if any(layers > most for layers, most in zip(counts, room, strict=True)):
        return None
    return chain_of_counts(table, chain.order, counts)


def _place_spares(
    model: ModelCost,
    nodes: Sequence[PoolNode],
    links: Links,
    workload: Workload,
    pipelines: Sequence[Pipeline],
    pinned: Sequence[PoolNode],
    beside: Sequence[Stage],
    current: Allocation | None,
) -> tuple[tuple[Stage, ...], tuple[Standby, ...]]:
    used = {stage.node_id for pipeline in pipelines for stage in pipeline.stages}
    replicas = [
        Stage(node.node_id, *node.pinned) for node in pinned if node.pinned is not None and node.node_id not in used
    ]
    replicas += beside
    used |= {stage.node_id for stage in replicas}
    held = [stage for pipeline in pipelines for stage in pipeline.stages] + replicas
    best_ms = min((pipeline.token_ms for pipeline in pipelines), default=0.0)
    spares = Spares(model, held, nodes, links, workload, best_ms)
    before = {stage.node_id: stage for stage in current.stages()} if current is not None else {}
    left = [node for node in nodes if node.node_id not in used]
    left.sort(key=lambda node: (node.node_id not in before, -node.memory_bytes, -node.bandwidth, node.node_id))
    standby: list[Standby] = []
    for node in left:
        placed = spares.place(node, before.get(node.node_id))
        if isinstance(placed, Stage):
            replicas.append(placed)
        else:
            standby.append(placed)
    replicas.sort(key=lambda stage: (stage.start, stage.end, stage.node_id))
    return tuple(replicas), tuple(sorted(standby, key=lambda s: s.node_id))
