"""Routes of the dialects beside OpenAI's chats and completions."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from node.api.dialects.anthropic import Anthropic
from node.api.dialects.fields import shown
from node.api.dialects.ollama import OllamaChat, OllamaGenerate, only_loads
from node.api.dialects.ollama_form import now, ollama_error
from node.api.dialects.response_store import ResponseStore
from node.api.dialects.responses import Responses
from node.api.http.body import Bodies, expect_json
from node.api.http.error_replies import error_response, reply, unserved_id
from node.api.http.owner import Owner
from node.api.routes.generating import BODY_LIMIT_BYTES, GeneratingEndpoint
from node.api.routes.ollama_models import OllamaEndpoint, OllamaModels, no_embedder
from node.api.service import Service
from node.errors import BadRequest, RequestError


def anthropic_routes(service: Service, bodies: Bodies) -> list[Route]:
    """Messages, and how many tokens they would be."""
    dialect = Anthropic()
    messages = GeneratingEndpoint(service, bodies, dialect)

    async def count(request: Request) -> Response:
        try:
            with bodies.room() as room:
                expect_json(request.scope)
                body = await room.read(request.scope, request.receive, BODY_LIMIT_BYTES)
                model, chat = await bodies.decoded(dialect.counted, body)
                served = service.served(model)
                made = await service.prompting.prompted(chat, served.chat_model, served.plan.facts.vocab_size)
        except RequestError as error:
            return reply(dialect.error(error, unserved_id()))
        return JSONResponse({"input_tokens": len(made.ids)})

    return [
        route
        for prefix in ("/v1", "")
        for route in (
            Route(f"{prefix}/messages", messages, methods=["POST"]),
            Route(f"{prefix}/messages/count_tokens", count, methods=["POST"]),
        )
    ]


class NoSuchResponse(BadRequest):
    """One that is not kept, or not any more."""

    status = 404


def responses_routes(service: Service, bodies: Bodies) -> list[Route]:
    """Responses, those that are kept, and embeddings, which there are none of."""
    store = ResponseStore()
    create = GeneratingEndpoint(service, bodies, Responses(store))

    async def one(request: Request) -> Response:
        response_id = str(request.path_params["response"])
        kept = store.get(response_id)
        if kept is None:
            what = f"there is no response {shown(response_id)} here (any more)"
            return error_response(NoSuchResponse("response_id", what))
        if request.method == "DELETE":
            store.forget(response_id)
            return JSONResponse({"id": response_id, "object": "response", "deleted": True})
        return Response(kept.response, media_type="application/json")

    async def embeddings(request: Request) -> Response:
        try:
            raise no_embedder(service)
        except RequestError as error:
            return error_response(error)

    return [
        route
        for prefix in ("/v1", "")
        for route in (
            Route(f"{prefix}/responses", create, methods=["POST"]),
            Route(f"{prefix}/responses/{{response}}", one, methods=["GET", "DELETE"]),
            Route(f"{prefix}/embeddings", embeddings, methods=["POST"]),
        )
    ]


class _Loading:
    """A body that asks nothing is answered at once: its client wants the model to be there, and it is."""

    def __init__(self, service: Service, bodies: Bodies, endpoint: GeneratingEndpoint, *, chat: bool) -> None:
        self._service, self._bodies, self._endpoint, self._chat = service, bodies, endpoint, chat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._endpoint.unless(self._loaded, scope, receive, send)

    def _loaded(self, body: bytes) -> Response | None:
        name = only_loads(body) if len(body) < 4096 else None
        if name is None:
            return None
        try:
            model = self._service.served(name).plan.model.name
        except RequestError as error:
            return reply(ollama_error(error, unserved_id()))
        told: dict[str, Any] = {"model": model, "created_at": now(), "done": True, "done_reason": "load"}
        told |= {"message": {"role": "assistant", "content": ""}} if self._chat else {"response": ""}
        return Response(msgspec.json.encode(told), media_type="application/json")


def ollama_routes(service: Service, bodies: Bodies, owner: Owner) -> list[Route]:
    """Chat, generate, and models."""
    models = OllamaModels(service, bodies, owner)
    chat = _Loading(service, bodies, GeneratingEndpoint(service, bodies, OllamaChat()), chat=True)
    generate = _Loading(service, bodies, GeneratingEndpoint(service, bodies, OllamaGenerate()), chat=False)
    return [
        Route("/api/chat", chat, methods=["POST"]),
        Route("/api/generate", generate, methods=["POST"]),
        Route("/api/tags", models.tags, methods=["GET"]),
        Route("/api/ps", models.ps, methods=["GET"]),
        Route("/api/version", models.version, methods=["GET"]),
        Route("/api/show", OllamaEndpoint(bodies, models.show), methods=["POST"]),
        Route("/api/embed", OllamaEndpoint(bodies, models.embed, BODY_LIMIT_BYTES), methods=["POST"]),
        Route("/api/embeddings", OllamaEndpoint(bodies, models.embed, BODY_LIMIT_BYTES), methods=["POST"]),
        Route("/api/pull", _Pull(models), methods=["POST"]),
    ]


class _Pull:
    """An ASGI app, which reads `receive` to the end: a route takes only an object for one."""

    def __init__(self, models: OllamaModels) -> None:
        self._models = models

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._models.pull(scope, receive, send)
