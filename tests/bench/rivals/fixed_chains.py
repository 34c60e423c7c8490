"""What schedulers share that lay whole pipelines and send requests along them in turn."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from node.plan.costs.model import ModelCost
from node.plan.machines.pool import PoolNode
from node.plan.placement.allocation import Stage
from node.plan.routing.router import Host, Request


class FixedChains:
    """Pipelines that requests visit in turn."""

    def __init__(self, model: ModelCost) -> None:
        self.model = model
        self.pipelines: list[tuple[Stage, ...]] = []
        self._turn = count()

    def route(self, hosts: Sequence[Host], changed: bool, request: Request) -> Sequence[Stage] | None:
        """The next pipeline that is whole and has room."""
        held = {(h.node_id, h.start, h.end): h for h in hosts}
        for _ in range(len(self.pipelines)):
            pipeline = self.pipelines[next(self._turn) % len(self.pipelines)]
            found = [held.get((s.node_id, s.start, s.end)) for s in pipeline]
            if all(h is not None and (h.kv_free_tokens or 0) >= request.kv_tokens for h in found):
                return pipeline
        return None


def tiled(nodes: Sequence[PoolNode], counts: Sequence[int]) -> tuple[Stage, ...]:
    """Stages one after another."""
    stages, start = [], 0
    for node, layers in zip(nodes, counts, strict=True):
        if layers:
            stages.append(Stage(node.node_id, start, start + layers))
        start += layers
    return tuple(stages)
