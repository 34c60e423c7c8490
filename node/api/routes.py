"""The two HTTP apps of a node: one for OpenAI clients, one, with more rights, for the control socket."""

from __future__ import annotations

from collections.abc import Collection

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

import node
from node.api.body import Bodies
from node.api.chat import ChatEndpoint
from node.api.events import EventsEndpoint
from node.api.guard import Door, Guard
from node.api.owner import Owner
from node.api.plan import PlanEndpoint
from node.api.service import Service
from node.wire.versions import WIRE_VERSION

APPLY = "/v1/plan/apply"

MOST_PATIENCE_S = 10.0
"""A client that waits for the service asks again after so long, and so shows that it is there."""


def client_app(
    service: Service,
    *,
    loopback_only: bool,
    owner: Owner,
    hosts: Collection[str] = (),
    origins: Collection[str] = (),
) -> ASGIApp:
    """For OpenAI clients: answers, models, health, state, events and the plan.

    Args:
        loopback_only: only this machine reaches it.
        owner: how a request shows that it may change the plan.
        hosts: further names under which the port may be called.
        origins: of further web pages that may call.
    """
    door = Door(loopback_only=loopback_only, hosts=frozenset(hosts), origins=frozenset(origins))
    return Guard(_app(_client_routes(service, owner)), door)


def control_app(service: Service, *, token: str | None) -> ASGIApp:
    """For the terminal app and the command line: invitations too. Without a token: for the unix socket."""

    async def invitation(request: Request) -> Response:
        return JSONResponse({"token": service.here.invitation()})

    routes = [*_client_routes(service, Owner()), Route("/v1/invitation", invitation, methods=["POST"])]
    return Guard(_app(routes), Door(token=token, over_socket=token is None))


def _client_routes(service: Service, owner: Owner) -> list[Route]:
    bodies = Bodies()
    planning = PlanEndpoint(service.here, bodies)

    async def health(request: Request) -> Response:
        serving = await service.until_serving(_patience_s(request.query_params.get("wait", "")))
        body = {
            "status": "ok" if serving else "waiting",
            "version": node.__version__,
            "wire_version": WIRE_VERSION,
            "reason": "" if serving else service.here.waiting_for(),
        }
        return JSONResponse(body)

    async def models(request: Request) -> Response:
        plan = service.here.plan()
        listed = [plan.model.name] if plan is not None else []
        data = [
            {"id": name, "object": "model", "created": int(service.started_s), "owned_by": "parallax"}
            for name in listed
        ]
        return JSONResponse({"object": "list", "data": data})

    async def state(request: Request) -> Response:
        shown = owner.state_for(request.headers, service.journal.state)
        return Response(msgspec.json.encode(shown), media_type="application/json")

    return [
        Route("/v1/chat/completions", ChatEndpoint(service, bodies), methods=["POST"]),
        Route("/v1/events", EventsEndpoint(service.journal, owner), methods=["GET"]),
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/plan", owner.looking_at_plans(planning.propose), methods=["POST"]),
        Route(APPLY, owner.only(planning.apply), methods=["POST"]),
        Route("/v1/state", state, methods=["GET"]),
        Route("/health", health, methods=["GET"]),
    ]


def _patience_s(told: str) -> float:
    """How long a client would wait for an answer other than `waiting`."""
    try:
        seconds = float(told)
    except ValueError:
        return 0.0
    return min(MOST_PATIENCE_S, seconds) if seconds > 0 else 0.0


def _app(routes: list[Route]) -> ASGIApp:
    return Starlette(routes=routes, exception_handlers={HTTPException: _http_error, Exception: _unexpected})


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method[:20]} {request.url.path[:200]}: {error.detail}"
    body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
    return JSONResponse(body, error.status_code, error.headers)


async def _unexpected(request: Request, error: Exception) -> Response:
    message = f"{type(error).__name__} in {request.url.path[:200]}; the node's log has the details"
    body = {"error": {"message": message, "type": "server_error", "param": None, "code": None}}
    return JSONResponse(body, 500)
