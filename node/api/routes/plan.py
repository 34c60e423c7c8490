"""`POST /v1/plan`, what would be, and `POST /v1/plan/apply`, make it so."""

from __future__ import annotations

import msgspec
import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from node.api.http.body import Bodies, require_json
from node.api.http.error_replies import error_response
from node.api.routes.plan_reply import plan_reply
from node.api.routes.plan_request import PLAN_BODY_LIMIT_BYTES, PlanRequest, changed_settings, parse_plan_request
from node.api.service import NodeControl
from node.errors import (
    BadWireData,
    Busy,
    DoesNotFit,
    NoRoute,
    NotCovered,
    ParallaxError,
    PlanChanged,
    PlanError,
    RequestError,
)
from node.plan.live.propose import Proposal
from node.wire.plans import Plan, PlanSettings

MOST_WAITING = 16
"""Each takes some seconds of a processor where the swarm is large."""

ATTEMPTS = 3
"""The plan may change while a change of it is worked out; so often it is worked out anew."""


class PlanEndpoint:
    """Both routes. One request at a time: planning takes a processor, and changes made in turn do not collide."""

    def __init__(self, here: NodeControl, bodies: Bodies) -> None:
        self._here, self._bodies, self._turn = here, bodies, trio.Lock()
        self._writers = trio.CapacityLimiter(1)

    async def propose(self, request: Request) -> Response:
        """What the plan would be; nothing is changed."""
        return await self._answer(request, applies=False)

    async def apply(self, request: Request) -> Response:
        """The plan made so."""
        return await self._answer(request, applies=True)

    async def _answer(self, request: Request, *, applies: bool) -> Response:
        try:
            require_json(request.scope)
            with self._bodies.room() as room:
                body = await room.read(request.scope, request.receive, PLAN_BODY_LIMIT_BYTES)
                asked = await self._bodies.decoded(parse_plan_request, body)
            if self._turn.statistics().tasks_waiting >= MOST_WAITING:
                raise Busy(f"{MOST_WAITING} requests for a plan wait already; try again in a moment")
            async with self._turn:
                before, proposal = await (_applied if applies else _proposed)(self._here, asked)
        except RequestError as error:
            return error_response(error)
        except ParallaxError as error:
            return _plan_error(error)
        names = {record.node_id: record.name for record in self._here.records()}
        reply = await trio.to_thread.run_sync(_body, proposal, before, names, applies, limiter=self._writers)
        return Response(reply, media_type="application/json")


def _body(proposal: Proposal, before: Plan, names: dict[str, str], applied: bool) -> bytes:
    return msgspec.json.encode(plan_reply(proposal, before, names, applied=applied))


async def _proposed(here: NodeControl, asked: PlanRequest) -> tuple[Plan, Proposal]:
    before = _in_force(here, asked)
    return before, await here.propose(_settings(here, asked, before))


async def _applied(here: NodeControl, asked: PlanRequest) -> tuple[Plan, Proposal]:
    """The settings are those of the plan in force with the changes laid over, so that nobody else's change is lost."""
    for attempt in range(ATTEMPTS):
        before = _in_force(here, asked)
        try:
            return before, await here.apply(_settings(here, asked, before), before.epoch)
        except PlanChanged:
            if asked.epoch is not None or attempt == ATTEMPTS - 1:
                raise
    raise AssertionError("the last attempt returns or raises")


def _in_force(here: NodeControl, asked: PlanRequest) -> Plan:
    plan = here.plan()
    if plan is None:
        raise NoRoute(here.waiting_for())
    if asked.epoch is not None and asked.epoch != plan.epoch:
        raise PlanChanged(asked.epoch, plan.epoch)
    return plan


def _settings(here: NodeControl, asked: PlanRequest, plan: Plan) -> PlanSettings | None:
    if not asked.changes_settings:
        return None
    return changed_settings(asked, plan.settings, here.records(), plan.facts.layers, here.names())


def _plan_error(error: ParallaxError) -> Response:
    """409: too late. 422: understood, but the nodes cannot hold the layers. 400: cannot be. 503: not now."""
    match error:
        case PlanChanged():
            status = 409
        case DoesNotFit() | NotCovered():
            status = 422
        case PlanError() | BadWireData():  # the latter: more is set by hand than a plan can carry
            status = 400
        case _:
            status = 503
    code = type(error).__name__
    told: dict[str, object] = {"message": str(error), "type": "plan_error", "param": None, "code": code}
    if isinstance(error, DoesNotFit):
        told["missing_bytes"] = error.missing_bytes
    return JSONResponse({"error": told}, status)
