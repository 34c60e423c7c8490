"""From what nodes say of themselves to what phase 2 chooses among: held ranges with their times, load and KV room.

A figure that cannot be counts as not measured, so that no record, however absurd, keeps the others from serving.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from node.plan.chain_time import CHUNK_TOKENS
from node.plan.costs.model import ModelCost
from node.plan.costs.roofline import StepCost, decode_cost, fitted_efficiency, prompt_chunk_cost
from node.plan.live.from_records import node_of_record
from node.plan.routing.hosts import Host, uncovered
from node.wire.plans import Duty
from node.wire.records import NodeRecord

CONTEXT_TOKENS = 512
"""Of the sequence whose step is predicted where nothing has been measured."""
MOST_LOAD = 1e6
"""Requests on one node: more are not believed."""


@dataclass(frozen=True, slots=True)
class Untold:
    """Requests that a node has got, or has been rid of, since its record was written."""

    load: float = 0.0
    kv_tokens: int = 0
    refused_tokens: int | None = None
    """It said since that it has no room for so many."""


NONE_UNTOLD = Untold()


@dataclass(frozen=True, slots=True)
class Offer:
    """What one node, or all of them, have for a new request."""

    ready: tuple[Host, ...] = ()
    spare: tuple[Host, ...] = ()
    """Ranges that an older plan left behind, or whose node shall drain: for layers that no ready range covers."""


def offer_of(record: NodeRecord, duty: Duty, model: ModelCost, weights: str, untold: Untold = NONE_UNTOLD) -> Offer:
    """What a node serves of these `weights`: as it was when it wrote its record, and with what has come since.

    A node that is excluded by hand gets nothing new. Room is known of a ready range alone: where there is none in
    another one, its node says so when it is asked.
    """
    serving = [held for held in record.held if held.state in ("ready", "draining") and held.weights == weights]
    if not serving or duty == "exclude":
        return Offer()
    node = node_of_record(record)
    (step, chunk), efficiency = _steps(model), fitted_efficiency(model, node)
    room = record.kv_tokens_total or None
    free = min(room, room - record.kv_tokens_used - untold.kv_tokens) if room else None
    refused = None if untold.refused_tokens is None else untold.refused_tokens - 1
    told = Host(
        node_id=record.node_id,
        start=0,
        end=0,
        layer_ms=node.layer_ms[0][1] if node.layer_ms else step.layer_ms(node),
        region=record.region,
        kv_free_tokens=refused,
        load=min(MOST_LOAD, max(0, record.load + untold.load)),
        overhead_ms=node.overhead_ms,
        head_ms=step.head_ms(node, efficiency) if node.head_ms is None else node.head_ms,
        chunk_layer_ms=chunk.layer_ms(node, efficiency)
        if node.prompt_row_ms is None
        else node.prompt_row_ms * CHUNK_TOKENS,
    )
    ready: list[Host] = []
    spare: list[Host] = []
    for held in serving:
        if held.state == "ready":
            most = min((bound for bound in (free, refused) if bound is not None), default=None)
            host = replace(told, start=held.start, end=held.end, kv_free_tokens=most, kv_tokens=room)
            (ready if duty == "serve" else spare).append(host)
        else:
            spare.append(replace(told, start=held.start, end=held.end))
    return Offer(tuple(ready), tuple(spare))


@lru_cache(maxsize=8)
def _steps(model: ModelCost) -> tuple[StepCost, StepCost]:
    """A decode step of one sequence, and a chunk of a prompt."""
    return decode_cost(model, 1, CONTEXT_TOKENS), prompt_chunk_cost(model, CHUNK_TOKENS, CONTEXT_TOKENS)


def what_offers_tell(record: NodeRecord) -> tuple[object, ...]:
    """All of a record that its offer depends on: a new record tells mostly new round trips."""
    return (
        record.held,
        record.hardware,
        record.region,
        record.kv_tokens_total,
        record.kv_tokens_used,
        record.load,
        record.layer_latency,
        record.head_ms,
        record.overhead_ms,
        record.prompt_row_ms,
        record.memory_cap_bytes,
    )


def in_service(layers: int, offers: Iterable[Offer], avoid: Container[str] = ()) -> list[Host]:
    """The hosts that a request may use: ready ones, and spare ones too while those leave layers uncovered.

    Nodes to `avoid` are among them: whether a layer is covered is judged without them.
    """
    offers = list(offers)
    ready = [host for offer in offers for host in offer.ready]
    if uncovered(layers, [host for host in ready if host.end <= layers and host.node_id not in avoid]) is None:
        return ready
    return ready + [host for offer in offers for host in offer.spare]
