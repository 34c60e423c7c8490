"""The order of loading and dropping that turns one layout into another: make before break.

A node first loads what is new to it beside what it holds. Where memory is too short for both, it first drops layers
that others have ready; only when nothing else is left does a drop uncover a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from node.plan.allocation import Stage
from node.plan.model_cost import ModelCost


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


def layers_of(stages: Sequence[Stage]) -> dict[str, set[int]]:
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
    held = {node: layers for node, layers in layers_of(before).items() if node in memory}
    wanted = layers_of(after)
    loads = [(node, run) for node in sorted(wanted) for run in _runs(wanted[node] - held.get(node, set()))]
    drops = [(node, run) for node in sorted(held) for run in _runs(held[node] - wanted.get(node, set()))]
    hosts = [0] * model.layers
    for layers in held.values():
        for layer in layers:
            hosts[layer] += 1
    cache = model.kv_layer_bytes(context)
    used = {node: _bytes(model, layers) + len(layers) * cache for node, layers in held.items()}
    steps: list[Step] = []
    while loads or drops:
        fitting = [
            (min(hosts[i] for i in run), node, run)
            for node, run in loads
            if used.get(node, 0) + _bytes(model, run) + len(run) * cache <= memory.get(node, 0)
            or not any(other == node for other, _ in drops)
        ]
        if fitting:
            _, node, run = min(fitting, key=lambda item: (item[0], item[1], min(item[2])))
            loads.remove((node, run))
            kind, sign = "load", 1
        else:
            # Drops that uncover nothing come first; those that make room for a load before the rest.
            waiting = {node for node, _ in loads}
            node, run = min(
                drops, key=lambda d: (sum(hosts[i] < 2 for i in d[1]) > 0, d[0] not in waiting, d[0], min(d[1]))
            )
            drops.remove((node, run))
            kind, sign = "drop", -1
        for layer in run:
            hosts[layer] += sign
        size = _bytes(model, run)
        used[node] = used.get(node, 0) + sign * (size + len(run) * cache)
        steps.append(Step("load" if kind == "load" else "drop", node, min(run), max(run) + 1, size))
    return tuple(steps)


def _runs(layers: set[int]) -> list[frozenset[int]]:
    """Neighbouring layers together."""
    runs: list[set[int]] = []
    for layer in sorted(layers):
        if runs and layer - 1 in runs[-1]:
            runs[-1].add(layer)
        else:
            runs.append({layer})
    return [frozenset(run) for run in runs]


def _bytes(model: ModelCost, layers: set[int] | frozenset[int]) -> int:
    return sum(model.range_bytes(min(run), max(run) + 1) for run in _runs(set(layers)))
