"""The objective `share`: a contiguous range for every node, proportional to memory, stable while the nodes stay.

The rule is exo's ring partition, with the ends' extra weights (embedding, LM head) counted, hand-set ranges honoured,
and memory as a hard bound. Shares are rounded by largest remainder, so the result never depends on arrival order.
"""

from __future__ import annotations

from collections.abc import Sequence

from node.errors import BadLayers, DoesNotFit
from node.plan.costs.model import ModelCost
from node.plan.costs.roofline import capacity_of, layer_capacity
from node.plan.machines.missing_memory import Capacity, ends_that_fit, missing_bytes
from node.plan.machines.pool import DRAINS, Links, Pool, PoolNode, Workload
from node.plan.objectives import SHARE, goal_named
from node.plan.placement.allocation import Allocation, Objective, Stage, Standby
from node.plan.placement.around_pins import pin_problem
from node.plan.placement.evaluate import judged
from node.wire.layer_range import layer_range

MOST_BYTES = 2**50
"""A machine with so much holds any model."""

OTHER_MEMORY = 0.1
"""Shares are made anew when a node's memory has changed by more than this part of it."""

KV_TOKENS_PER_STAGE = 2048
"""KV cache that a range must have room for beside its weights: one conversation of that length."""


def cache_tokens(model: ModelCost, objective: Objective, workload: Workload) -> int:
    """KV cache that every layer must have room for under a plan for `objective`."""
    wanted = KV_TOKENS_PER_STAGE if goal_named(objective).by_memory else workload.context
    return min(wanted, model.context_tokens)


def shared(
    model: ModelCost, nodes: Sequence[PoolNode], links: Links, workload: Workload, current: Allocation | None
) -> Allocation:
    """Layers for every node that may serve; what `current` gives them stays while it is right and nobody is new.

    Raises:
        BadLayers: a hand-set range reaches beyond the model, or overfills its node.
        DoesNotFit: all nodes' memory together is too small.
    """
    pool = Pool(tuple(sorted(nodes, key=lambda node: node.node_id)), links)
    able = [node for node in pool.nodes if not node.barred]
    if not able:
        raise DoesNotFit(model.name, model.total_bytes)
    for node in able:
        if node.pinned is not None and (problem := pin_problem(model, node, workload)):
            raise BadLayers(layer_range(*node.pinned), f"{node.label}: {problem}")
    previous = sorted(current.stages(), key=_by_place) if current is not None else []
    counted = {stage.node_id for stage in previous}
    counted |= {each.node_id for each in (current.standby if current is not None else ()) if not each.barred}
    as_shared = current is not None and goal_named(current.objective).by_memory and not _freed(current.pool, able)
    if not as_shared or counted != {node.node_id for node in able} or not still_right(model, able, previous):
        previous = share_layers(model, able, previous)
    holders = {stage.node_id for stage in previous}
    standby = tuple(
        Standby(node.node_id, _why_idle(node, pinned=any(n.pinned for n in able)), barred=bool(node.barred))
        for node in pool.nodes
        if node.node_id not in holders
    )
    note = _note(model, pool.nodes, previous)
    return judged(Allocation(model, pool, workload, SHARE.name, (), (), standby, 0.0, 0.0, note), previous, pool)


def _freed(before: Pool, nodes: Sequence[PoolNode]) -> bool:
    """Whether a range set by hand was taken back, or a node's memory has changed."""
    was = {node.node_id: node for node in before.nodes}
    known = [(was[node.node_id], node) for node in nodes if node.node_id in was]
    return any(
        (old.pinned is not None and new.pinned is None)
        or abs(old.memory_bytes - new.memory_bytes) > OTHER_MEMORY * max(old.memory_bytes, 1)
        for old, new in known
    )


def _why_idle(node: PoolNode, *, pinned: bool) -> str:
    if node.barred:
        return f"{node.label} is given nothing: {node.barred}"
    if pinned:
        return f"{node.label} holds nothing: ranges set by hand, or nodes with more memory, leave it no layer"
    return f"{node.label} has too small a part of the memory for a layer of its own"


