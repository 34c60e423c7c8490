"""The result of phase 1: which node holds which layers, in pipelines and replicas, and who stands by and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from node.plan.costs.model import ModelCost
from node.plan.machines.pool import Pool, PoolNode, Workload
from node.plan.objectives import Curve
from node.wire.plans import Assignment
from node.wire.plans import Objective as Objective


@dataclass(frozen=True, slots=True)
class Stage:
    """Layers [start, end) on one node."""

    node_id: str
    start: int
    end: int

    @property
    def layers(self) -> int:
        """How many."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Stages that tile the model, on nodes of their own."""

    stages: tuple[Stage, ...]
    token_ms: float
    """One user's mean time per generated token, its share of the prompt's time included."""
    tokens_per_s: float
    """Of as many users together as the KV cache has room for, at most as many as there are."""
    sequences: int
    """Sequences of the workload's length that the KV cache has room for: the least of its stages."""
    shared_out: tuple[int, ...] = ()
    """Layers that each stage runs, where ranges overlap."""
    curve: Curve = ()
    """(users, tokens per second of them together): what `tokens_per_s` is of fewer users."""

    @property
    def ran(self) -> tuple[int, ...]:
        """Layers that each stage runs: what it holds, less what another one runs."""
        return self.shared_out or tuple(stage.layers for stage in self.stages)


@dataclass(frozen=True, slots=True)
class Standby:
    """A node that holds nothing, and why, in a sentence."""

    node_id: str
    reason: str
    barred: bool = False
    """By hand or by a failure, not by the plan's own choice."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """Phase 1's plan. Equal pools give equal allocations, whatever their order."""

    model: ModelCost
    pool: Pool
    """Nodes by id, and their links."""
    workload: Workload
    """What it was made for."""
    objective: Objective
    pipelines: tuple[Pipeline, ...]
    replicas: tuple[Stage, ...]
    """Further copies of layers: left-over nodes, and ranges set by hand."""
    standby: tuple[Standby, ...]
    score: float
    """What its pipelines are worth to the objective, in tokens per second (`node.plan.objectives`)."""
    bound: float
    """No disjoint pipelines on these nodes score higher, whatever their layers and KV room."""
    note: str
    """What a person should know about the choice, in a sentence."""

    @property
    def layers(self) -> int:
        """Of the model."""
        return self.model.layers

    @property
    def gap(self) -> float:
        """How far the score may be from the best possible, as a fraction at most; 0 is proven optimal."""
        return max(0.0, 1 - self.score / self.bound) if self.bound > 0 else 0.0

    def node(self, node_id: str) -> PoolNode:
        """The pool's node of that id."""
        return next(node for node in self.pool.nodes if node.node_id == node_id)

    def stages(self) -> Iterator[Stage]:
        """Every held range."""
        for pipeline in self.pipelines:
            yield from pipeline.stages
        yield from self.replicas

    def range_of(self, node_id: str) -> Stage | None:
        """What `node_id` holds, or None."""
        return next((stage for stage in self.stages() if stage.node_id == node_id), None)

    def assignments(self) -> tuple[Assignment, ...]:
        """As it travels: every held range in layer order; replicas are ranges that cover the same layers."""
        held = [Assignment(stage.node_id, stage.start, stage.end) for stage in self.stages()]
        return tuple(sorted(held, key=lambda a: (a.start, a.end, a.node_id)))
