"""Other schedulers, from their published descriptions, for the simulator.

(a) exo: one ring of all nodes, layers in proportion to memory.
(b) Parallax as published: chains by capacity alone, water-filled by FLOPS, k by Z(k) = k^2 / s*, left-over nodes on the
    lightest layers; requests go round robin over the pipelines.
(c) Petals: every server takes the window of blocks that is served worst, one after another, knowing only rates; the
    client takes the fastest chain by Dijkstra over unloaded times.
(d) Helix: the placement of the largest max-flow, by its mixed-integer program, for pools of up to ten nodes. As in the
    paper the solver begins with what a heuristic has found (a local search over windows with exact max-flow) and has
    limited time; requests follow the flow's weights.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import count

from node.plan.costs.model import ModelCost
from node.plan.costs.roofline import decode_cost, layer_capacity
from node.plan.machines.pool import Links, Pool, PoolNode
from node.plan.placement.allocation import Stage
from node.plan.placement.water_filling import water_fill
from node.plan.routing.router import Host, Request, Router
from tests.bench.helix_milp import Machine, largest_flow

CONTEXT = 768
SEQUENCES = 16
PROGRAM_S = 10.0
"""For one placement by the mixed-integer program."""


def capacity(model: ModelCost, node: PoolNode, *, first: bool = False, last: bool = False) -> int:
    """Layers with KV room for as many sequences as ours reserves: the same memory for all."""
    return layer_capacity(model, node.memory_bytes, first=first, last=last, context=CONTEXT, sequences=SEQUENCES)


class Fixed:
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


class Exo(Fixed):
    """(a)."""

    def place(self, pool: Pool) -> Sequence[Stage]:
        """One ring, by memory; what rounding gives beyond a node's room goes to the others."""
        nodes = sorted(pool.nodes, key=lambda n: (-n.memory_bytes, n.node_id))
        while nodes:
            last = len(nodes) - 1
            rooms = [capacity(self.model, n, first=i == 0, last=i == last) for i, n in enumerate(nodes)]
            if sum(rooms) < self.model.layers:
                break
            shares = water_fill(rooms, [float(n.memory_bytes) for n in nodes], self.model.layers)
            if all(shares):
                self.pipelines = [tiled(nodes, shares)]
                return self.pipelines[0]
            nodes = [n for n, share in zip(nodes, shares, strict=True) if share]
        self.pipelines = []
        return ()


def tiled(nodes: Sequence[PoolNode], counts: Sequence[int]) -> tuple[Stage, ...]:
    """Stages one after another."""
    stages, start = [], 0
    for node, layers in zip(nodes, counts, strict=True):
        if layers:
            stages.append(Stage(node.node_id, start, start + layers))
        start += layers
    return tuple(stages)


class Published(Fixed):
    """(b)."""

    def place(self, pool: Pool) -> Sequence[Stage]:
        """Largest first; the smallest that completes when another pipeline is possible."""
        left = sorted(pool.nodes, key=lambda n: (-capacity(self.model, n), n.node_id))
        chains: list[list[PoolNode]] = []
        while sum(capacity(self.model, n) for n in left) >= self.model.layers:
            chain = self._chain(left)
            if chain is None:
                break
            chains.append(chain)
            left = [n for n in left if n not in chain]
        stages = [len(chain) for chain in chains]
        best = max(range(len(chains)), key=lambda k: ((k + 1) ** 2 / sum(stages[: k + 1]), -k), default=-1)
        self.pipelines = [self._filled(chain) for chain in chains[: best + 1]]
        return [stage for pipeline in self.pipelines for stage in pipeline]

    def _chain(self, left: Sequence[PoolNode]) -> list[PoolNode] | None:
        chain: list[PoolNode] = []
        free = list(left)
        need = self.model.layers
        while free:
            closing = [n for n in free if capacity(self.model, n, first=not chain, last=True) >= need]
            chosen = closing[-1] if closing and chain else free[0]
            chain.append(chosen)
            free.remove(chosen)
            need -= capacity(self.model, chosen, first=len(chain) == 1)
            rooms = self._rooms(chain)
            if sum(rooms) >= self.model.layers:
                return chain
        return None

    def _rooms(self, chain: Sequence[PoolNode]) -> list[int]:
        last = len(chain) - 1
        return [capacity(self.model, n, first=i == 0, last=i == last) for i, n in enumerate(chain)]

    def _filled(self, chain: Sequence[PoolNode]) -> tuple[Stage, ...]:
        return tiled(chain, water_fill(self._rooms(chain), [n.flops for n in chain], self.model.layers))


class Petals:
    """(c)."""

    def __init__(self, model: ModelCost) -> None:
        self.model = model
        self._links = Links()
        self._router: Router | None = None
        self._held: dict[str, Stage] = {}

    def place(self, pool: Pool) -> Sequence[Stage]:
        """Servers that hold something keep it; each new one takes the window with the worst-served blocks."""
        self._links = pool.links
        cost = decode_cost(self.model, 1, CONTEXT)
        ids = {node.node_id for node in pool.nodes}
        self._held = {n: s for n, s in self._held.items() if n in ids}
        rates = [0.0] * self.model.layers
        for node in pool.nodes:
            if node.node_id in self._held:
                stage = self._held[node.node_id]
                for layer in range(stage.start, stage.end):
                    rates[layer] += 1 / (cost.layer_ms(node) * stage.layers)
        for node in sorted(pool.nodes, key=lambda n: n.node_id):
            if node.node_id not in self._held:
                self._join(node, cost.layer_ms(node), rates)
        gap = [layer for layer, rate in enumerate(rates) if rate == 0]
        if gap and len(self._held) == len(ids):  # Petals' servers move when blocks are missing
            for node in sorted(pool.nodes, key=lambda n: n.node_id):
                stage = self._held.get(node.node_id)
                if stage is None or not gap:
                    continue
                alone = 1 / (cost.layer_ms(node) * stage.layers)
                if all(rates[layer] > alone * 1.5 for layer in range(stage.start, stage.end)):
                    for layer in range(stage.start, stage.end):
                        rates[layer] -= alone
                    self._join(node, cost.layer_ms(node), rates)
                    gap = [layer for layer, rate in enumerate(rates) if rate == 0]
        return list(self._held.values())

    def _join(self, node: PoolNode, layer_ms: float, rates: list[float]) -> None:
        layers = self.model.layers
        width = min(layers, capacity(self.model, node, first=True, last=True))
        if width < 1:
            return
        start = min(range(layers - width + 1), key=lambda i: (sorted(rates[i : i + width]), i))
        self._held[node.node_id] = Stage(node.node_id, start, start + width)
        for layer in range(start, start + width):
            rates[layer] += 1 / (layer_ms * width)

    def route(self, hosts: Sequence[Host], changed: bool, request: Request) -> Sequence[Stage] | None:
        """The fastest chain by unloaded times."""
        from node.errors import NoRoute

        idle = [Host(h.node_id, h.start, h.end, h.layer_ms, h.region, 0.0, h.kv_free_tokens) for h in hosts]
        if changed or self._router is None:
            self._router = Router(self.model.layers, idle, self._links)
        else:
            self._router.update(idle)
        try:
            return self._router.route(Request(request.hop_bytes, request.kv_tokens)).stages
        except NoRoute:
            return None


class Helix:
    """(d)."""

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
