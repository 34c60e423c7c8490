"""Gradient's Parallax as its paper describes it, with the same live figures as ours.

Phase 1: each region makes its own chains; what is left over, there and in regions that complete none, makes chains
across regions where no region has one, and else joins at the layers that are hosted least. Phase 2: for each request a
dynamic program over (layer, node) with per-layer times that grow with load and with round trips between nodes; any part
of a held range may be used. As published it does not know the way from the tail back to the first stage, nor prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

from node.plan.costs.model import ModelCost
from node.plan.machines.pool import Links, Pool, PoolNode
from node.plan.placement.allocation import Stage
from node.plan.routing.router import Host, Request
from tests.bench.rivals.parallax_chains import best_chains, filled
from tests.bench.rivals.same_memory import capacity


class ParallaxPaper:
    """Regions, left-over nodes on the lightest layers, and a load-aware path for each request."""

    def __init__(self, model: ModelCost) -> None:
        self.model = model
        self._links = Links()

    def place(self, pool: Pool) -> Sequence[Stage]:
        """Chains by region, then one node after another where the least memory hosts a layer."""
        self._links = pool.links
        chains: list[list[PoolNode]] = []
        for region in sorted({node.region for node in pool.nodes}):
            chains += best_chains(self.model, [n for n in pool.nodes if n.region == region])
        if not chains:
            chains = best_chains(self.model, pool.nodes)
        if not chains:
            return ()
        stages = [stage for chain in chains for stage in filled(self.model, chain)]
        used = {node.node_id for chain in chains for node in chain}
        by_id = {node.node_id: node for node in pool.nodes}
        hosted = [0.0] * self.model.layers
        for stage in stages:
            self._host(hosted, by_id[stage.node_id], stage)
        for node in sorted(pool.nodes, key=lambda n: (-capacity(self.model, n), n.node_id)):
            if node.node_id not in used and (joined := self._joined(node, hosted)) is not None:
                self._host(hosted, node, joined)
                stages.append(joined)
        return stages

    def _joined(self, node: PoolNode, hosted: Sequence[float]) -> Stage | None:
        layers = self.model.layers
        start = min(range(layers), key=lambda layer: (hosted[layer], layer))
        end = min(layers, start + capacity(self.model, node, first=start == 0))
        if end == layers:
            end = min(layers, start + capacity(self.model, node, first=start == 0, last=True))
        return Stage(node.node_id, start, end) if end > start else None

    @staticmethod
    def _host(hosted: list[float], node: PoolNode, stage: Stage) -> None:
        for layer in range(stage.start, stage.end):
            hosted[layer] += node.memory_bytes / stage.layers

    def route(self, hosts: Sequence[Host], changed: bool, request: Request) -> Sequence[Stage] | None:
        """The fastest path over layers; among equals one by the request's number."""
        open_to_it = [h for h in hosts if h.kv_free_tokens is None or h.kv_free_tokens >= request.kv_tokens]
        turn = request.spread % max(1, len(open_to_it))
        open_to_it = [*open_to_it[turn:], *open_to_it[:turn]]
        if not open_to_it:
            return None
        ways = [[self._links.rtt(a, b) for a in open_to_it] for b in open_to_it]
        cost: dict[int, float] = {}
        before: list[dict[int, int]] = []
        for layer in range(self.model.layers):
            reached: dict[int, float] = {}
            via: dict[int, int] = {}
            for index, host in enumerate(open_to_it):
                if not host.start <= layer < host.end:
                    continue
                own_ms = host.layer_ms * (1 + host.load)
                if layer == 0:
                    reached[index] = own_ms
                elif cost:
                    way = ways[index]
                    via[index] = min(cost, key=lambda other, way=way: cost[other] + way[other])  # type: ignore[misc]
                    reached[index] = cost[via[index]] + way[via[index]] + own_ms
            cost = reached
            before.append(via)
        if not cost:
            return None
        path = [min(cost, key=lambda index: cost[index])]
        for layer in range(self.model.layers - 1, 0, -1):
            path.append(before[layer][path[-1]])
        return _stages(open_to_it, path[::-1])


def _stages(hosts: Sequence[Host], path: Sequence[int]) -> list[Stage]:
    stages: list[Stage] = []
    for layer, index in enumerate(path):
        node_id = hosts[index].node_id
        if stages and stages[-1].node_id == node_id:
            stages[-1] = Stage(node_id, stages[-1].start, layer + 1)
        else:
            stages.append(Stage(node_id, layer, layer + 1))
    return stages
