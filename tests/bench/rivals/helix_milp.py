"""The placement of the largest max-flow as a mixed-integer program, as Helix states it, solved by HiGHS.

Per node i: its first layer s_i, and for every number of layers j a binary b_ij; it ends at e_i = s_i + Σ j·b_ij.
Per connection (i, k): its flow and a binary that is 1 only where s_k <= e_i < e_k, for k may run a part of what it
holds; from the source where s_i = 0, to the sink where e_i = L. A node with j layers passes on at most its rate for j.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import highspy
import numpy as np

SCALE = 1000.0
"""Flows in thousands of tokens per second keep the coefficients near one another."""
GAP = 0.01
"""A placement proven to be this close to the best ends the search."""

Window = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Machine:
    """What the program knows of a node."""

    node_id: str
    room: int
    """Layers that fit."""
    room_first: int
    """With the embedding beside them."""
    room_last: int
    """With the LM head beside them."""
    rate: float
    """Tokens per second through one layer."""


@dataclass(frozen=True, slots=True)
class Placement:
    """What came of the search."""

    windows: dict[str, Window]
    flow: float
    """Tokens per second."""
    bound: float
    """No placement has more."""


def largest_flow(
    layers: int,
    machines: Sequence[Machine],
    rates: Mapping[tuple[str, str], float],
    start: Mapping[str, Window],
    time_limit_s: float,
) -> Placement:
    """The best placement found in time, at least as good as `start`; `rates` are tokens per second by connection."""
    solver = highspy.Highs()
    solver.silent()
    for option, value in (("time_limit", time_limit_s), ("mip_rel_gap", GAP), ("threads", 1)):
        solver.setOptionValue(option, value)
    program = _Program(solver, layers, machines)
    program.connect(rates)
    solver.setMaximize()
    program.hint(start)  # last: any change of the program discards it
    solver.run()
    windows = {}
    for machine in machines:
        first, count = program.window(machine)
        if count:
            windows[machine.node_id] = first, first + count
    info = solver.getInfo()
    return Placement(windows, info.objective_function_value * SCALE, info.mip_dual_bound * SCALE)


class _Program:
    """Variables by node."""

    def __init__(self, solver: highspy.Highs, layers: int, machines: Sequence[Machine]) -> None:
        self._solver, self._layers, self._machines = solver, layers, machines
        self._start, self._holds, self._end, self._count = {}, {}, {}, {}
        for machine in machines:
            widths = range(1, min(layers, machine.room) + 1)
            start = solver.addIntegral(0, layers)
            holds = {j: solver.addBinary() for j in widths}
            count = sum(j * b for j, b in holds.items())
            self._start[machine.node_id], self._holds[machine.node_id] = start, holds
            self._count[machine.node_id], self._end[machine.node_id] = count, start + count
            solver.addConstr(sum(holds.values()) <= 1)
            solver.addConstr(start + count <= layers)
            beside_embedding = [b for j, b in holds.items() if j > machine.room_first]
            if beside_embedding:
                solver.addConstr(start >= sum(beside_embedding))
            beside_head = [b for j, b in holds.items() if j > machine.room_last]
            if beside_head:
                solver.addConstr(start + count <= layers - sum(beside_head))

    def connect(self, rates: Mapping[tuple[str, str], float]) -> None:
        """Flow is kept at every node, and bounded by what it holds; what leaves the source counts."""
        solver, layers = self._solver, self._layers
        entries, exits = {}, {}
        into: dict[str, list[object]] = {m.node_id: [] for m in self._machines}
        out: dict[str, list[object]] = {m.node_id: [] for m in self._machines}
        most = {m.node_id: m.rate / SCALE for m in self._machines}
        for node, start in self._start.items():
            first, last = solver.addBinary(), solver.addBinary()
            entries[node], exits[node] = solver.addVariable(0, most[node], obj=1), solver.addVariable(0, most[node])
            solver.addConstr(start <= layers * (1 - first))
            solver.addConstr(self._end[node] >= layers * last)
            solver.addConstr(entries[node] <= most[node] * first)
            solver.addConstr(exits[node] <= most[node] * last)
            into[node].append(entries[node])
            out[node].append(exits[node])
        for (a, b), rate in rates.items():
            valid, room = solver.addBinary(), min(rate / SCALE, most[a], most[b])
            flow = solver.addVariable(0, room)
            solver.addConstr(flow <= room * valid)
            solver.addConstr(self._start[b] <= self._end[a] + layers * (1 - valid))
            solver.addConstr(self._end[a] + 1 <= self._end[b] + (layers + 1) * (1 - valid))
            out[a].append(flow)
            into[b].append(flow)
        for machine in self._machines:
            node = machine.node_id
            solver.addConstr(sum(into[node]) == sum(out[node]))
            solver.addConstr(sum(into[node]) <= sum(most[node] / j * b for j, b in self._holds[node].items()))
        # Every token passes all layers, whoever runs them: this bounds the search well, and cuts off nothing.
        solver.addConstr(sum(entries.values()) <= sum(most.values()) / layers)

    def hint(self, windows: Mapping[str, Window]) -> None:
        """Begin with these."""
        values: dict[int, float] = {}
        for machine in self._machines:
            first, end = windows.get(machine.node_id, (0, 0))
            values[self._start[machine.node_id].index] = first
            for j, held in self._holds[machine.node_id].items():
                values[held.index] = float(j == end - first)
        self._solver.setSolution(
            len(values), np.array(list(values), dtype=np.int32), np.array(list(values.values()), dtype=np.float64)
        )

    def window(self, machine: Machine) -> tuple[int, int]:
        """First layer and number of layers in the solution."""
        holds = self._holds[machine.node_id]
        count = next((j for j, held in holds.items() if self._solver.val(held) > 0.5), 0)
        return round(self._solver.val(self._start[machine.node_id])), count
