"""The order of loading and dropping that turns one layout into another, foretold by the rules of `whose_turn`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Literal

from node.plan.costs.model import ModelCost
from node.plan.moving.node_layers import NodeLayers, kept_layers, runs, weights_of
from node.plan.moving.whose_turn import NOBODY, turns
from node.plan.placement.allocation import Stage


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do, after those before it are done."""

    kind: Literal["load", "drop"]
    node_id: str
    start: int
    end: int
    """Layers [start, end)."""
    weight_bytes: int
    """To fetch and load, or to free."""


def layers_of(stages: Iterable[Stage]) -> dict[str, set[int]]:
    """Layers that every node holds."""
    held: dict[str, set[int]] = {}
    for stage in stages:
        held.setdefault(stage.node_id, set()).update(range(stage.start, stage.end))
    return held


def ordered_steps(
    model: ModelCost, before: Sequence[Stage], after: Sequence[Stage], memory: Mapping[str, int], context: int
) -> tuple[Step, ...]:
    """Loads and drops in an order that keeps every layer covered where memory allows.

    Nodes that are not in `memory` are gone: they hold nothing and need do nothing.
    """
    held, wanted = layers_of(before), layers_of(after)
    holdings = {
        node: NodeLayers(node, frozenset(held.get(node, ())), frozenset(wanted.get(node, ())), memory.get(node, 0))
        for node in sorted({*(held.keys() & memory.keys()), *wanted})
    }
    steps: list[Step] = []

    def carry_out(kind: Literal["load", "drop"], node: str, layers: AbstractSet[int]) -> None:
        for run in runs(layers):
            now = holdings[node].held
            then = now | run if kind == "load" else now - run
            size = abs(weights_of(model, then) - weights_of(model, now))
            steps.append(Step(kind, node, min(run), max(run) + 1, size))
            holdings[node] = replace(holdings[node], held=then)

    while (due := turns(model, list(holdings.values()), context)) != NOBODY:
        covered = frozenset[int]().union(*(holding.held for holding in holdings.values()))
        for node, layers in sorted(due.loads.items(), key=lambda load: (load[1] <= covered, load[0])):  # gaps first
            carry_out("load", node, layers)
        for node, layers in due.drops.items():
            carry_out("drop", node, layers)
    kept = kept_layers(holdings.values())
    for holding in sorted(holdings.values(), key=lambda h: (not h.surplus <= kept, h.node_id)):
        carry_out("drop", holding.node_id, holding.surplus)
    return tuple(steps)


def left_out(before: Iterable[Stage], steps: Sequence[Step]) -> list[tuple[int, int]]:
    """Ranges that are held now and that no node holds at some time on the way."""
    held = {node: frozenset(layers) for node, layers in layers_of(before).items()}
    covered = frozenset[int]().union(*held.values())
    out: frozenset[int] = frozenset()
    for step in steps:
        span, now = frozenset(range(step.start, step.end)), held.get(step.node_id, frozenset())
        held[step.node_id] = now | span if step.kind == "load" else now - span
        if step.kind == "drop":
            out |= (covered & span).difference(*held.values())
    return [(min(run), max(run) + 1) for run in runs(out)]
