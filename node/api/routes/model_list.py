"""What models are served, as OpenAI's clients ask for it."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from node.api.dialects.fields import shown
from node.api.http.error_replies import error_response
from node.api.service import Service
from node.errors import ModelNotServed


class ModelList:
    """Handlers of the routes."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def listed(self, request: Request) -> Response:
        """`GET /v1/models`."""
        return JSONResponse({"object": "list", "data": self._models()})

    async def one(self, request: Request) -> Response:
        """`GET /v1/models/{id}`."""
        name = str(request.path_params["model"])
        for model in self._models():
            if model["id"] == name:
                return JSONResponse(model)
        served = ", ".join(model["id"] for model in self._models()) or "none yet"
        return error_response(ModelNotServed(shown(name), served))

    def _models(self) -> list[dict[str, Any]]:
        plan = self._service.here.plan()
        if plan is None:
            return []
        chat_model = self._service.here.chat_model()
        model: dict[str, Any] = {
            "id": plan.model.name,
            "object": "model",
            "created": int(self._service.started_s),
            "owned_by": "parallax",
        }
        if chat_model is not None:  # vLLM's name for it, which clients look for
            model["max_model_len"] = chat_model.context_tokens
        return [model]
