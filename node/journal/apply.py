"""The pure step: state and event in, next state out. Never raises, whatever the order of events."""

from __future__ import annotations

from typing import assert_never

from msgspec.structs import replace

from node.journal.state import (
    KEPT_AVOIDED,
    KEPT_NOTICES,
    KEPT_REQUESTS,
    AvoidedNode,
    ModelStatus,
    NodeView,
    RequestView,
    State,
)
from node.wire.events import (
    ModelProgress,
    NodeAvoided,
    NodeGone,
    NodeSeen,
    Notice,
    Numbered,
    PlanAdopted,
    PlanImpossible,
    RequestFailed,
    RequestFinished,
    RequestProgress,
    RequestStarted,
    RequestWaiting,
)
from node.wire.ids import RequestId


def apply(state: State, numbered: Numbered) -> State:
    """The state after one more event. An event that is already in `state` changes nothing."""
    if numbered.seq <= state.seq:
        return state
    return replace(_apply(state, numbered), seq=numbered.seq)


def _apply(state: State, numbered: Numbered) -> State:
    match numbered.event:
        case NodeSeen(record=record):
            return replace(state, nodes={**state.nodes, record.id: NodeView(record, numbered.at_s)})
        case NodeGone(node_id=gone):
            return replace(state, nodes={node: view for node, view in state.nodes.items() if node != gone})
        case PlanAdopted(plan=plan):
            return replace(state, plan=plan, plan_problem="")
        case PlanImpossible(reason=reason):
            return replace(state, plan_problem=reason)
        case ModelProgress() as progress:
            return replace(state, model=ModelStatus.of(progress))
        case NodeAvoided() as event:
            avoided = AvoidedNode(event.node_id, event.name, event.reason, numbered.at_s + event.for_s)
            others = (a for a in state.avoided if a.node_id != event.node_id and a.until_s > numbered.at_s)
            return replace(state, avoided=(*others, *([avoided] if event.for_s else ()))[-KEPT_AVOIDED:])
        case RequestWaiting() as event:
            if any(known.request_id == event.request_id for known in state.requests):
                return _request(state, event.request_id, waits_for=event.reason)
            waiting = RequestView(event.request_id, numbered.at_s, event.prompt_tokens, (), waits_for=event.reason)
            return replace(state, requests=(*state.requests, waiting)[-KEPT_REQUESTS:])
        case RequestStarted() as event:
            if any(known.request_id == event.request_id for known in state.requests):
                return _request(state, event.request_id, chain=event.chain, waits_for="")
            view = RequestView(event.request_id, numbered.at_s, event.prompt_tokens, event.chain)
            return replace(state, requests=(*state.requests, view)[-KEPT_REQUESTS:])
        case RequestProgress() as event:
            return _request(state, event.request_id, tokens=event.tokens, hops=event.hops, return_ms=event.return_ms)
        case RequestFinished() as event:
            return _request(
                state,
                event.request_id,
                tokens=event.tokens,
                hops=event.hops,
                return_ms=event.return_ms,
                status=event.reason,
                waits_for="",
                ttft_ms=event.ttft_ms,
                tpot_ms=event.tpot_ms,
            )
        case RequestFailed() as event:
            return _request(state, event.request_id, status="failed", error=event.error, waits_for="")
        case Notice() as notice:
            dated = replace(notice, at_s=numbered.at_s)
            return replace(state, notices=(*state.notices, dated)[-KEPT_NOTICES:])
        case _ as unreachable:
            assert_never(unreachable)


def _request(state: State, request_id: RequestId, **changes: object) -> State:
    """The state with one request's view changed; unchanged where the request is no longer kept."""
    return replace(
        state,
        requests=tuple(replace(view, **changes) if view.request_id == request_id else view for view in state.requests),
    )
