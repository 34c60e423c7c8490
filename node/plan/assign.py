"""Layer assignment: contiguous ranges, proportional to memory, stable while the members stay the same.

The rule is exo's ring partition, with the ends' extra weights (embedding, LM head) counted, hand-set ranges honoured,
and memory as a hard bound. Shares are rounded by largest remainder, so the result never depends on arrival order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from node.errors import BadLayers, DoesNotFit
from node.wire.ids import NodeId
from node.wire.models import ModelFacts
from node.wire.plans import Assignment

KV_TOKENS_PER_STAGE = 2048
"""KV cache that a range must have room for beside its weights: one conversation of that length."""


@dataclass(frozen=True, slots=True)
class Member:
    """What an assignment must know about a node."""

    node_id: NodeId
    memory_bytes: int
    """For weights and KV cache; already divided among the nodes of one machine."""
    pinned: tuple[int, int] | None = None
    """Layers [start, end) set by hand."""


def assign_layers(
    model: str, facts: ModelFacts, members: Sequence[Member], previous: Sequence[Assignment] = ()
) -> tuple[Assignment, ...]:
    """Layers for every member, in layer order.

    Members that were assigned before keep their order along the pipeline; new ones follow by id. With hand-set ranges
    only what these leave open is shared out, and a gap that nobody may take stays a gap. A member whose share rounds to
    nothing gets none.

    Raises:
        BadLayers: a hand-set range reaches beyond the model.
        DoesNotFit: all members' memory together is too small; `missing_bytes` says by how much.
    """
    for member in members:
        if member.pinned is not None and member.pinned[1] > facts.layers:
            start, end = member.pinned
            raise BadLayers(f"{start}:{end}", f"the model has {facts.layers} layers")
    pinned = [Assignment(m.node_id, *m.pinned) for m in members if m.pinned is not None]
    free = in_pipeline_order([m for m in members if m.pinned is None], previous)
    gaps = _gaps(facts.layers, pinned)
    if not gaps or not free:
        return tuple(sorted(pinned, key=lambda a: (a.start, a.end, a.node_id)))
    shared: list[Assignment] = []
    for (start, end), takers in zip(gaps, _members_per_gap(gaps, free), strict=True):
        shared += _share(model, facts, start, end, takers)
    return tuple(sorted([*pinned, *shared], key=lambda a: (a.start, a.end, a.node_id)))


def in_pipeline_order(members: Sequence[Member], previous: Sequence[Assignment]) -> list[Member]:
    """Members by their former place; newcomers behind them, by id."""
    place = {assignment.node_id: assignment.start for assignment in previous}
    return sorted(members, key=lambda m: (m.node_id not in place, place.get(m.node_id, 0), m.node_id))


def layer_capacity(facts: ModelFacts, memory_bytes: int, *, first: bool, last: bool) -> int:
    """Layers that fit into `memory_bytes` with their KV cache, beside the embedding and head of an end stage."""
    ends = (facts.embedding_bytes if first else 0) + (facts.head_bytes if last else 0)
    per_layer = facts.layer_bytes + KV_TOKENS_PER_STAGE * facts.kv_bytes_per_token_layer
    return max(0, (memory_bytes - ends) // per_layer)


def _gaps(layers: int, pinned: Sequence[Assignment]) -> list[tuple[int, int]]:
    """What hand-set ranges leave open."""
    gaps: list[tuple[int, int]] = []
    reached = 0
    for start, end in [*sorted((a.start, a.end) for a in pinned), (layers, layers)]:
        if start > reached:
            gaps.append((reached, start))
        reached = max(reached, end)
    return gaps


def _members_per_gap(gaps: Sequence[tuple[int, int]], members: Sequence[Member]) -> list[list[Member]]:
    """Deal members to gaps so that each gap's memory grows with its length; the longest gap never goes empty first."""
    dealt: list[list[Member]] = [[] for _ in gaps]
    need = [end - start for start, end in gaps]
    memory = [0] * len(gaps)
    for member in members:
        neediest = max(range(len(gaps)), key=lambda i: (need[i] / (memory[i] or 1), -i))
        dealt[neediest].append(member)
        memory[neediest] += member.memory_bytes
    return dealt


def _share(model: str, facts: ModelFacts, start: int, end: int, members: Sequence[Member]) -> list[Assignment]:
    """Layers [start, end) over `members` in order, proportional to memory and within it.

    A member whose share comes out empty is left out and the rest computed again, so that the ends' extra weights are
    counted for those who really hold the ends.
    """
    if not members:
        return []
    capacities = [
        layer_capacity(
            facts,
            member.memory_bytes,
            first=start == 0 and index == 0,
            last=end == facts.layers and index == len(members) - 1,
        )
        for index, member in enumerate(members)
    ]
    layers = end - start
    missing = layers - sum(capacities)
    if missing > 0:
        per_layer = facts.layer_bytes + KV_TOKENS_PER_STAGE * facts.kv_bytes_per_token_layer
        raise DoesNotFit(model, missing * per_layer)
    counts = proportional_counts(layers, [m.memory_bytes for m in members], capacities)
    if 0 in counts:
        return _share(model, facts, start, end, [m for m, count in zip(members, counts, strict=True) if count])
    assignments: list[Assignment] = []
    for member, count in zip(members, counts, strict=True):
        assignments.append(Assignment(member.node_id, start, start + count))
        start += count
    return assignments


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


def still_holds(facts: ModelFacts, members: Sequence[Member], previous: Sequence[Assignment]) -> bool:
    """Whether former assignments are still right for `members`: nobody's layers must move.

    They cover the model, fit every memory, honour every hand-set range, and name nobody who is not there.
    """
    by_id = {member.node_id: member for member in members}
    covered = {layer for a in previous for layer in range(a.start, a.end)}
    if len(covered) < facts.layers or any(a.id not in by_id for a in previous):
        return False
    held = {a.id: (a.start, a.end) for a in previous}
    if any(member.pinned is not None and held.get(member.node_id) != member.pinned for member in members):
        return False
    return all(
        by_id[a.id].pinned is not None
        or a.end - a.start
        <= layer_capacity(facts, by_id[a.id].memory_bytes, first=a.start == 0, last=a.end == facts.layers)
        for a in previous
    )
