"""The two HTTP apps of a node: one for clients of every dialect, one, with more rights, for the control socket."""

from __future__ import annotations

from collections.abc import Collection

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

import node
from node.api.dialects.by_path import error_for
from node.api.dialects.openai_chat import OpenAIChat
from node.api.dialects.openai_completions import OpenAICompletions
from node.api.http.body import Bodies
from node.api.http.error_replies import reply, unserved_id
from node.api.http.guard import Door, Guard
from node.api.http.owner import Owner
from node.api.routes.dialect_routes import anthropic_routes, ollama_routes, responses_routes
from node.api.routes.events import EventsEndpoint
from node.api.routes.generating import GeneratingEndpoint
from node.api.routes.model_list import ModelList
from node.api.routes.openapi import openapi
from node.api.routes.plan import PlanEndpoint
from node.api.routes.words import Words, WordsEndpoint
from node.api.service import Service
from node.errors import RequestError
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
    """For clients: answers, models, health, state, events and the plan.

    Args:
        loopback_only: only this machine reaches it.
        owner: how a request shows that it may change the plan.
        hosts: further names under which the port may be called.
        origins: of further web pages that may call.
    """
    door = Door(loopback_only=loopback_only, hosts=frozenset(hosts), origins=frozenset(origins))
    return Guard(_app(_client_routes(service, owner, waiting_status=503)), door)


def control_app(service: Service, *, token: str | None) -> ASGIApp:
    """For the terminal app and the command line: invitations too. Without a token: for the unix socket.

    Its `/health` is 200 while the node waits: they want to know that it is there, and what for.
    """

    async def invitation(request: Request) -> Response:
        return JSONResponse({"token": service.here.invitation()})

    routes = [
        *_client_routes(service, Owner(), waiting_status=200),
        Route("/v1/invitation", invitation, methods=["POST"]),
    ]
    return Guard(_app(routes), Door(token=token, over_socket=token is None))


def _client_routes(service: Service, owner: Owner, *, waiting_status: int) -> list[Route]:
    bodies = Bodies()
    planning = PlanEndpoint(service.here, bodies)
    models = ModelList(service)
    words = Words(service, bodies)

    async def health(request: Request) -> Response:
        serving = await service.until_serving(_patience_s(request.query_params.get("wait", "")))
        body = {
            "status": "ok" if serving else "waiting",
            "version": node.__version__,
            "wire_version": WIRE_VERSION,
            "reason": "" if serving else service.here.waiting_for(),
        }
        if serving or waiting_status == 200:
            return JSONResponse(body)
        return JSONResponse(body, waiting_status, {"retry-after": "2"})

    async def state(request: Request) -> Response:
        shown = owner.state_for(request.headers, service.journal.state)
        return Response(msgspec.json.encode(shown), media_type="application/json")

    async def description(request: Request) -> Response:
        return JSONResponse(openapi())

    async def hello(request: Request) -> Response:
        return PlainTextResponse(f"Parallax {node.__version__} is running; clients want /v1\n")

    chat = GeneratingEndpoint(service, bodies, OpenAIChat())
    completions = GeneratingEndpoint(service, bodies, OpenAICompletions())
    openai = [
        route
        for prefix in ("/v1", "")  # many programs are told the address alone
        for route in (
            Route(f"{prefix}/chat/completions", chat, methods=["POST"]),
            Route(f"{prefix}/completions", completions, methods=["POST"]),
            Route(f"{prefix}/models", models.listed, methods=["GET"]),
            Route(f"{prefix}/models/{{model:path}}", models.one, methods=["GET"]),
        )
    ]
    return [
        *openai,
        *responses_routes(service, bodies),
        *anthropic_routes(service, bodies),
        *ollama_routes(service, bodies, owner),
        Route("/tokenize", WordsEndpoint(bodies, words.tokenise), methods=["POST"]),
        Route("/detokenize", WordsEndpoint(bodies, words.detokenise), methods=["POST"]),
        Route("/apply-template", WordsEndpoint(bodies, words.apply_template), methods=["POST"]),
        Route("/v1/events", EventsEndpoint(service.journal, owner), methods=["GET"]),
        Route("/v1/plan", owner.looking_at_plans(planning.propose), methods=["POST"]),
        Route(APPLY, owner.only(planning.apply), methods=["POST"]),
        Route("/v1/state", state, methods=["GET"]),
        Route("/health", health, methods=["GET"]),
        Route("/openapi.json", description, methods=["GET"]),
        Route("/", hello, methods=["GET"]),
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


class _NoSuchRoute(RequestError):
    """The path, or its method, is none."""

    kind = "invalid_request_error"

    def __init__(self, message: str, status: int) -> None:
        self.status = status
        super().__init__(message)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method[:20]} {request.url.path[:200]}: {error.detail}"
    response = reply(error_for(request.url.path, _NoSuchRoute(message, error.status_code), unserved_id()))
    response.headers.update(error.headers or {})
    return response


async def _unexpected(request: Request, error: Exception) -> Response:
    message = f"{type(error).__name__} in {request.url.path[:200]}; the node's log has the details"
    return reply(error_for(request.url.path, RequestError(message), unserved_id()))
