"""`/openapi.json`: what can be asked here, made from the very tables that bodies are checked with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import node
from node.api.dialects import anthropic, ollama, openai_chat, openai_completions, responses
from node.api.dialects.fields import Fields

_BODIES: Mapping[str, tuple[str, Fields]] = {
    "/v1/chat/completions": ("A chat in OpenAI's form.", openai_chat.FIELDS),
    "/v1/completions": ("Text that goes on.", openai_completions.FIELDS),
    "/v1/responses": ("A chat in OpenAI's newer form.", responses.FIELDS),
    "/v1/messages": ("A chat in Anthropic's form.", anthropic.FIELDS),
    "/v1/messages/count_tokens": ("How many tokens such a chat is.", anthropic.FIELDS),
    "/api/chat": ("A chat in Ollama's form.", ollama.CHAT),
    "/api/generate": ("Text in Ollama's form.", ollama.GENERATE),
}

_READ: Mapping[str, str] = {
    "/v1/models": "The swarm's model.",
    "/v1/state": "Nodes, plan and requests.",
    "/v1/events": "The same as numbered changes, without end.",
    "/health": "Whether the node can serve.",
    "/api/tags": "The swarm's model in Ollama's form.",
    "/api/ps": "What is loaded.",
    "/api/version": "The version of Ollama whose form this is.",
}

_POSTED: Mapping[str, str] = {
    "/v1/plan": "What the plan would be.",
    "/v1/plan/apply": "Make it so.",
    "/tokenize": "Text to tokens.",
    "/detokenize": "Tokens to text.",
    "/apply-template": "The prompt that messages make.",
    "/api/show": "What the model is and can do.",
    "/api/pull": "Fetch a model.",
}


def openapi() -> dict[str, Any]:
    """The document."""
    paths: dict[str, Any] = {}
    for path, (summary, fields) in _BODIES.items():
        schema = {"type": "object", "properties": {name: _property(fields, name) for name in fields.names}}
        body = {"required": True, "content": {"application/json": {"schema": schema}}}
        paths[path] = {"post": {**_operation(summary), "requestBody": body}}
    for path, summary in _READ.items():
        paths[path] = {"get": _operation(summary)}
    for path, summary in _POSTED.items():
        body = {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}
        paths[path] = {"post": {**_operation(summary), "requestBody": body}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Parallax", "version": node.__version__},
        "paths": paths,
    }


def _operation(summary: str) -> dict[str, Any]:
    return {"summary": summary, "responses": {"200": {"description": "OK"}, "4XX": {"description": "Refused"}}}


def _property(fields: Fields, name: str) -> dict[str, Any]:
    reason = fields.refusals.get(name)
    if reason is None:
        return {}
    return {"description": f"Only values that change nothing: {reason}."}