def _note(model: ModelCost, nodes: Sequence[PoolNode], stages: Sequence[Stage]) -> str:
    gaps = _gaps(model.layers, stages)
    if not gaps:
        by_hand = any(node.pinned is not None for node in nodes)
        return f"every node {'without a range set by hand ' if by_hand else ''}has layers in proportion to its memory"
    text = ", ".join(layer_range(start, end) for start, end in gaps)
    if any(node.barred == DRAINS for node in nodes):
        return f"layers {text} have no taker by what is set by hand; a node that drains serves them as long as it stays"
    return f"layers {text} are left open by ranges set by hand: nothing can be served"


def _by_place(stage: Stage) -> tuple[int, int, str]:
    return stage.start, stage.end, stage.node_id


def share_layers(model: ModelCost, nodes: Sequence[PoolNode], previous: Sequence[Stage] = ()) -> list[Stage]:
    """Layers for every node, in layer order.

    Nodes that held layers before keep their order along the pipeline; new ones follow by id. With hand-set ranges only
    what these leave open is shared out, and a gap that nobody may take stays a gap. A share may round to nothing.

    Raises:
        BadLayers: a hand-set range reaches beyond the model.
        DoesNotFit: all nodes' memory together is too small; `missing_bytes` says by how much.
    """
    for node in nodes:
        if node.pinned is not None and node.pinned[1] > model.layers:
            start, end = node.pinned
            raise BadLayers(layer_range(start, end), f"the model has {model.layers} layers")
    pinned = [Stage(node.node_id, *node.pinned) for node in nodes if node.pinned is not None]
    free = _in_pipeline_order([node for node in nodes if node.pinned is None], previous)
    gaps = _gaps(model.layers, pinned)
    taken: list[Stage] = []
    if gaps and free:
        for (start, end), takers in zip(gaps, _nodes_per_gap(gaps, free), strict=True):
            taken += _share(model, start, end, takers)
    return sorted([*pinned, *taken], key=_by_place)


def _in_pipeline_order(nodes: Sequence[PoolNode], previous: Sequence[Stage]) -> list[PoolNode]:
    """Nodes by their former place; newcomers behind them, by id."""
    place = {stage.node_id: stage.start for stage in previous}
    return sorted(nodes, key=lambda n: (n.node_id not in place, place.get(n.node_id, 0), n.node_id))


def _room(model: ModelCost, memory_bytes: int, *, first: bool, last: bool) -> int:
    context = min(KV_TOKENS_PER_STAGE, model.context_tokens)
    return layer_capacity(model, memory_bytes, first=first, last=last, context=context)


def _gaps(layers: int, pinned: Sequence[Stage]) -> list[tuple[int, int]]:
    """What hand-set ranges leave open."""
    gaps: list[tuple[int, int]] = []
    reached = 0
    for start, end in [*sorted((a.start, a.end) for a in pinned), (layers, layers)]:
        if start > reached:
            gaps.append((reached, start))
        reached = max(reached, end)
    return gaps


def _nodes_per_gap(gaps: Sequence[tuple[int, int]], nodes: Sequence[PoolNode]) -> list[list[PoolNode]]:
    """Deal nodes to gaps so that each gap's memory grows with its length; the longest gap never goes empty first."""
    dealt: list[list[PoolNode]] = [[] for _ in gaps]
    need = [end - start for start, end in gaps]
    memory = [0] * len(gaps)
    for node in nodes:
        neediest = max(range(len(gaps)), key=lambda i: (need[i] / (memory[i] or 1), -i))
        dealt[neediest].append(node)
        memory[neediest] += node.memory_bytes
    return dealt


