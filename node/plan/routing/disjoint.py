"""k chains that share no node, by a flow of least cost.

Let every chain leave a node only at the end of what it holds. Then k disjoint chains exist exactly where every layer
has k nodes: when a chain's node ends, k - 1 others are in use there, none that holds the next layer was used before, so
one of the k that hold it is free. The network has an arc from host g to host h where h holds the layer at which g ends,
worth the hop and h's time from there to its own end; every host lets one chain through. (The way back, and the slowest
stage of a long prompt, are left to the second step.) Successive shortest paths with
potentials make the flow, of least cost among chains of that kind. Then each chain in turn is routed anew over its own
nodes and those that no other chain uses, handovers anywhere, as long as that makes them cheaper: good, not proven best.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from node.plan.machines.pool import Links
from node.plan.routing.hosts import PLAIN, Host, Request, usable
from node.plan.routing.router import Route, route

ROUNDS = 8
"""In which chains exchange nodes with the idle ones; two are usual."""


def route_disjoint(
    layers: int,
    hosts: Sequence[Host],
    links: Links,
    request: Request = PLAIN,
    k: int = 2,
) -> tuple[Route, ...]:
    """As many node-disjoint chains as there are, `k` at most, the cheapest first; for one chain the cheapest there is.

    Raises:
        NoRoute: there is not even one.
    """
    if k == 1:
        return (route(layers, hosts, links, request),)
    able = _one_range_each(usable(layers, hosts, request))
    chains = _Flow(layers, able, links, request).chains(k)
    routes = [route(layers, chain, links, request) for chain in chains]
    if len(routes) < 2:
        return (route(layers, hosts, links, request),)
    return tuple(sorted(_improved(layers, hosts, links, request, routes), key=lambda r: (r.token_ms, r.nodes)))


def _improved(
    layers: int, hosts: Sequence[Host], links: Links, request: Request, routes: Sequence[Route]
) -> list[Route]:
    """Each chain over all nodes that no other one uses, until none gets cheaper."""
    found = list(routes)
    for _ in range(ROUNDS):
        before = sum(each.token_ms for each in found)
        for i in sorted(range(len(found)), key=lambda i: -found[i].token_ms):
            others = frozenset(node for j, each in enumerate(found) if j != i for node in each.nodes)
            found[i] = route(layers, hosts, links, replace(request, avoid=request.avoid | others))
        if sum(each.token_ms for each in found) >= before * (1 - 1e-9):
            break
    return found


def most_disjoint(layers: int, hosts: Sequence[Host]) -> int:
    """How many disjoint chains there can be: the nodes of the layer that the fewest hold."""
    change = [0] * (layers + 1)
    for host in _one_range_each(hosts):
        change[host.start] += 1
        change[host.end] -= 1
    least, now = len(hosts), 0
    for step in change[:-1]:
        now += step
        least = min(least, now)
    return least


def _one_range_each(hosts: Sequence[Host]) -> list[Host]:
    """The longest range of every node, by id."""
    kept: dict[str, Host] = {}
    for host in sorted(hosts, key=lambda h: (h.node_id, h.start - h.end, h.start)):
        kept.setdefault(host.node_id, host)
    return list(kept.values())


class _Flow:
    """Vertices: 2i is host i's entry, 2i + 1 its exit, then source and sink. All capacities are one."""

    def __init__(self, layers: int, hosts: list[Host], links: Links, request: Request) -> None:
        self._hosts = hosts
        self._source, self._sink = 2 * len(hosts), 2 * len(hosts) + 1
        self._arcs: list[dict[int, float]] = [{} for _ in range(2 * len(hosts) + 2)]
        """Per vertex: where one more chain may go, and what that costs; shrinks and grows as flow passes."""
        times = [request.layer_ms(h) for h in hosts]
        head = request.head
        for i, host in enumerate(hosts):
            self._arcs[2 * i][2 * i + 1] = host.overhead_ms
            if host.start == 0:
                way = links.hop_ms(head, host, 0.0) * request.once if head is not None else 0.0
                self._arcs[self._source][2 * i] = way + times[i] * host.end
            if host.end == layers:
                way = links.hop_ms(host, head, 0.0) * request.once if head is not None else 0.0
                self._arcs[2 * i + 1][self._sink] = way + host.head_ms
                continue
            for j, other in enumerate(hosts):
                if other.start <= host.end < other.end:
                    hop = links.hop_ms(host, other, request.sent_bytes)
                    self._arcs[2 * i + 1][2 * j] = hop + times[j] * (other.end - host.end)

    def chains(self, k: int) -> list[list[Host]]:
        """Up to `k` chains of hosts."""
        costs = [dict(arcs) for arcs in self._arcs]
        potential = [0.0] * len(self._arcs)
        for _ in range(k):
            path = self._shortest(potential)
            if path is None:
                break
            for a, b in pairwise(path):
                cost = self._arcs[a].pop(b)
                self._arcs[b][a] = -cost
        return self._decompose(costs)

    def _shortest(self, potential: list[float]) -> list[int] | None:
        """Dijkstra with reduced costs; updates `potential`."""
        distance = [float("inf")] * len(self._arcs)
        before = [-1] * len(self._arcs)
        distance[self._source] = 0.0
        queue = [(0.0, self._source)]
        while queue:
            far, vertex = heapq.heappop(queue)
            if far > distance[vertex]:
                continue
            for target, cost in self._arcs[vertex].items():
                reach = far + max(0.0, cost + potential[vertex] - potential[target])
                if reach < distance[target] - 1e-12:
                    distance[target], before[target] = reach, vertex
                    heapq.heappush(queue, (reach, target))
        if distance[self._sink] == float("inf"):
            return None
        for vertex, far in enumerate(distance):
            potential[vertex] += min(far, distance[self._sink])
        path = [self._sink]
        while path[-1] != self._source:
            path.append(before[path[-1]])
        return path[::-1]

    def _decompose(self, arcs: Sequence[dict[int, float]]) -> list[list[Host]]:
        """Arcs that are gone carry flow: follow them from the source."""
        carries = [{b for b in arcs[a] if b not in self._arcs[a]} for a in range(len(arcs))]
        chains: list[list[Host]] = []
        while carries[self._source]:
            vertex, chain = self._source, []
            while vertex != self._sink:
                following = min(carries[vertex])
                carries[vertex].remove(following)
                if following < self._source and following % 2 == 0:
                    chain.append(self._hosts[following // 2])
                vertex = following
            chains.append([replace(host) for host in chain])
        return chains
