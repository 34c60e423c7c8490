"""Phase 2 over what members say now: keeps a router true to records, and new only where ranges or distances changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import replace

from msgspec.structs import replace as with_fields

from node.errors import BadRequest, NoRoom, NoRoute
from node.pipeline.generation import Pair
from node.pipeline.ledger import Ledger
from node.plan.costs.model import cost_of_plan
from node.plan.live.offers import Offer, Untold, in_service, offer_of, what_offers_tell
from node.plan.live.round_trips import RoundTrips
from node.plan.routing.hosts import PART_WORTH
from node.plan.routing.router import Host, Request, Route, Router, route_or_wait, usable
from node.wire.ids import NodeId
from node.wire.models import DTYPE_BYTES
from node.wire.plans import Plan
from node.wire.records import NodeRecord

LINKS_S, LINKS_S_PER_NODE = 5.0, 0.05
"""Round trips move a little with every heartbeat; reading all of them takes a while for a thousand nodes."""

MOST_ROUTERS = 4
"""Kept; requests that failed between different pairs share none."""

Shape = tuple[tuple[str, int, int, str], ...]


class LiveRouter:
    """The members' ranges as they are now. `look` before the rest."""

    def __init__(self, self_id: NodeId, ledger: Ledger, clock: Callable[[], float]) -> None:
        self._self_id, self._ledger, self._clock = self_id, ledger, clock
        self._plan: Plan | None = None
        self._records: Mapping[NodeId, NodeRecord] = {}
        self._offers: dict[NodeId, tuple[NodeRecord, object, Untold, Offer]] = {}
        """By node: its record, what its offer was made of, and the offer."""
        self._links, self._links_at_s = RoundTrips(()), float("-inf")
        self._broken: dict[NodeId, tuple[str, ...]] = {}
        """By node: whom it cannot reach."""
        self._routers: dict[frozenset[Pair], Router] = {}
        """By the pairs that are apart beside those of the records; who was used last comes last."""
        self._shape: Shape = ()

    def look(self, plan: Plan, records: Mapping[NodeId, NodeRecord]) -> None:
        """Take plan and records as they are, with what the ledger knows beyond them."""
        if plan is not self._plan:
            self._plan, self._model = plan, cost_of_plan(plan)
            self._duty = {node_id: override.duty for node_id, override in plan.settings.binding.items()}
            self._offers = {}
        self._records = records
        broken = {node: record.unreachable for node, record in records.items() if record.unreachable}
        if broken != self._broken:  # a link that is lost, or mended, counts at once
            self._broken, self._links_at_s = broken, float("-inf")
        self._ledger.keep_only(records)
        known, self._offers = self._offers, {}
        for node, record in records.items():
            former = known.get(node)
            same = former is not None and former[0] is record
            self._ledger.heard(record)
            untold = self._ledger.untold(node)
            if former is None or not same or former[2] != untold:
                told = former[1] if former is not None and same else what_offers_tell(record)
                if former is not None and former[1] == told and former[2] == untold:
                    former = record, *former[1:]
                else:
                    duty = self._duty.get(node, "serve")
                    former = record, told, untold, offer_of(record, duty, self._model, plan.weights, untold)
            self._offers[node] = former

    def covers(self, avoid: Set[str]) -> bool:
        """Whether every layer has a node beside those to avoid, full or not."""
        assert self._plan is not None
        try:
            usable(self._plan.facts.layers, self._hosts(avoid), Request(avoid=frozenset(avoid)))
        except NoRoom:
            return True
        except NoRoute:
            return False
        return True

    def route(
        self, request: Request, apart: frozenset[Pair] = frozenset(), *, patient: bool, idle: bool = False
    ) -> Route | None:
        """The fastest chain with room; None while there is none, or, for the patient, while waiting is better. `idle`:
        as if nothing else ran anywhere.

        `request` tells its tokens, prompt and expected answer, its spread and whom it avoids. The two of a pair that is
        `apart` are neighbours only where no chain does without.

        Raises:
            BadRequest: it has no room even where nothing else runs.
            NoRoute: some layers are served by nobody.
        """
        plan = self._plan
        assert plan is not None
        hosts = self._hosts(request.avoid)
        own = self._records.get(self._self_id)
        whole = replace(
            request,
            part_worth=PART_WORTH,
            hop_bytes=plan.facts.hidden_size * DTYPE_BYTES[plan.dtype],
            head=Host(self._self_id, 0, 0, 0.0, own.region if own is not None else ""),
        )
        router = self._router_for(plan.facts.layers, hosts, apart)
        try:
            return route_or_wait(router, whole) if patient and not idle else router.route(whole, idle=idle)
        except NoRoom:
            _check_size(plan.facts.layers, hosts, whole)
            return None

    def _hosts(self, avoid: Set[str]) -> list[Host]:
        assert self._plan is not None
        return in_service(self._plan.facts.layers, (offer for *_, offer in self._offers.values()), avoid)

    def _router_for(self, layers: int, hosts: list[Host], apart: frozenset[Pair]) -> Router:
        shape = tuple((host.node_id, host.start, host.end, host.region) for host in hosts)
        every_s = LINKS_S + LINKS_S_PER_NODE * len(hosts)
        if self._clock() >= self._links_at_s + every_s or any(host.node_id not in self._links.named for host in hosts):
            self._links, self._links_at_s = RoundTrips(self._records.values()), self._clock()
            self._routers.clear()
        if shape != self._shape:
            self._shape = shape
            self._routers.clear()
        router = self._routers.pop(apart, None)
        if router is None:
            links = RoundTrips(_told_apart(self._records, apart)) if apart else self._links
            router = Router(layers, hosts, links)
        else:
            router.update(hosts)
        self._routers[apart] = router
        while len(self._routers) > MOST_ROUTERS:
            del self._routers[next(iter(self._routers))]
        return router


def _told_apart(records: Mapping[NodeId, NodeRecord], pairs: frozenset[Pair]) -> list[NodeRecord]:
    """The records, as if one of each pair had told that it cannot reach the other."""
    further: dict[str, set[str]] = {}
    for pair in pairs:
        one, other = min(pair), max(pair)
        further.setdefault(one, set()).add(other)
    return [
        with_fields(record, unreachable=(*record.unreachable, *further[node])) if node in further else record
        for node, record in records.items()
    ]


def _check_size(layers: int, hosts: list[Host], request: Request) -> None:
    try:
        usable(layers, hosts, request, idle=True)
    except NoRoom as error:
        most = max((host.kv_tokens for host in hosts if host.kv_tokens is not None), default=0)
        raise BadRequest(
            "messages",
            f"the prompt and the beginning of its answer take {request.kv_tokens} tokens; "
            f"{error.reason.partition(';')[0]}, even when idle (the largest KV cache has {most}); shorten it",
        ) from None
