"""Petals: every server takes the window of blocks that is served worst; clients take the fastest path of servers.

From its `block_selection` and `sequence_manager`: rates of servers add up per block, a server moves where that makes
the worst-served block a third better (balance quality 0.75), a path uses each server to the end of its range, and pings
break ties. Embedding and LM head stay with the client.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from node.plan.costs.model import ModelCost
from node.plan.costs.roofline import decode_cost
from node.plan.machines.pool import Links, Pool, PoolNode
from node.plan.placement.allocation import Stage
from node.plan.routing.router import Host, Request
from tests.bench.rivals.same_memory import CONTEXT, capacity

BALANCE_QUALITY = 0.75
OVERHEAD_MS = 18.0
"""Of every server on a path, in Petals' own figures; it makes clients prefer few servers."""
EPSILON = 1e-3


class Petals:
    """Swarm of servers that know rates, clients that know pings."""

    ends_at_client = True

    def __init__(self, model: ModelCost) -> None:
        self.model = model
        self._links = Links()
        self._held: dict[str, Stage] = {}

    def place(self, pool: Pool) -> Sequence[Stage]:
        """Servers that hold something keep it, then each new one joins, then each looks whether it should move."""
        self._links = pool.links
        nodes = {node.node_id: node for node in sorted(pool.nodes, key=lambda n: n.node_id)}
        self._held = {n: s for n, s in self._held.items() if n in nodes}
        for node in nodes.values():
            width = min(self.model.layers, capacity(self.model, node))
            if node.node_id not in self._held and width:
                self._held[node.node_id] = _window(self._rates(nodes), node.node_id, width)
        for node_id in sorted(self._held):
            if self._should_move(nodes, node_id):
                own = self._held.pop(node_id)
                self._held[node_id] = _window(self._rates(nodes), node_id, own.layers)
        return list(self._held.values())

    def _rate(self, node: PoolNode, width: int) -> float:
        """Requests per second through half of its blocks on average."""
        layer_ms = decode_cost(self.model, 1, CONTEXT).layer_ms(node)
        return 1000 / layer_ms / ((width + 1) / 2)

    def _rates(self, nodes: dict[str, PoolNode], held: dict[str, Stage] | None = None) -> list[float]:
        rates = [0.0] * self.model.layers
        for node_id, stage in sorted((self._held if held is None else held).items()):
            for layer in range(stage.start, stage.end):
                rates[layer] += self._rate(nodes[node_id], stage.layers)
        return rates

    def _should_move(self, nodes: dict[str, PoolNode], node_id: str) -> bool:
        """Whether all servers, moving as they like after it, would serve the worst block that much better."""
        now = min(self._rates(nodes))
        others = {n: s for n, s in self._held.items() if n != node_id}
        if now > EPSILON and min(self._rates(nodes, others)) <= 0:
            return False
        trial = dict(self._held)
        for mover in [node_id, *random.Random(0).sample(sorted(others), len(others))]:
            own = trial.pop(mover)
            trial[mover] = _window(self._rates(nodes, trial), mover, own.layers)
        if trial[node_id] == self._held[node_id]:
            return False
        then = min(self._rates(nodes, trial))
        return then > EPSILON and now / then < BALANCE_QUALITY - EPSILON

    def route(self, hosts: Sequence[Host], changed: bool, request: Request) -> Sequence[Stage] | None:
        """The fastest path by unloaded times; pings, and so paths, differ a little from one client to the next."""
        free = [h for h in hosts if h.kv_free_tokens is None or h.kv_free_tokens >= request.kv_tokens]
        pings = random.Random(request.spread)
        free.sort(key=lambda h: (h.end, h.node_id))
        noise = [1 + pings.uniform(0, 0.02) for _ in free]
        best: list[tuple[float, list[Stage]] | None] = [None] * len(free)
        for i, host in enumerate(free):
            if host.start == 0:
                best[i] = (OVERHEAD_MS + host.layer_ms * host.end * noise[i], [Stage(host.node_id, 0, host.end)])
            for j in range(i):
                before, earlier = best[j], free[j]
                if before is None or not host.start <= earlier.end < host.end:
                    continue
                way_ms = self._links.rtt(earlier, host) / 2 + OVERHEAD_MS
                cost = before[0] + way_ms + host.layer_ms * (host.end - earlier.end) * noise[i]
                known = best[i]
                if known is None or cost < known[0]:
                    best[i] = (cost, [*before[1], Stage(host.node_id, earlier.end, host.end)])
        whole = [b for b, host in zip(best, free, strict=True) if b is not None and host.end == self.model.layers]
        return min(whole, key=lambda b: b[0])[1] if whole else None


def _window(rates: Sequence[float], node_id: str, width: int) -> Stage:
    """The `width` blocks whose rates, least first, are the least."""
    start = min(range(len(rates) - width + 1), key=lambda i: (sorted(rates[i : i + width]), i))
    return Stage(node_id, start, start + width)