def _share(model: ModelCost, start: int, end: int, nodes: Sequence[PoolNode]) -> list[Stage]:
    """Layers [start, end) over `nodes` in order, proportional to memory and within it.

    A node whose share comes out empty is left out and the rest computed again, so that the ends' extra weights are
    counted for those who really hold the ends. Where that leads nowhere, those two take the ends whom they cost least.
    """
    layers, context = end - start, min(KV_TOKENS_PER_STAGE, model.context_tokens)

    def room_of(memory_bytes: int) -> Capacity:
        ends = {"has_first": start == 0, "has_last": end == model.layers}
        return capacity_of(model, memory_bytes, context, most=layers, **ends)

    def counts_of(order: Sequence[PoolNode]) -> list[int] | None:
        last = len(order) - 1
        capacities = [room_of(node.memory_bytes)[(i == 0) + 2 * (i == last)] for i, node in enumerate(order)]
        if sum(capacities) < layers:
            return None
        return proportional_counts(layers, [node.memory_bytes for node in order], capacities)

    if not nodes:
        return []
    order = list(nodes)
    while (counts := counts_of(order)) is not None and 0 in counts:
        order = [node for node, count in zip(order, counts, strict=True) if count]
    if counts is None:
        rooms = [room_of(node.memory_bytes) for node in nodes]
        ends = ends_that_fit(rooms, layers)
        if ends is None:
            raise DoesNotFit(model.name, missing_bytes(rooms, layers, room_of, MOST_BYTES))
        between = [node for i, node in enumerate(nodes) if i not in ends]
        alone = ends[0] == ends[1]
        order = [nodes[ends[0]]] if alone else [nodes[ends[0]], *between, nodes[ends[1]]]
        counts = counts_of(order)
        assert counts is not None
        for edge in (0, -1):  # an end stays where it costs least, though the share may be less than a layer
            if counts[edge] == 0:
                counts[counts.index(max(counts))] -= 1
                counts[edge] = 1
    stages: list[Stage] = []
    for node, count in zip(order, counts, strict=True):
        if count:
            stages.append(Stage(node.node_id, start, start + count))
        start += count
    return stages


def proportional_counts(layers: int, weights: Sequence[int], capacities: Sequence[int]) -> list[int]:
    """Whole numbers that sum to `layers`, proportional to `weights`, none above its capacity.

    Largest remainder, ties to the earlier one; what a full member cannot take goes to the others by the same rule.
    Needs sum(capacities) >= layers.
    """
    counts: dict[int, int] = {}
    while True:  # who is full takes its capacity; each round fills at least one more
        left = layers - sum(counts.values())
        free = [i for i in range(len(weights)) if i not in counts]
        total = sum(weights[i] for i in free)
        quota = {i: left * weights[i] / total if total else left / len(free) for i in free}
        full = {i: capacities[i] for i in free if quota[i] >= capacities[i]}
        if not full:
            break
        counts |= full
    counts |= {i: int(quota[i]) for i in free}
    rest = layers - sum(counts.values())
    for i in sorted(free, key=lambda i: (int(quota[i]) - quota[i], i))[:rest]:
        counts[i] += 1
    return [counts[i] for i in range(len(weights))]


def still_right(model: ModelCost, nodes: Sequence[PoolNode], previous: Sequence[Stage]) -> bool:
    """Whether former ranges are still right for `nodes`: nobody's layers must move.

    They cover the model, fit every memory, honour every hand-set range, and name nobody who is not there.
    """
    by_id = {node.node_id: node for node in nodes}
    if _gaps(model.layers, previous) or any(stage.node_id not in by_id for stage in previous):
        return False
    held = {stage.node_id: (stage.start, stage.end) for stage in previous}
    if any(node.pinned is not None and held.get(node.node_id) != node.pinned for node in nodes):
        return False
    return all(
        by_id[stage.node_id].pinned is not None
        or stage.layers
        <= _room(model, by_id[stage.node_id].memory_bytes, first=stage.start == 0, last=stage.end == model.layers)
        for stage in previous
    )
