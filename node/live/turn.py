"""Waits for this node's turn to load or to make room, by what the members' records say."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import trio

from node.plan.costs.model import ModelCost, cost_of_plan
from node.plan.moving.node_layers import NodeLayers, holdings_of
from node.plan.moving.whose_turn import turns
from node.plan.placement.allocate import DEFAULT_WORKLOAD
from node.plan.placement.by_memory import cache_tokens
from node.wire.ids import NodeId
from node.wire.plans import Plan
from node.wire.records import NodeRecord

LOOK_EVERY_S = 0.5

PATIENCE_S = 15.0
"""A member whose turn it is, and that does nothing for so long, is waited for no longer. Longer than a member takes to
end the sequences on layers that it drops, and to fetch nothing yet; one that loads is waited for until it has."""


@dataclass(frozen=True, slots=True)
class View:
    """What the records say now."""

    model: ModelCost
    cache_tokens: int
    """That each layer must have room for."""
    holdings: list[NodeLayers]

    @classmethod
    def of(cls, plan: Plan, records: Mapping[NodeId, NodeRecord], silent: Collection[str] = ()) -> View:
        """Of the members, while they follow `plan`."""
        model = cost_of_plan(plan)
        return cls(model, cache_tokens(model, plan.objective, DEFAULT_WORKLOAD), holdings_of(plan, records, silent))


class Patience:
    """Which members should have acted long ago."""

    def __init__(self) -> None:
        self._since: dict[str, tuple[NodeLayers, float]] = {}
        self.silent: frozenset[str] = frozenset()

    def look(self, holdings: list[NodeLayers], expected: set[str], now_s: float) -> None:
        """Note who is `expected` to act now. Whoever does anything is given time again."""
        for holding in holdings:
            node = holding.node_id
            shown = NodeLayers(node, holding.held, holding.wanted, 0, holding.loading, keeps=holding.keeps)
            noted, _ = self._since.get(node, (None, 0.0))
            if noted is not None and noted != shown:
                del self._since[node]
            if node in expected and not holding.loading:
                self._since.setdefault(node, (shown, now_s))
            elif node not in self.silent:
                self._since.pop(node, None)
        self.silent = frozenset(n for n, (_, since_s) in self._since.items() if now_s - since_s > PATIENCE_S)


Turn = tuple[Literal["load", "drop"], frozenset[int]]
"""Layers to load beside what is held, or to drop."""


async def next_turn(
    self_id: NodeId, look: Callable[[frozenset[str]], Awaitable[View]], patience: Patience
) -> Turn | None:
    """Wait until the node may load all that it misses (None), or until it is its turn to move a piece.

    `look` reads the records, with the silent members as they are named to it. A turn must show in two looks, since a
    record that tells otherwise may be on its way.
    """
    shown: Turn | None = None
    while True:
        view = await look(patience.silent)
        own = next(holding for holding in view.holdings if holding.node_id == self_id)
        if own.can_finish(view.model, view.cache_tokens):
            return None
        due = turns(view.model, view.holdings, view.cache_tokens)
        turn: Turn | None = None
        if layers := due.loads.get(self_id):
            turn = "load", layers
        elif layers := due.drops.get(self_id):
            turn = "drop", layers
        if turn is not None and turn == shown:
            return turn
        shown = turn
        patience.look(view.holdings, (due.loads.keys() | due.drops.keys()) - {self_id}, trio.current_time())
        await trio.sleep(LOOK_EVERY_S)
