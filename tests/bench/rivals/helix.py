"""Helix: the placement with the largest flow, by its mixed-integer program, and requests by the flow's weights.

As in the paper the solver begins with what a heuristic has found (a local search over windows with exact max-flow) and
has limited time: for pools of up to ten nodes here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from node.plan.costs.model import ModelCost
from node.plan.costs.roofline import decode_cost
from node.plan.machines.pool import Links, Pool, PoolNode
from node.plan.placement.allocation import Stage
from node.plan.routing.router import Host, Request
from tests.bench.rivals.helix_milp import Machine, largest_flow
from tests.bench.rivals.same_memory import CONTEXT, capacity

PROGRAM_S = 10.0
"""For one placement by the mixed-integer program."""


class Helix:
    """Max-flow over held windows."""

    def __init__(self, model: ModelCost) -> None:
        self.model = model
        self._weights: dict[tuple[str, str], float] = {}
        self._credit: dict[tuple[str, str], float] = {}
        self.gap = 0.0
        """How far from the largest flow a placement may have been."""

    def place(self, pool: Pool) -> Sequence[Stage]:
        """Windows of full width, one node moved at a time while the flow grows, from a few beginnings."""
        nodes = sorted(pool.nodes, key=lambda n: (-capacity(self.model, n), n.node_id))
        best: dict[str, tuple[int, int]] = {}
        best_flow = -1.0
        for begin in range(3):
            windows = self._beginning(nodes, begin)
            flow, improved = self._flow(nodes, windows, pool.links)[0], True
            while improved:
                improved = False
                for node in nodes:
                    for window in self._windows(node):
                        trial = {**windows, node.node_id: window}
                        reached = self._flow(nodes, trial, pool.links)[0]
                        if reached > flow * 1.0001 + 1e-12:
                            windows, flow, improved = trial, reached, True
            if flow > best_flow:
                best, best_flow = windows, flow
        best = self._by_program(nodes, pool.links, best)
        self._weights = self._flow(nodes, best, pool.links)[1]
        self._credit = {}
        return [Stage(n, start, end) for n, (start, end) in best.items() if end > start]

    def _by_program(
        self, nodes: Sequence[PoolNode], links: Links, start: dict[str, tuple[int, int]]
    ) -> dict[str, tuple[int, int]]:
        """The program's solution; notes how far from the best it may be."""
        cost = decode_cost(self.model, 16, CONTEXT)
        machines = [
            Machine(
                n.node_id,
                capacity(self.model, n),
                capacity(self.model, n, first=True),
                capacity(self.model, n, last=True),
                16_000 / cost.layer_ms(n),
            )
            for n in nodes
        ]
        found = largest_flow(self.model.layers, machines, self._rates(nodes, links), start, PROGRAM_S)
        self.gap = max(self.gap, found.bound / found.flow - 1 if found.flow else float("inf"))
        return found.windows

    def _rates(self, nodes: Sequence[PoolNode], links: Links) -> dict[tuple[str, str], float]:
        """Tokens per second that each connection carries."""
        sent = self.model.hop_bytes(1)
        return {
            (a.node_id, b.node_id): links.rate_mbps(a, b) * 1e6 / 8 / sent for a in nodes for b in nodes if a is not b
        }

    def _windows(self, node: PoolNode) -> list[tuple[int, int]]:
        layers = self.model.layers
        room = min(layers, capacity(self.model, node))
        widths = sorted({room, max(1, room * 3 // 4), max(1, room // 2)}) if room else []
        found = []
        for width in widths:
            for start in range(layers - width + 1):
                ends = {"first": start == 0, "last": start + width == layers}
                if width <= capacity(self.model, node, **ends):
                    found.append((start, start + width))
        return found

    def _beginning(self, nodes: Sequence[PoolNode], shift: int) -> dict[str, tuple[int, int]]:
        """Windows laid end to end, again and again."""
        laid: dict[str, tuple[int, int]] = {}
        at = 0
        for node in [*nodes[shift:], *nodes[:shift]]:
            fitting = [w for w in self._windows(node) if w[0] <= at < w[1]]
            if fitting:
                window = max(fitting, key=lambda w: (w[0], w[1]) if w[0] == at else (-1, w[1]))
                laid[node.node_id] = window
                at = window[1] % self.model.layers
        return laid

    def _flow(
        self, nodes: Sequence[PoolNode], windows: dict[str, tuple[int, int]], links: Links
    ) -> tuple[float, dict[tuple[str, str], float]]:
        """Max-flow in tokens per second: source → nodes with layer 0 → … → sink; node and link capacities."""
        cost = decode_cost(self.model, 16, CONTEXT)
        arcs: dict[str, dict[str, float]] = {"source": {}, "sink": {}}
        for node in nodes:
            if node.node_id in windows:
                start, end = windows[node.node_id]
                arcs.setdefault(f"{node.node_id} in", {})[f"{node.node_id} out"] = 16_000 / (
                    cost.layer_ms(node) * (end - start)
                )
                arcs.setdefault(f"{node.node_id} out", {})
                if start == 0:
                    arcs["source"][f"{node.node_id} in"] = 1e12
                if end == self.model.layers:
                    arcs[f"{node.node_id} out"]["sink"] = 1e12
        for (a, b), rate in self._rates(nodes, links).items():
            if a in windows and b in windows and windows[b][0] <= windows[a][1] < windows[b][1]:
                arcs[f"{a} out"][f"{b} in"] = rate
        return max_flow(arcs)

    def route(self, hosts: Sequence[Host], changed: bool, request: Request) -> Sequence[Stage] | None:
        """From the source on, each time the successor that is most behind its share of the flow."""
        held = {h.node_id: h for h in hosts if (h.kv_free_tokens or 0) >= request.kv_tokens}
        at, reached, stages = "source", 0, []
        while reached < self.model.layers:
            options = [(b, w) for (a, b), w in self._weights.items() if a == at and b in held]
            if not options:
                return None
            chosen = min(options, key=lambda o: ((self._credit.get((at, o[0]), 0) + 1) / o[1], o[0]))[0]
            self._credit[at, chosen] = self._credit.get((at, chosen), 0) + 1
            stages.append(Stage(chosen, reached, held[chosen].end))
            at, reached = chosen, held[chosen].end
        return stages


def max_flow(arcs: dict[str, dict[str, float]]) -> tuple[float, dict[tuple[str, str], float]]:
    """Edmonds and Karp; the flow's value, and how much goes from node to node."""
    left = {a: dict(out) for a, out in arcs.items()}
    for a, out in arcs.items():
        for b in out:
            left[b].setdefault(a, 0.0)
    total = 0.0
    while True:
        before: dict[str, str] = {"source": ""}
        queue = deque(["source"])
        while queue and "sink" not in before:
            a = queue.popleft()
            for b, room in left[a].items():
                if room > 1e-9 and b not in before:
                    before[b] = a
                    queue.append(b)
        if "sink" not in before:
            break
        path, at = [], "sink"
        while at != "source":
            path.append((before[at], at))
            at = before[at]
        pushed = min(left[a][b] for a, b in path)
        for a, b in path:
            left[a][b] -= pushed
            left[b][a] += pushed
        total += pushed
    used: dict[tuple[str, str], float] = {}
    for a, out in arcs.items():
        for b, room in out.items():
            sent = room - left[a][b]
            if sent > 1e-9 and not (a.endswith(" in") or b == "sink"):
                used[a.removesuffix(" out"), b.removesuffix(" in")] = sent
    return total, used
