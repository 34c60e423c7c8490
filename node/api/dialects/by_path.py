"""Which dialect's errors a path's clients can read, also where no route is found or nobody is let in."""

from __future__ import annotations

from node.api.dialects.anthropic_form import anthropic_error
from node.api.dialects.base import ErrorReply
from node.api.dialects.ollama_form import ollama_error
from node.api.dialects.openai_errors import openai_error
from node.errors import RequestError


def error_for(path: str, error: RequestError, request_id: str = "") -> ErrorReply:
    """The error in the form of the path's dialect."""
    if path.startswith("/api/"):
        return ollama_error(error, request_id)
    if path.removeprefix("/v1").startswith("/messages"):
        return anthropic_error(error, request_id)
    return openai_error(error, request_id)
